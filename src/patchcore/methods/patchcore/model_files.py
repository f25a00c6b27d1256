"""A stored PatchCore model: the files in its folder, this toolkit's or the original's, and what their parameters say.

Without torch, so that a wrong folder is named before anything is loaded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from patchcore.config import TrainedOn
from patchcore.methods.patchcore import legacy
from patchcore.methods.patchcore.config import PatchCoreConfig, PatchCoreLoaderConfig, SamplerConfig
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

INDEX_FILE = "nnscorer_search_index.faiss"
PARAMS_FILE = "patchcore_params.json"
FORMAT = 1  # of PARAMS_FILE
ORIGINAL_RESIZE = {224: 256, 320: 366}  # image size -> resize, as the study paired them


@dataclass(frozen=True, kw_only=True)
class MemberParams:
    """What, beside the bank, makes a stored member give the same scores again: the fields of PARAMS_FILE.

    `sampler` and `fraction` are None where the original stored the member, which does not say.
    """

    backbone: str
    weights: str
    layers: tuple[str, ...]
    pretrain_embed_dimension: int
    target_embed_dimension: int
    patchsize: int
    num_nn: int
    resize: int
    imagesize: int
    train_val_split: float
    seed: int
    sampler: str | None
    fraction: float | None
    reduced_decoding: bool = False
    precision: str = "float32"
    format: int = FORMAT

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), _KINDS[field.type]
            if type(value) not in kinds:
                raise TypeError(f"{field.name} must be of type {field.type}, got {value!r:.80}")
        if not all(isinstance(layer, str) for layer in self.layers):
            raise TypeError(f"layers must be names, got {self.layers!r:.80}")
        if (self.sampler is None) != (self.fraction is None):
            raise ValueError(f"sampler {self.sampler} with fraction {self.fraction}: both or neither must be null")


_KINDS = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
    "tuple[str, ...]": (tuple,),
    "str | None": (str, type(None)),
    "float | None": (float, int, type(None)),
}


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model folder whose parameters were read and agree; `sampler` is None where the folder does not say."""

    folder: Path
    config: PatchCoreConfig
    sampler: SamplerConfig | None
    trained_on: TrainedOn


def read_model(folder: Path, loader: PatchCoreLoaderConfig | None = None, *, resize: int | None = None) -> StoredModel:
    """Read the parameters of a model folder, this toolkit's or the original's; nothing in it is executed.

    The original's folders lack two things. Their images were resized to `resize`, or else as the study paired it
    with the image size. And whatever number of neighbours they were stored with, the original scored with one, so
    one gives its numbers again, and is taken unless `loader.num_nn` says otherwise. What they were trained on is
    not known, so a `train_val_split` of 1 is taken, which allows no threshold.

    Args:
        folder: holds INDEX_FILE and PARAMS_FILE, or the original's pickle, of every member.
        loader: the search's settings.
        resize: shorter side of the images before cropping, used for the original's folders only.

    Raises:
        PatchCoreError: a file is missing, damaged, or does not fit the others.
    """
    loader = loader or PatchCoreLoaderConfig(paths=(folder,))
    name, prefixes = _stored_files(folder)
    paths = [folder / f"{prefix}{name}" for prefix in prefixes]
    for prefix, path in zip(prefixes, paths, strict=True):
        index = folder / f"{prefix}{INDEX_FILE}"
        if not index.is_file():
            raise PatchCoreError(f"{index}: no such file, expected the memory bank that belongs to {path.name}")
    members = [_read_params(path) if name == PARAMS_FILE else _original_params(path, resize) for path in paths]
    _check_alike(paths, members)
    first = members[0]
    try:
        return StoredModel(
            folder=folder,
            config=PatchCoreConfig(
                backbones=tuple(member.backbone for member in members),
                layers=tuple(member.layers for member in members),
                pretrain_embed_dimension=first.pretrain_embed_dimension,
                target_embed_dimension=first.target_embed_dimension,
                patchsize=first.patchsize,
                precision=first.precision,
                num_nn=loader.num_nn or (first.num_nn if name == PARAMS_FILE else _original_num_nn(folder, first)),
                faiss_on_gpu=loader.faiss_on_gpu,
                faiss_num_workers=loader.faiss_num_workers,
                weights=first.weights,
                weights_dir=loader.weights_dir,
            ),
            sampler=None if first.sampler is None else SamplerConfig(name=first.sampler, fraction=first.fraction),
            trained_on=TrainedOn(**{field.name: getattr(first, field.name) for field in fields(TrainedOn)}),
        )
    except (ValueError, TypeError) as error:
        raise PatchCoreError(f"{paths[0]}: {error}") from error


