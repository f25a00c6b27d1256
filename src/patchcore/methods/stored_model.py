"""The one format of stored models: `model.json`, and the arrays beside it. Nothing in them is ever executed.

Without torch, so that a wrong folder is named before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from patchcore.calibration import Calibration
from patchcore.datasets.geometry import Geometry
from patchcore.methods.method import Method
from patchcore.settings import check, from_plain, setting, settings_of, split_settings, to_plain
from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError

MODEL_FILE = "model.json"
_OLDER_ARRAYS = (".faiss", ".safetensors")  # endings of the arrays of older formats
FORMAT = 2  # 1: a file per method, patchcore_params.json and fastflow_params.json

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a detector was trained on.

    Attributes:
        images: how many, each of its views counted; None where the model does not say.
        fingerprint: a hash of the pixels that the network saw of all photos, in their order; None where the model does
            not say.
        seed: source of all random choices, also of which training images were held out.
        train_val_split: share of the training images that was trained on.
        category: of the data set; None for images from elsewhere.
        run: the id of the run; None for a model that no run made.
    """

    images: int | None = None
    fingerprint: str | None = None
    seed: int = setting(0, at_least=0)
    train_val_split: float = setting(1.0, above=0, at_most=1)
    category: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Photo:
    """A photo that a detector has learnt: its name, and a hash of the pixels that the network saw."""

    name: str
    pixels: str


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """The weights that a network really had: their name, such as "resnet18.a1_in1k", and a checksum of their values."""

    backbone: str
    name: str
    checksum: str | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model folder whose description was read and holds.

    Attributes:
        config: the settings, of the class `method.config`, with what `load` chose anew.
        geometry: how images are brought to the network.
        weights: one entry per network; empty where the model does not say.
        photos: that it was trained on, their names and hashes; empty where the model does not say.
        calibration: what turns scores into verdicts; None where there is none, or settings that it depends on were
            chosen anew.
        checksums: file name -> SHA-256 of the arrays; empty where the model does not say.
        overrides: the settings that were chosen anew on loading.
    """

    folder: Path
    method: Method
    config: Any
    geometry: Geometry
    training: Training
    weights: tuple[LoadedWeights, ...] = ()
    photos: tuple[Photo, ...] = ()
    calibration: Calibration | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def check_arrays(self) -> None:
        """See that the arrays are those that were stored.

        Raises:
            PatchCoreError: one is missing or was changed; it is named.
        """
        for name, checksum in self.checksums.items():
            path = self.folder / name
            if sha256_of(path) != checksum:
                raise PatchCoreError(f"{path}: damaged: its checksum is not the one in {MODEL_FILE}")

    def with_settings(self, chosen: Mapping[str, Any]) -> StoredModel:
        """The model with some settings chosen anew.

        Raises:
            ValueError: a setting that cannot be, has a wrong value, or has no effect.
        """
        known = settings_of(self.config)
        for name in chosen:
            if name not in known or not known[name].on_load:
                allowed = ", ".join(name for name, setting in known.items() if setting.on_load)
                raise ValueError(f"{name} cannot be chosen anew for a stored model; there are {allowed}")
        config = dataclasses.replace(self.config, **chosen)
        self.method.refuse_without_effect(config, frozenset(chosen))
        plain = to_plain(config)
        decisive = {name: plain[name] for name in chosen if known[name].decides}
        overrides = {**self.overrides, **decisive}
        # Other settings give other scores, of which the calibration says nothing.
        changed = any(getattr(config, name) != getattr(self.config, name) for name in decisive)
        calibration = None if changed else self.calibration
        return dataclasses.replace(self, config=config, overrides=overrides, calibration=calibration)


def write_model(model: StoredModel) -> None:
    """Write `model.json` beside the arrays in a folder that is being made; every other file there is one of them."""
    arrays = sorted(path for path in model.folder.iterdir() if path.name != MODEL_FILE)
    content = _description(model, {path.name: sha256_of(path) for path in arrays})
    (model.folder / MODEL_FILE).write_text(_as_json(content), encoding="utf-8")


def write_calibration(model: StoredModel) -> None:
    """Store `model.calibration` in the folder of a model that was read; nothing else that is stored there changes.

    A folder of an older format gets a `model.json` beside its files, by which it is read from then on; its arrays are
    those of `model.checksums`.

    Raises:
        PatchCoreError: the file cannot be written; the one before is left as it was.
    """
    path = model.folder / MODEL_FILE
    content = read_description(path, FORMAT) if path.exists() else _description(model, model.checksums)
    content["calibration"] = _calibration_as_json(model)
    with atomic_write(path) as aside:
        aside.write_text(_as_json(content), encoding="utf-8")


def _description(model: StoredModel, arrays: Mapping[str, str]) -> dict[str, Any]:
    settings, _ = split_settings(model.config)  # where and how fast is a matter of the machine
    return {
        "format": FORMAT,
        "method": model.method.name,
        "settings": settings,
        "geometry": to_plain(model.geometry),
        "training": to_plain(model.training),
        "weights": to_plain(model.weights),
        "photos": [[photo.name, photo.pixels] for photo in model.photos],
        "calibration": _calibration_as_json(model),
        "arrays": dict(arrays),
    }


def _calibration_as_json(model: StoredModel) -> dict[str, Any] | None:
    return None if model.calibration is None else model.calibration.to_plain()


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def read_model(folder: Path, methods: Mapping[str, Method], resize: int | None = None) -> StoredModel:
    """Read what a model folder says of itself, in this format or an older one; the arrays are left alone.

    Args:
        methods: those that may have stored it, by name.
        resize: shorter side of the images before cropping, for the original's folders, which do not say it.

    Raises:
        PatchCoreError: there is no model, or its description is damaged, of a later format or of an unknown method.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        for method in methods.values():
            if (older := method.read_older(folder, resize)) is not None:
                arrays = (path for path in sorted(folder.iterdir()) if path.suffix in _OLDER_ARRAYS)
                return dataclasses.replace(older, checksums={path.name: sha256_of(path) for path in arrays})
        raise PatchCoreError(_missing(folder, methods))
    content = read_description(path, FORMAT)
    with explain_damage(path, "the description of a stored model"):
        if content["method"] not in methods:
            raise PatchCoreError(
                f"{path}: a model of the method {content['method']!r:.40}, expected one of {', '.join(methods)}"
            )
        method = methods[content["method"]]
        arrays = content["arrays"]
        if (
            not isinstance(arrays, dict)
            or not arrays
            or not all(Path(name).name == name and isinstance(arrays[name], str) for name in arrays)
        ):
            raise ValueError(f"arrays must be checksums by file name, got {arrays!r:.80}")
        for name in arrays:
            if not (folder / name).is_file():
                raise PatchCoreError(f"{folder / name}: no such file, expected the array that {MODEL_FILE} names")
        return StoredModel(
            folder=folder,
            method=method,
            config=_part(content, "settings", method.config),
            geometry=_part(content, "geometry", Geometry),
            training=_part(content, "training", Training),
            weights=tuple(_part({"weights": entry}, "weights", LoadedWeights) for entry in content["weights"]),
            photos=_photos(content.get("photos", [])),
            calibration=_calibration(content["calibration"]),
            checksums=arrays,
        )


