"""What a run leaves: its folder, the tables in it, and the names of the files."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from patchcore.metrics import RankedPairs
from patchcore.scoring import Verdict, min_max_normalise
from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError, Predictions, Sample

ROW_NAMES = "Row Names"
MEAN = "Mean"
METRICS = (  # column -> heading on the terminal; the first three are the study's
    ("instance_auroc", "image AUROC"),
    ("full_pixel_auroc", "pixel AUROC"),
    ("anomaly_pixel_auroc", "pixel AUROC defective"),
    ("image_ap", "image AP"),
    ("image_f1max", "image F1max"),
    ("pixel_ap", "pixel AP"),
    ("pixel_f1max", "pixel F1max"),
    ("aupro", "AUPRO"),
)
SHOWN = ("instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc", "aupro", "fit_seconds", "ms_per_image")


def create_run_folder(results_path: Path, project: str, group: str) -> Path:
    """Make RESULTS/PROJECT/GROUP, or GROUP_0, GROUP_1 ... where that exists; never one that was there."""
    parent = results_path / project
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = -1
        while True:
            folder = parent / (group if number < 0 else f"{group}_{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as error:
        raise PatchCoreError(f"cannot make the results folder {parent / group}: {error.strerror}") from error


def newest_run_folder(results_path: Path, project: str, group: str) -> Path | None:
    """The run folder of a group that `create_run_folder` made last; None where there is none yet."""
    folder, number = None, -1
    while (candidate := results_path / project / (group if number < 0 else f"{group}_{number}")).is_dir():
        folder, number = candidate, number + 1
    return folder


def finished_rows(folder: Path) -> dict[str, dict[str, float]]:
    """The rows of the categories that a run has finished so far, without their mean."""
    path = folder / "results.csv"
    return {name: row for name, row in read_results(path).items() if name != MEAN} if path.exists() else {}


def write_results(path: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Write `results.csv`: a row per category and the mean of each column last.

    The mean leaves out nan; a column without any number is nan.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = {
        **rows,
        MEAN: {column: _mean(row.get(column, math.nan) for row in rows.values()) for column in columns},
    }
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([ROW_NAMES, *columns])
        for name, row in table.items():
            writer.writerow([name, *(row.get(column, math.nan) for column in columns)])


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """Read a `results.csv`: row name -> column -> number, the mean among them.

    Raises:
        PatchCoreError: the file is missing or not such a table; it is named.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise PatchCoreError(f"{path}: cannot read the results: {error}") from error
    if not rows or rows[0][:1] != [ROW_NAMES]:
        raise PatchCoreError(f"{path}: expected a table that starts with {ROW_NAMES!r}")
    try:
        return {
            row[0]: {column: float(value) for column, value in zip(rows[0][1:], row[1:], strict=True)}
            for row in rows[1:]
        }
    except (ValueError, IndexError) as error:
        raise PatchCoreError(f"{path}: damaged results: {error}") from error


def _mean(values: Iterable[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def write_scores(
    path: Path,
    predictions: Predictions,
    root: Path,
    verdict: Verdict | None,
) -> None:
    """Write the scores of every image of a category.

    Columns: path (relative to `root`), defect type, label, raw score (of an ensemble: the mean of its members'),
    normalised score (min-max over this test set; of an ensemble: the mean of its members' so normalised), then what
    held-out good images say (empty without any): the decision value that the threshold cuts, whether the image is
    rejected, that is above it, and its p-value. What the method adds comes last.
    """
    raw = predictions.raw_scores.mean(axis=0)
    normalised = min_max_normalise(predictions.scores)
    extra = dict(predictions.columns)
    if len(predictions.raw_scores) > 1:
        extra = {f"raw_score_{i}": scores for i, scores in enumerate(predictions.raw_scores)} | extra
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "path",
                "defect_type",
                "label",
                "raw_score",
                "normalised_score",
                "decision_value",
                "rejected",
                "p_value",
                *extra,
            ]
        )
        for i, sample in enumerate(predictions.samples):
            row = [sample.path.relative_to(root).as_posix(), sample.defect, int(predictions.labels[i])]
            row += [raw[i], normalised[i], *([""] * 3 if verdict is None else verdict.of(i))]
            writer.writerow([*row, *(column[i] for column in extra.values())])


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table of one or more rows that share their columns."""
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, object]]:
    """Read a table of `write_rows`, every cell as text; no rows where there is no file."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise PatchCoreError(f"{path}: cannot read the table: {error}") from error


def write_pixel_pairs(path: Path, pairs: RankedPairs) -> None:
    """Write the pairs of pixels as arrays `won`, `positives` and `negatives`."""
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in vars(pairs).items()})


def read_pixel_pairs(path: Path) -> RankedPairs:
    """Read what `write_pixel_pairs` wrote; arrays of numbers only.

    Raises:
        PatchCoreError: the file is damaged or not such a file; it is named.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return RankedPairs(**{name: arrays[name].astype(np.float64) for name in RankedPairs.__dataclass_fields__})
    except (OSError, KeyError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise PatchCoreError(f"{path}: damaged pixel pairs: {error}") from error


def write_yaml(path: Path, content: Any) -> None:
    """Write plain dicts, lists, strings and numbers as YAML, in their order."""
    with atomic_write(path) as aside:
        aside.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=math.inf), encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings that `write_yaml` wrote.

    Raises:
        PatchCoreError: the file is missing or no such YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PatchCoreError(f"{path}: cannot read the settings: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise PatchCoreError(f"{path}: expected settings by name")
    return content


def overlay_name(sample: Sample, normalised_score: float) -> str:
    """File name of an overlay: category, split, defect, image, and its score normalised over the test set."""
    return f"{sample.category}_{sample.split}_{sample.defect}_{sample.path.stem}_score{normalised_score:.3f}.png"


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The closing table of a run for the terminal, a line per category and the mean."""
    headings = dict(METRICS) | {"fit_seconds": "training s", "ms_per_image": "ms/image"}
    columns = [column for column in SHOWN if any(column in row for row in rows.values())]
    named = {**rows}
    if len(rows) > 1:
        named[MEAN] = {column: _mean(row.get(column, math.nan) for row in rows.values()) for column in columns}
    lines = [["category", *(headings[column] for column in columns)]]
    for name, row in named.items():
        lines.append([name, *(_cell(column, row.get(column, math.nan)) for column in columns)])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Text columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(column: str, value: float) -> str:
    return f"{value:.1f}" if column in ("fit_seconds", "ms_per_image") else f"{value:.4f}"