def _check_alike(paths: Sequence[Path], members: Sequence[MemberParams]) -> None:
    """The members of an ensemble differ in backbone and layers only."""
    for field in fields(MemberParams):
        if field.name in ("backbone", "layers"):
            continue
        values = [getattr(member, field.name) for member in members]
        for path, value in zip(paths, values, strict=True):
            if value != values[0]:
                raise PatchCoreError(
                    f"{path}: {field.name} is {value}, in {paths[0].name} it is {values[0]}: not of one ensemble"
                )


def write_params(path: Path, params: MemberParams) -> None:
    """Write a member's parameters as JSON."""
    path.write_text(json.dumps(asdict(params), indent=2) + "\n")


def _read_params(path: Path) -> MemberParams:
    """Read a member's stored parameters.

    Raises:
        PatchCoreError: the file is missing, no JSON, of another format, or has other fields than expected.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise PatchCoreError(
                f"{path}: format {stored['format']!r:.20}, this version reads format {FORMAT}; train and store the"
                " model again"
            )
        if isinstance(stored["layers"], list):
            stored["layers"] = tuple(stored["layers"])
        return MemberParams(**stored)
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the model: {error.strerror}") from error
    except KeyError as error:
        raise PatchCoreError(f"{path}: expected the parameters of a PatchCore model, but {error} is missing") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise PatchCoreError(f"{path}: expected the parameters of a PatchCore model: {error}") from error


def _original_params(path: Path, resize: int | None) -> MemberParams:
    """Bring the original's parameters to this toolkit's."""
    original = legacy.read_original_params(path)
    resize = resize or ORIGINAL_RESIZE.get(original.imagesize)
    if resize is None:
        raise PatchCoreError(
            f"{path}: images of {original.imagesize} pixels, but it does not say what they were cut from: give the"
            " shorter side of the resized image with --resize (dataset stage)"
        )
    return MemberParams(
        **asdict(original),
        weights="pretrained",
        resize=resize,
        train_val_split=1.0,
        seed=0,
        sampler=None,
        fraction=None,
    )


def _original_num_nn(folder: Path, params: MemberParams) -> int:
    if params.num_nn != 1:
        log.warning(
            "%s: stored with --anomaly_scorer_num_nn %d, but the original scored with 1 neighbour all the same, and so"
            " does this; give the option to patch_core_loader to use more",
            folder,
            params.num_nn,
        )
    return 1


def prefixes_of(count: int) -> list[str]:
    """File name prefixes of the members, as in the original: none for a single one."""
    return [""] if count == 1 else [f"Ensemble-{index + 1}-{count}_" for index in range(count)]


def _stored_files(folder: Path) -> tuple[str, list[str]]:
    """The name of the parameter files in a model folder, this toolkit's or the original's, and their prefixes."""
    for name in (PARAMS_FILE, legacy.PARAMS_FILE):
        if (folder / name).is_file():
            return name, prefixes_of(1)
        found = {path.name.removesuffix(name) for path in folder.glob(f"Ensemble-*_{name}")}
        if not found:
            continue
        count = min(found).rstrip("_").rpartition("-")[2]  # Ensemble-1-3_ -> 3
        expected = prefixes_of(int(count)) if count.isdecimal() and len(count) < 4 else []
        if set(expected) == found:
            return name, expected
        missing = ", ".join(f"{prefix}{name}" for prefix in expected if prefix not in found)
        there = ", ".join(f"{prefix}{name}" for prefix in sorted(found))
        raise PatchCoreError(f"incomplete ensemble in {folder}: found {there}, missing {missing or 'the others'}")
    if not folder.is_dir():
        raise PatchCoreError(f"no folder {folder}: expected a stored PatchCore model there")
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if inside:
        raise PatchCoreError(f"no PatchCore model in {folder} for this category: there is {', '.join(inside)}")
    raise PatchCoreError(
        f"no PatchCore model in {folder}: expected {INDEX_FILE} and {PARAMS_FILE}, or the original's"
        f" {legacy.PARAMS_FILE}"
    )