def _photos(entries: Any) -> tuple[Photo, ...]:
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry) for entry in entries
    ):
        raise ValueError(f"photos must be pairs of a name and a hash, got {entries!r:.80}")
    return tuple(Photo(*entry) for entry in entries)


def _calibration(content: Any) -> Calibration | None:
    if content is None:
        return None
    if not isinstance(content, dict):
        raise ValueError(f"calibration must be an object or null, got {content!r:.80}")
    try:
        return Calibration.from_plain(content)
    except KeyError as error:
        raise ValueError(f"calibration lacks {error}") from error
    except ValueError as error:
        raise ValueError(f"calibration: {error}") from error


def _part(content: Mapping[str, Any], name: str, part: type[Part]) -> Part:
    """A part of the description, whole: what is missing must not become a default of today."""
    values = content[name]
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object, got {values!r:.80}")
    missing = [key for key, known in settings_of(part).items() if known.decides and key not in values]
    if missing:
        raise ValueError(f"{missing[0]} is missing in {name}")
    return from_plain(part, values)


@contextmanager
def explain_damage(path: Path, expected: str) -> Iterator[None]:
    """Turn what goes wrong with the content of a description into one line with its path."""
    try:
        yield
    except KeyError as error:
        raise PatchCoreError(f"{path}: expected {expected}, but {error} is missing") from error
    except (ValueError, TypeError) as error:
        raise PatchCoreError(f"{path}: expected {expected}: {error}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return content


def read_description(path: Path, version: int) -> dict[str, Any]:
    """Read a JSON object of that format.

    Raises:
        PatchCoreError: the file cannot be read, is no such JSON, or is of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the model: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PatchCoreError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise PatchCoreError(f"{path}: damaged: expected an object, got {content!r:.40}")
    if content.get("format") != version:
        raise PatchCoreError(
            f"{path}: format {content.get('format')!r:.20}, this version reads format {version}; train and store the"
            " model again"
        )
    return content


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        PatchCoreError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the model: {error.strerror}") from error
    return digest.hexdigest()


def _missing(folder: Path, methods: Mapping[str, Method]) -> str:
    titles = " or ".join(method.title for method in methods.values())
    if not folder.is_dir():
        return f"no folder {folder}: expected a stored {titles} model there"
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if inside:
        return f"no {titles} model in {folder} for this category: there is {', '.join(inside)}"
    return f"no {titles} model in {folder}: expected {MODEL_FILE} and the arrays that it names"
