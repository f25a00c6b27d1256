"""What a run says of itself in `config.yaml`, and whether another run may go on with it."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchcore.config import DatasetConfig, RunConfig
from patchcore.methods.method import Method
from patchcore.methods.stored_model import StoredModel
from patchcore.results.config_file import read_config
from patchcore.results.run_folder import RunFolder
from patchcore.settings import settings_of, split_settings, to_plain
from patchcore.system.environment import environment
from patchcore.types import PatchCoreError, Sample

# Sections of config.yaml that a resumed run may have otherwise.
_INCIDENTAL = ("id", "command", "execution", "environment")


def describe_run(
    run: RunConfig,
    dataset: DatasetConfig,
    method: Method,
    configs: Mapping[str, Any],
    models: Mapping[str, StoredModel],
    test_set: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """The content of `config.yaml`: all that decides the numbers, and where and how fast they came about.

    Args:
        configs: category -> the method's settings; alike, or those of a file by category, or of stored models.
        models: category -> the stored model that is evaluated; empty for a training.
        test_set: row name -> what tells its test images, see `fingerprint`.
    """
    plain = {category: split_settings(config) for category, config in configs.items()}
    decisive = {category: settings for category, (settings, _) in plain.items()}
    first = next(iter(configs.values()))
    shared, differing = _split_by_category(decisive)
    by_category = any(getattr(config, "class_specific", False) for config in configs.values())
    known = settings_of(first)
    one_method = all(known[name].by_category and by_category for name in set().union(*differing.values()))
    name = method.short_name(first, dataset.imagesize, stored=bool(models), by_category=by_category)
    if any(model.training.category not in (None, category) for category, model in models.items()):
        name += ", models of other categories"
    content: dict[str, Any] = {
        "command": command,
        "id": uuid.uuid4().hex,
        # Models of different configurations are evaluated together, but are no method.
        "method": {"name": method.name, "title": method.title, "short_name": name if one_method else ""},
        "run": run,
        "dataset": dataset,
        "settings": shared,
        "execution": next(iter(plain.values()))[1],
    }
    if any(differing.values()):
        content["settings_by_category"] = differing
    if models:
        content["models"] = {category: _describe_model(model) for category, model in models.items()}
        content["overrides"] = next(iter(models.values())).overrides
    return to_plain({**content, "test_set": test_set, "environment": environment()})


def _split_by_category(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that all categories share, and by category the others."""
    first, *others = settings.values()
    shared = {name: value for name, value in first.items() if all(other[name] == value for other in others)}
    return shared, {
        category: {name: value for name, value in own.items() if name not in shared}
        for category, own in settings.items()
    }


def _describe_model(model: StoredModel) -> dict[str, Any]:
    return {"folder": model.folder, **dataclasses.asdict(model.training), "checksums": dict(model.checksums)}


def fingerprint(samples: Sequence[Sample], root: Path) -> dict[str, object]:
    """What tells whether two runs were tested on the same images: their number, and a hash of their names and sizes."""
    images = [f"{sample.path.relative_to(root).as_posix()} {sample.path.stat().st_size}" for sample in samples]
    return {"images": len(images), "fingerprint": hashlib.sha256("\n".join(images).encode()).hexdigest()[:12]}


def check_resumable(folder: RunFolder, content: Mapping[str, Any]) -> None:
    """See that a run folder was begun with the settings of `content`, those aside that change no result.

    Raises:
        PatchCoreError: its settings cannot be read, or differ; the first that does is named.
    """
    begun = read_config(folder.config)
    may_differ = {"method": {"title", "short_name"}} | {
        section: {name for name, known in settings_of(config).items() if not known.decides}
        for section, config in (("run", RunConfig), ("dataset", DatasetConfig))
    }
    for section in [*begun, *(name for name in content if name not in begun)]:
        if section in _INCIDENTAL:
            continue
        old, now = begun.get(section), content.get(section)
        names = [""]
        if isinstance(old, dict) and isinstance(now, dict):
            names = [name for name in {**old, **now} if name not in may_differ.get(section, ())]
        else:
            old, now = {"": old}, {"": now}
        for name in names:
            if old.get(name) != now.get(name):
                raise PatchCoreError(
                    f"--resume: {folder.path} was begun with {section} {name} {old.get(name)!r}, now it is"
                    f" {now.get(name)!r}: repeat the settings, or leave --resume out to start a new run"
                )
