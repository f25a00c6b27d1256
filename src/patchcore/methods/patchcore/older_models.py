"""PatchCore models as version 0.1 and the original stored them: a file of parameters per member, beside its bank."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.datasets.geometry import Geometry
from patchcore.methods.patchcore import METHOD, legacy
from patchcore.methods.patchcore.config import INDEX_FILE, PatchCoreConfig, member_prefixes
from patchcore.methods.stored_model import StoredModel, Training, explain_damage, read_description
from patchcore.settings import from_plain
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

PARAMS_FILE = "patchcore_params.json"
FORMAT = 1  # of PARAMS_FILE
ORIGINAL_RESIZE = {224: 256, 320: 366}  # image size -> resize, as the study paired them
_OF_MEMBERS = ("backbone", "layers")  # what the members of an ensemble differ in
_OF_TRAINING = ("seed", "train_val_split")
_DIMENSIONS = ("pretrain_embed_dimension", "target_embed_dimension", "patchsize", "num_nn")
_ALWAYS_THERE = ("weights", *_DIMENSIONS, "sampler", "fraction")  # the defaults of a run are not those of a model


def read_older(folder: Path, resize: int | None) -> StoredModel | None:
    """Read the parameters of a model folder of version 0.1 or the original; None if there are none.

    The original's folders lack two things. Their images were resized to `resize`, or else as the study paired it with
    the image size. And whatever number of neighbours they were stored with, the original scored with one, so one gives
    its numbers again. What they were trained on is not known, so there is no threshold.

    Raises:
        PatchCoreError: a file is missing, damaged, or does not fit the others.
    """
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        PARAMS_FILE: _read_version_1,
        legacy.PARAMS_FILE: lambda path: _read_original(path, resize),
    }
    for name, read in readers.items():
        prefixes = _prefixes_in(folder, name)
        if prefixes is None:
            continue
        paths = [folder / f"{prefix}{name}" for prefix in prefixes]
        for prefix, path in zip(prefixes, paths, strict=True):
            if not (index := folder / f"{prefix}{INDEX_FILE}").is_file():
                raise PatchCoreError(f"{index}: no such file, expected the memory bank that belongs to {path.name}")
        contents = [read(path) for path in paths]
        members = [_member(path, content) for path, content in zip(paths, contents, strict=True)]
        _check_alike(paths, contents)
        config = replace(
            members[0].config,
            backbones=tuple(name for member in members for name in member.config.backbones),
            layers=tuple(names for member in members for names in member.config.layers),
        )
        if name == legacy.PARAMS_FILE and config.num_nn != 1:
            log.warning(
                "%s: stored with --anomaly_scorer_num_nn %d, but the original scored with 1 neighbour all the same, and"
                " so does this unless the loader is given another number",
                folder,
                config.num_nn,
            )
            config = replace(config, num_nn=1)
        return replace(members[0], config=config)
    return None


def _member(path: Path, content: Mapping[str, Any]) -> StoredModel:
    """A member as a model of its own."""
    settings = {name: value for name, value in content.items() if name != "format"}
    with explain_damage(path, "the parameters of a PatchCore model"):
        backbone, layers = (settings.pop(name) for name in _OF_MEMBERS)
        training = {name: settings.pop(name) for name in _OF_TRAINING}
        geometry = {field.name: settings.pop(field.name) for field in fields(Geometry) if field.name in settings}
        return StoredModel(
            folder=path.parent,
            method=METHOD,
            config=from_plain(PatchCoreConfig, {**settings, "backbones": [backbone], "layers": [layers]}),
            geometry=from_plain(Geometry, geometry),
            training=from_plain(Training, training),
        )


def _read_version_1(path: Path) -> dict[str, Any]:
    content = read_description(path, FORMAT)
    for name in _ALWAYS_THERE:
        if name not in content:
            raise PatchCoreError(f"{path}: expected the parameters of a PatchCore model, but {name!r} is missing")
    return content


def _read_original(path: Path, resize: int | None) -> dict[str, Any]:
    original = legacy.read_original_params(path)
    resize = resize or ORIGINAL_RESIZE.get(original["imagesize"])
    if resize is None:
        raise PatchCoreError(
            f"{path}: images of {original['imagesize']} pixels, but it does not say what they were cut from: give the"
            " shorter side of the resized image with --resize (dataset stage)"
        )
    return {
        **original,
        "sampler": None,
        "fraction": None,
        "resize": resize,
        "seed": 0,
        "train_val_split": 1.0,
    }


def _check_alike(paths: Sequence[Path], members: Sequence[Mapping[str, Any]]) -> None:
    """The members of an ensemble differ in backbone and layers only."""
    for name in dict.fromkeys(name for member in members for name in member):
        if name in _OF_MEMBERS:
            continue
        values = [member.get(name) for member in members]
        for path, value in zip(paths, values, strict=True):
            if value != values[0]:
                raise PatchCoreError(
                    f"{path}: {name} is {value!r:.80}, in {paths[0].name} it is {values[0]!r:.80}: not of one ensemble"
                )


def _prefixes_in(folder: Path, name: str) -> list[str] | None:
    """The prefixes of the members whose files of that name are in a folder; None where there are none."""
    if (folder / name).is_file():
        return member_prefixes(1)
    found = {path.name.removesuffix(name) for path in folder.glob(f"Ensemble-*_{name}")}
    if not found:
        return None
    count = min(found).rstrip("_").rpartition("-")[2]  # Ensemble-1-3_ -> 3
    expected = member_prefixes(int(count)) if count.isdecimal() and len(count) < 4 else []
    if set(expected) == found:
        return expected
    missing = ", ".join(f"{prefix}{name}" for prefix in expected if prefix not in found)
    there = ", ".join(f"{prefix}{name}" for prefix in sorted(found))
    raise PatchCoreError(f"incomplete ensemble in {folder}: found {there}, missing {missing or 'the others'}")
