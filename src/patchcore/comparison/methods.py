"""What a run's `config.yaml` says of its method: a key that seeds of one configuration share, and a name to read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcore.types import PatchCoreError

METHODS = {"patch_core": "PatchCore", "fastflow": "FastFlow"}  # the stage that stands in config.yaml -> name
# Where and how fast a method computes, not what.
_TECHNICAL = ("faiss_on_gpu", "faiss_num_workers", "weights_dir", "checkpoint_seconds")
_SAMPLERS = {"approx_greedy_coreset": "{:g} %", "greedy_coreset": "greedy {:g} %", "random": "random {:g} %"}
_GEOMETRY_AND_TRAINING = ("resize", "imagesize", "train_val_split", "augment")


@dataclass(frozen=True)
class Configuration:
    """A method with its settings; runs that agree in it are seeds of one another.

    Attributes:
        method: such as "PatchCore".
        settings: all settings that decide what is computed, as JSON by name.
        stored: whether the run evaluated stored models rather than trained.
    """

    method: str
    settings: tuple[tuple[str, str], ...]
    stored: bool = False

    @property
    def short_name(self) -> str:
        """Backbones, image size, share of the bank: mostly enough to tell methods apart."""
        settings = {name: json.loads(value) for name, value in self.settings}
        backbones = Counter(settings.get("backbones") or [settings["backbone"]])
        networks = " + ".join(name if times == 1 else f"{times} × {name}" for name, times in backbones.items())
        parts = [f"{self.method} {networks}", f"{settings['imagesize']} px"]
        if "sampler" in settings:
            parts.append(_SAMPLERS.get(settings["sampler"], "all patches").format(100 * settings["fraction"]))
        if settings.get("class_specific"):
            parts.append("class-specific")
        if settings.get("weights", "pretrained") != "pretrained":
            parts.append(f"{settings['weights']} weights")
        if self.stored:
            parts.append("stored")
        return ", ".join(parts)


def configuration(config: Mapping[str, Any]) -> Configuration:
    """The configuration of a run, from its `config.yaml`.

    Raises:
        PatchCoreError: no known method or no backbone stands there, the sampler or the models are damaged, or an
            evaluation's models differ in more than what is set by category.
    """
    for stage, method in METHODS.items():
        if stage in config:
            settings, by_category = dict(config[stage]), config.get(f"{stage}_by_category")
            sampler, stored = config.get("sampler"), False
        elif f"{stage}_loader" in config:
            models = config.get("models")
            if not models:
                raise PatchCoreError(f"config.yaml: damaged: {stage}_loader without models")
            settings, by_category = _shared({category: model["config"] for category, model in models.items()})
            sampler, stored = next(iter(models.values())).get("sampler"), True
        else:
            continue
        backbones = settings.get("backbones") or [settings.get("backbone")]
        if not (isinstance(backbones, list) and all(isinstance(name, str) and name for name in backbones)):
            raise PatchCoreError(f"config.yaml: {method} has no backbone")
        settings |= {name: config["dataset"][name] for name in _GEOMETRY_AND_TRAINING}
        if config["dataset"].get("reduced_decoding"):
            settings["reduced_decoding"] = True
        if sampler:
            if not _is_sampler(sampler):
                raise PatchCoreError(f"config.yaml: damaged: the sampler is {sampler!r:.80}")
            settings |= {"sampler": sampler["name"], "fraction": sampler["fraction"]}
        if by_category:
            settings["by_category"] = hashlib.sha256(json.dumps(by_category).encode()).hexdigest()[:6]
        known = sorted((name, json.dumps(value)) for name, value in settings.items() if name not in _TECHNICAL)
        return Configuration(method, tuple(known), stored)
    raise PatchCoreError(f"config.yaml names no known method: expected one of {', '.join(METHODS)}, or its loader")


def _is_sampler(found: object) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("name"), str)
        and isinstance(found.get("fraction"), int | float)
        and 0 < found["fraction"] <= 1
    )


def _shared(configs: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The settings that stored models share, and those of each where they were set by category."""
    first, *others = configs.values()
    if all(other == first for other in others):
        return dict(first), None
    if not all(one.get("class_specific") for one in configs.values()):
        raise PatchCoreError("an evaluation of stored models of different configurations, which is no method")
    shared = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    return shared, configs


def origin(config: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes a run one of its own among those of its configuration: its seed, or the stored models it loaded."""
    if "models" in config:
        return tuple(model["folder"] for model in config["models"].values())
    return (config["run"]["seed"],)


def repeated(config: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """(project, group) of the runs whose models an evaluation loaded and scored as they were trained.

    Empty for a training, and where options of the evaluation replaced settings of the models.
    """
    loader = next((config[f"{stage}_loader"] for stage in METHODS if f"{stage}_loader" in config), None)
    if loader is None or any(value for name, value in loader.items() if name not in ("paths", *_TECHNICAL)):
        return set()
    # A run keeps its models in PROJECT/GROUP/models/CATEGORY, wherever the project lies.
    return {Path(model["folder"]).parts[-4:-2] for model in config["models"].values()}


def names_of(configurations: Iterable[Configuration]) -> dict[Configuration, str]:
    """A name for each configuration; where short names agree, the settings that differ are added."""
    alike: dict[str, list[Configuration]] = {}
    for one in configurations:
        alike.setdefault(one.short_name, []).append(one)
    names = {}
    for short, group in alike.items():
        values = [dict(one.settings) for one in group]
        keys = sorted(set().union(*values))
        differing = [key for key in keys if len({settings.get(key) for settings in values}) > 1]
        for one, settings in zip(group, values, strict=True):
            added = [f"{key}={settings[key]}".replace('"', "") for key in differing if key in settings]
            names[one] = ", ".join([short, *added])
    return names
