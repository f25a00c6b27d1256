"""The files of a category's scores: a CSV with a line per test image, and how its pixels rank."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchcore.metrics import RankedPairs
from patchcore.results.columns import DEFECT_TYPE
from patchcore.results.tables import read_csv, read_number, write_csv
from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError, Predictions

if TYPE_CHECKING:
    from patchcore.calibration import Verdict

PATH = "path"
LABEL = "label"
RAW_SCORE = "raw_score"
NORMALISED_SCORE = "normalised_score"
DECISION_VALUE = "decision_value"


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of the N test images of a category, the higher the more anomalous.

    Attributes:
        paths: the images, relative to the data set's folder.
        labels: (N,) bool, True on defective images.
        scores: (N,) normalised over the test set, in the order that the metrics saw.
        values: (N,) what the threshold cuts; the raw scores where the run has no threshold.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]
    values: NDArray[np.float64]


def write_scores(
    path: Path,
    predictions: Predictions,
    normalised_scores: NDArray[np.float64],
    *,
    root: Path,
    verdict: Verdict | None,
) -> None:
    """Write the scores of every image of a category.

    Columns: path (relative to `root`), defect type, label, raw score (of an ensemble: the mean of its members'),
    normalised score (min-max over this test set; of an ensemble: the mean of its members' so normalised), then what
    held-out good images say (empty without any): the decision value that the threshold cuts, whether the image is
    rejected, that is above it, and its p-value. What the method adds comes last.
    """
    unknown = [""] * len(predictions.samples)
    columns: dict[str, Any] = {
        PATH: [sample.path.relative_to(root).as_posix() for sample in predictions.samples],
        DEFECT_TYPE: [sample.defect for sample in predictions.samples],
        LABEL: predictions.labels.astype(int),
        RAW_SCORE: predictions.raw_scores.mean(axis=0),
        NORMALISED_SCORE: normalised_scores,
        DECISION_VALUE: unknown if verdict is None else verdict.values,
        "rejected": unknown if verdict is None else verdict.rejected.astype(int),
        "p_value": unknown if verdict is None else verdict.p_values,
    }
    if len(predictions.raw_scores) > 1:
        columns |= {f"{RAW_SCORE}_{member}": scores for member, scores in enumerate(predictions.raw_scores)}
    if taken := columns.keys() & predictions.columns.keys():
        raise ValueError(f"the method gives its own column {taken.pop()}, a name that the scores have already")
    columns |= predictions.columns
    write_csv(path, list(columns), zip(*columns.values(), strict=True))


def read_scores(path: Path, images: int) -> ImageScores:
    """Read the scores of so many images.

    Raises:
        PatchCoreError: the file is missing or damaged; it is named.
    """
    rows = read_csv(path, [PATH, LABEL, RAW_SCORE, NORMALISED_SCORE, DECISION_VALUE])
    if len(rows) != images:
        raise PatchCoreError(f"{path}: damaged: {len(rows)} images, expected {images}")
    for row in rows:
        if row[LABEL] not in ("0", "1"):
            raise PatchCoreError(f"{path}: damaged: label is {row[LABEL]!r}, expected 0 or 1")
    value = DECISION_VALUE if all(row[DECISION_VALUE] for row in rows) else RAW_SCORE
    scores, values = (
        np.array([read_number(path, row, column) for row in rows], dtype=np.float64)
        for column in (NORMALISED_SCORE, value)
    )
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise PatchCoreError(f"{path}: damaged: a score is not finite")
    return ImageScores(
        paths=tuple(row[PATH] for row in rows),
        labels=np.array([row[LABEL] == "1" for row in rows], dtype=np.bool_),
        scores=scores,
        values=values,
    )


def write_pixel_pairs(path: Path, pairs: RankedPairs) -> None:
    """Write the pairs of pixels as float32 arrays `won`, `positives` and `negatives`."""
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in vars(pairs).items()})


def read_pixel_pairs(path: Path, labels: NDArray[np.bool_]) -> RankedPairs:
    """Read the pairs of pixels of N images; no more is unpacked than their number tells.

    Args:
        path: the file.
        labels: (N,) bool, True on defective images.

    Raises:
        PatchCoreError: the file is missing or damaged; it is named.
    """
    defective, images = int(labels.sum()), len(labels)
    shapes = {"won": (defective, images), "positives": (defective,), "negatives": (images,)}
    try:
        with zipfile.ZipFile(path) as archive:
            return RankedPairs(**{name: _read_array(archive, name, shape) for name, shape in shapes.items()})
    # RuntimeError: zipfile takes the file for encrypted, or packed in a way that it does not know.
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise PatchCoreError(f"{path}: damaged pixel pairs: {error}") from error


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    with archive.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        found, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if found != shape or dtype != np.float32:
            raise ValueError(f"{name} is {dtype} of shape {found}, expected float32 of shape {shape}")
        content = file.read(4 * math.prod(shape) + 1)  # past the last byte, where the checksum is compared
    return np.frombuffer(content, np.float32).reshape(shape, order="F" if is_fortran else "C").astype(np.float64)
