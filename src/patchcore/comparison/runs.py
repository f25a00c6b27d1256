"""Finding the runs below a folder and reading what they left; what cannot be used is named with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from patchcore.metrics import RankedPairs
from patchcore.results.columns import MEAN, METRICS
from patchcore.results.config_file import read_config, rows_of
from patchcore.results.run_folder import RunFolder, find_run_folders
from patchcore.results.scores import ImageScores, read_pixel_pairs, read_scores
from patchcore.results.tables import read_defect_types, read_results
from patchcore.types import PatchCoreError

Read = TypeVar("Read")
Origin = tuple[object, ...]
Problems = dict[str, str]  # what is not in the tables, a run or one of its files -> why


@dataclass(frozen=True)
class Row:
    """A category on one set of test images: its name in `results.csv` and what the images are told by."""

    name: str
    test_set: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        name: its folder below the one that was searched.
        config: `config.yaml`.
        rows: row name of a category -> column of `results.csv` -> number.
        defect_types: row name -> defect type -> column of `defect_types.csv` -> number.
        scores: row name -> scores of the test images, where the run kept them.
        pixel_pairs: row name -> ranked pairs of pixels, where the run kept them.
    """

    folder: RunFolder
    name: str
    config: dict[str, Any]
    rows: dict[str, dict[str, float]]
    defect_types: dict[str, dict[str, dict[str, float]]]
    scores: dict[str, ImageScores]
    pixel_pairs: dict[str, RankedPairs]

    @property
    def models(self) -> list[dict[str, Any]]:
        """The stored models that it evaluated; none if it trained its own."""
        return list(self.config.get("models", {}).values())

    @property
    def origin(self) -> Origin:
        """What makes it one of its own among the runs of its configuration: its seed, or the models it evaluated."""
        models = tuple((model["run"] or model["folder"], str(model.get("category"))) for model in self.models)
        return models or (self.config["run"]["seed"],)

    @property
    def hardware(self) -> str:
        """What times depend on besides the method."""
        environment = self.config["environment"]
        return f"{environment['processor']}, threads: {environment['threads']}, GPUs: {environment['gpus']}"

    @property
    def tested(self) -> list[Row]:
        """Its rows with their test images."""
        return [Row(name, self.config["test_set"][name]["fingerprint"]) for name in self.rows]

    def name_of(self, path: Path) -> str:
        """A file of the run as the report names it."""
        return f"{self.name}/{path.relative_to(self.folder.path).as_posix()}"

    def has_overlays(self, row: str) -> bool:
        return (self.folder.overlays / row).is_dir()


def find_runs(root: Path) -> tuple[list[Run], Problems]:
    """Read every run below a folder, in the order of their names, numbers by value.

    Raises:
        PatchCoreError: there is no such folder.
    """
    if not root.is_dir():
        raise PatchCoreError(f"no folder {root}: expected results there")
    runs: list[Run] = []
    problems: Problems = {}
    for name, folder in find_run_folders(root):
        try:
            runs.append(_read_run(folder, name, problems))
        except PatchCoreError as error:
            problems[name] = str(error)
    _drop_scores_of_other_images(runs, problems)
    return runs, problems


def _drop_scores_of_other_images(runs: list[Run], problems: Problems) -> None:
    """Scores are compared image by image, so those that list other images than the first run with this test set go."""
    first: dict[Row, ImageScores] = {}
    for run in runs:
        for row in run.tested:
            scores = run.scores.get(row.name)
            if scores is None:
                continue
            expected = first.setdefault(row, scores)
            if scores.paths != expected.paths or not np.array_equal(scores.labels, expected.labels):
                reason = "damaged: lists other images or labels than the other runs with this test set"
                problems[run.name_of(run.folder.scores(row.name))] = reason
                del run.scores[row.name]


def _read_run(folder: RunFolder, name: str, problems: Problems) -> Run:
    """Read one run; damaged files that the tables can do without are added to `problems`.

    Raises:
        PatchCoreError: the run is unfinished, of no single configuration, without test images, or a file that it needs
            is damaged.
    """
    if not folder.config.exists():
        raise PatchCoreError(f"unfinished: no {folder.config.name}")
    config = read_config(folder.config)
    if not config["method"]["short_name"]:
        raise PatchCoreError("an evaluation of stored models of different configurations")
    rows = _read_rows(folder.results, rows_of(config))
    untested = [row for row in rows if not config["test_set"][row]["images"]]
    if len(untested) == len(rows):
        raise PatchCoreError("no test images: nothing to compare")
    for row in untested:
        del rows[row]
        problems[f"{name}, {row}"] = "no test images: nothing to compare"
    run = Run(folder=folder, name=name, config=config, rows=rows, defect_types={}, scores={}, pixel_pairs={})

    def read_if_there(read: Callable[..., Read], path: Path, *args: object) -> Read | None:
        try:
            return read(path, *args) if path.exists() else None
        except PatchCoreError as error:
            problems[run.name_of(path)] = str(error)
            return None

    run.defect_types.update(read_if_there(read_defect_types, folder.defect_types) or {})
    for row in rows:
        if scores := read_if_there(read_scores, folder.scores(row), config["test_set"][row]["images"]):
            run.scores[row] = scores
            if pairs := read_if_there(read_pixel_pairs, folder.pixel_pairs(row), scores.labels):
                run.pixel_pairs[row] = pairs
    return run


def _read_rows(path: Path, expected: list[str]) -> dict[str, dict[str, float]]:
    """The rows of the categories in `results.csv`, all there and with every metric.

    Raises:
        PatchCoreError: they are not.
    """
    if not path.exists():
        raise PatchCoreError(f"unfinished: no {path.name}, missing {', '.join(expected)}")
    rows = read_results(path)
    if MEAN not in rows:
        raise PatchCoreError(f"{path}: damaged: no row {MEAN}")
    if missing := [row for row in expected if row not in rows]:
        raise PatchCoreError(f"unfinished: missing {', '.join(missing)}")
    if lacking := [metric for metric in METRICS if metric not in rows[MEAN]]:
        raise PatchCoreError(f"{path}: damaged: no column {', '.join(lacking)}")
    return {row: rows[row] for row in expected}
