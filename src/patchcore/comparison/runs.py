"""Finding the runs below a folder and reading what they left; what cannot be used is named with its reason."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from patchcore.comparison.methods import METHODS
from patchcore.metrics import RankedPairs
from patchcore.results import run_folder
from patchcore.types import PatchCoreError

Read = TypeVar("Read")

# What is read of `config.yaml`, besides the method, and of which type it is.
_NEEDED: dict[str, dict[str, Any]] = {
    "run": {"seed": int, "log_group": str},
    "dataset": {
        "name": str,
        "path": str,
        "categories": list,
        "resize": int,
        "imagesize": int,
        "train_val_split": (int, float),
        "augment": bool,
    },
    "environment": {"processor": str, "threads": str, "gpus": str},
}
# The others that are read, all with settings by name.
_SECTIONS = ("test_set", "sampler", "models", *(stage + kind for stage in METHODS for kind in ("", "_loader")))
RUN_FILES = ("config.yaml", "results.csv", "run.log")  # any of them marks the folder of a run


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of the test images of a category, the higher the more anomalous.

    Attributes:
        paths: the N images, relative to the data set's folder.
        defects: folder of each image ("good", "scratches" ...).
        labels: (N,) bool, True on defective images.
        scores: (N,) normalised over the test set, in the order that the metrics saw.
        values: (N,) what the threshold cuts; the raw scores where the run has no threshold.
    """

    paths: tuple[str, ...]
    defects: tuple[str, ...]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        name: its folder below the one that was searched.
        config: `config.yaml`.
        rows: row name of a category -> column of `results.csv` -> number.
        test_sets: row name -> what its test images are told by.
        defect_types: row name -> defect type -> column of `defect_types.csv` -> number.
        scores: row name -> scores of the test images, where the run kept them.
        pixel_pairs: row name -> ranked pairs of pixels, where the run kept them.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    rows: dict[str, dict[str, float]]
    test_sets: dict[str, str]
    defect_types: dict[str, dict[str, dict[str, float]]]
    scores: dict[str, ImageScores]
    pixel_pairs: dict[str, RankedPairs]

    @property
    def seed(self) -> int:
        return self.config["run"]["seed"]

    @property
    def hardware(self) -> str:
        """What times depend on besides the method."""
        environment = self.config["environment"]
        return f"{environment['processor']}, threads: {environment['threads']}, GPUs: {environment['gpus']}"

    @cached_property
    def pictures(self) -> dict[tuple[str, str], Path]:
        """(row name, file name of an overlay up to its score) -> the overlay, where the run kept them."""
        found = (self.folder / "segmentation_images").glob("*/*_score*.png")
        return {(path.parent.name, path.stem.rpartition("_score")[0]): path for path in found}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not in the tables: a run or one of its files, and why."""

    name: str
    reason: str


def find_runs(root: Path) -> tuple[list[Run], list[Problem]]:
    """Read every run below a folder, in the order of their names, numbers by value.

    Raises:
        PatchCoreError: there is no such folder.
    """
    if not root.is_dir():
        raise PatchCoreError(f"no folder {root}: expected results there")
    folders = {path.parent for name in RUN_FILES for path in root.rglob(name)}
    runs: list[Run] = []
    problems: list[Problem] = []
    for folder in sorted(folders, key=lambda folder: _natural(folder.relative_to(root).as_posix())):
        name = folder.relative_to(root).as_posix()
        name = folder.resolve().name if name == "." else name
        try:
            runs.append(_read_run(folder, name, problems))
        except PatchCoreError as error:
            problems.append(Problem(name=name, reason=str(error)))
    _drop_scores_of_other_images(runs, problems)
    return runs, problems


def _drop_scores_of_other_images(runs: list[Run], problems: list[Problem]) -> None:
    """Scores are compared image by image, so those that list other images than the first run with this test set go."""
    first: dict[tuple[str, str], ImageScores] = {}
    for run in runs:
        for row, scores in list(run.scores.items()):
            expected = first.setdefault((row, run.test_sets[row]), scores)
            if scores.paths != expected.paths or not np.array_equal(scores.labels, expected.labels):
                reason = "damaged: lists other images or labels than the other runs with this test set"
                problems.append(Problem(name=f"{run.name}/anomaly_scores/{row}.csv", reason=reason))
                del run.scores[row]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key by which `run_2` comes before `run_10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_run(folder: Path, name: str, problems: list[Problem]) -> Run:
    """Read one run; damaged files that the tables can do without are added to `problems`.

    Raises:
        PatchCoreError: the run is unfinished, or a file that it cannot do without is damaged.
    """
    config = _read_config(folder / "config.yaml")
    dataset = config["dataset"]
    expected = [f"{dataset['name']}_{category}" for category in dataset["categories"]]
    test_set = config.get("test_set", {})
    if not all(_is_test_set(test_set.get(row)) for row in expected):
        raise PatchCoreError("config.yaml does not say what the test images were; was it made by an earlier version?")
    if not (folder / "results.csv").exists():
        raise PatchCoreError(f"unfinished: no results.csv, missing {', '.join(expected)}")
    rows = _read_results(folder / "results.csv")
    missing = [row for row in expected if row not in rows]
    if missing:
        raise PatchCoreError(f"unfinished: missing {', '.join(missing)}")

    def optional(reader: Callable[..., Read], path: Path, *args: object) -> Read | None:
        try:
            return reader(path, *args) if path.exists() else None
        except PatchCoreError as error:
            problems.append(Problem(name=f"{name}/{path.relative_to(folder).as_posix()}", reason=str(error)))
            return None

    sizes = {row: test_set[row]["images"] for row in expected}
    files = folder / "anomaly_scores"
    scores = {row: optional(_read_scores, files / f"{row}.csv", sizes[row]) for row in expected}
    pairs = {
        row: optional(_read_pixel_pairs, files / f"{row}_pixels.npz", found.labels)
        for row, found in scores.items()
        if found is not None
    }
    return Run(
        folder=folder,
        name=name,
        config=config,
        rows={row: rows[row] for row in expected},
        test_sets={row: test_set[row]["fingerprint"] for row in expected},
        defect_types=optional(_read_defect_types, folder / "defect_types.csv") or {},
        scores={row: found for row, found in scores.items() if found is not None},
        pixel_pairs={row: found for row, found in pairs.items() if found is not None},
    )


def _is_test_set(found: object) -> bool:
    """Whether this says how many images a test set has, and what they are told by."""
    if not isinstance(found, dict):
        return False
    return isinstance(found.get("images"), int) and isinstance(found.get("fingerprint"), str)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        # Settings are plain JSON; YAML has more, such as dates and lists that hold themselves.
        config = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise PatchCoreError("unfinished: no config.yaml") from None
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise PatchCoreError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    for section, names in _NEEDED.items():
        found = config.get(section) if isinstance(config, dict) else None
        lacking = [name for name in names if not isinstance(found, dict) or name not in found]
        if lacking:
            raise PatchCoreError(f"{path}: {section} has no {', '.join(lacking)}; was it made by an earlier version?")
        for name, kind in names.items():
            if not isinstance(found[name], kind) or (kind is int and isinstance(found[name], bool)):
                raise PatchCoreError(f"{path}: damaged: {section} {name} is {found[name]!r:.80}")
    categories = config["dataset"]["categories"]
    if not (categories and all(isinstance(category, str) for category in categories)):
        raise PatchCoreError(f"{path}: damaged: dataset categories are {categories!r:.80}")
    for section in _SECTIONS:
        if not isinstance(config.get(section, {}), dict):
            raise PatchCoreError(f"{path}: damaged: {section} is {config[section]!r:.80}, expected settings by name")
    for category, model in config.get("models", {}).items():
        found = model if isinstance(model, dict) else {}
        if not (isinstance(found.get("config"), dict) and isinstance(found.get("folder"), str)):
            raise PatchCoreError(f"{path}: damaged: the model of {category} is {model!r:.80}")
    return config


def _read_results(path: Path) -> dict[str, dict[str, float]]:
    rows = run_folder.read_results(path)
    if run_folder.MEAN not in rows:
        raise PatchCoreError(f"{path}: damaged results: no row {run_folder.MEAN}")
    for row, columns in rows.items():
        for metric, _ in run_folder.METRICS:
            if metric not in columns:
                raise PatchCoreError(f"{path}: damaged results: no column {metric}")
            _check_share(path, f"{row}, {metric}", columns[metric])
    return rows


def _check_share(path: Path, where: str, value: float) -> None:
    if not (math.isnan(value) or 0 <= value <= 1):
        raise PatchCoreError(f"{path}: damaged: {where} is {value}, expected 0 to 1")


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file that has these columns, all rows of one length."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PatchCoreError(f"{path}: damaged: {error}") from error
    lacking = [column for column in columns if column not in (reader.fieldnames or ())]
    if lacking:
        raise PatchCoreError(f"{path}: damaged: no column {', '.join(lacking)}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise PatchCoreError(f"{path}: damaged: line {number} does not have {len(reader.fieldnames or ())} columns")
    return rows


def _number(path: Path, row: Mapping[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        raise PatchCoreError(f"{path}: damaged: {column} is {row[column]!r}, expected a number") from None


def _read_defect_types(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    names = ("images", "instance_auroc", "anomaly_pixel_auroc", "defects_caught")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in _read_table(path, (run_folder.ROW_NAMES, "defect_type", *names)):
        numbers = {name: _number(path, row, name) for name in names}
        for name in names[1:]:
            _check_share(path, f"{row['defect_type']}, {name}", numbers[name])
        found.setdefault(row[run_folder.ROW_NAMES], {})[row["defect_type"]] = numbers
    return found


def _read_scores(path: Path, images: int) -> ImageScores:
    columns = ("path", "defect_type", "label", "raw_score", "normalised_score", "decision_value")
    rows = _read_table(path, columns)
    if len(rows) != images:
        raise PatchCoreError(f"{path}: damaged: {len(rows)} images, expected {images}")
    for row in rows:
        if row["label"] not in ("0", "1"):
            raise PatchCoreError(f"{path}: damaged: label is {row['label']!r}, expected 0 or 1")
    value = "decision_value" if all(row["decision_value"] for row in rows) else "raw_score"
    scores, values = (np.array([_number(path, row, column) for row in rows]) for column in ("normalised_score", value))
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise PatchCoreError(f"{path}: damaged: a score is not finite")
    return ImageScores(
        paths=tuple(row["path"] for row in rows),
        defects=tuple(row["defect_type"] for row in rows),
        labels=np.array([row["label"] == "1" for row in rows]),
        scores=scores,
        values=values,
    )


def _read_pixel_pairs(path: Path, labels: NDArray[np.bool_]) -> RankedPairs:
    pairs = run_folder.read_pixel_pairs(path)
    defective, images = int(labels.sum()), len(labels)
    shapes = pairs.won.shape, pairs.positives.shape, pairs.negatives.shape
    if shapes != ((defective, images), (defective,), (images,)):
        raise PatchCoreError(f"{path}: damaged: pairs of {pairs.won.shape} images, expected {(defective, images)}")
    return pairs
