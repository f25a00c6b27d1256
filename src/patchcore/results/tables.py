"""The tables of a run: `results.csv`, `defect_types.csv`, and the closing table on the terminal.

CSV files are in UTF-8, appear whole or not at all, and a spreadsheet cannot mistake their text for formulas. What reads
them raises a PatchCoreError that names the file if it is missing or damaged, with the line or the column.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from patchcore.calibration import clopper_pearson
from patchcore.results import columns
from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError

Rows = Mapping[str, Mapping[str, float]]  # name -> column -> number

DEFECT_TYPE_NUMBERS = (columns.IMAGES, columns.IMAGE_AUROC, columns.DEFECTIVE_PIXEL_AUROC, columns.DEFECTS_CAUGHT)

# What a spreadsheet evaluates if a cell begins so; the quote keeps it text and is itself kept by a second one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")

_HEADINGS = {  # of the closing table
    **{
        column: columns.METRICS[column]
        for column in (columns.IMAGE_AUROC, columns.PIXEL_AUROC, columns.DEFECTIVE_PIXEL_AUROC, "aupro")
    },
    columns.FIT_SECONDS: "training s",
    columns.MS_PER_IMAGE: "ms/image",
}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a header and rows of text and numbers.

    Text that a spreadsheet would evaluate gets a quote in front, and bytes of file names that are no UTF-8 are escaped.
    """
    with (
        atomic_write(path) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(map(_safe, rows))


def csv_line(row: Sequence[object]) -> bytes:
    """A row as `write_csv` writes it."""
    line = io.StringIO(newline="")
    csv.writer(line).writerow(_safe(row))
    return line.getvalue().encode("utf-8", errors="backslashreplace")


def as_read(text: str) -> str:
    """Text as it is after it was written and read."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _safe(row: Sequence[object]) -> list[object]:
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row]


def read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a table that has the columns `needed`, among others."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header, rows = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PatchCoreError(f"{path}: damaged: {error}") from error
    if lacking := [column for column in needed if column not in header]:
        raise PatchCoreError(f"{path}: damaged: no column {', '.join(lacking)}")
    if len(set(header)) < len(header):
        raise PatchCoreError(f"{path}: damaged: two columns of one name")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise PatchCoreError(f"{path}: damaged: line {number} does not have {len(header)} columns")
    return [{column: cell.removeprefix("'") for column, cell in row.items()} for row in rows]


def read_number(path: Path, row: Mapping[str, str], column: str) -> float:
    """The number in a cell, in `SHARES` from 0 to 1 or nan.

    It is an int where it is written as one, so that it is written the same again.
    """
    text = row[column]
    try:
        number = float(text)
    except ValueError:
        raise PatchCoreError(f"{path}: damaged: {column} is {text!r:.80}, expected a number") from None
    if column in columns.SHARES and not (math.isnan(number) or 0 <= number <= 1):
        raise PatchCoreError(f"{path}: damaged: {column} is {number}, expected 0 to 1")
    return int(number) if text.isdecimal() and number < 2**53 else number


def write_results(path: Path, rows: Rows) -> None:
    """Write a row per category, and the mean of each column last."""
    table = {**rows, columns.MEAN: mean_row(rows)}
    header = list(table[columns.MEAN])
    cells = ([name, *(row.get(column, math.nan) for column in header)] for name, row in table.items())
    write_csv(path, [columns.ROW_NAMES, *header], cells)


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """Read row name -> column -> number, the mean among them."""
    return {
        row.pop(columns.ROW_NAMES): {column: read_number(path, row, column) for column in row}
        for row in read_csv(path, [columns.ROW_NAMES])
    }


def mean_row(rows: Rows) -> dict[str, float]:
    """The mean of every column, nan and what a row lacks left out; nan of a column without any number."""
    means = {}
    for column in dict.fromkeys(column for row in rows.values() for column in row):
        numbers = [row[column] for row in rows.values() if not math.isnan(row.get(column, math.nan))]
        means[column] = sum(numbers) / len(numbers) if numbers else math.nan
    return means


def write_defect_types(path: Path, types: Mapping[str, Rows]) -> None:
    """Write row name -> kind of defect -> `DEFECT_TYPE_NUMBERS`."""
    cells = (
        [row, defect, *(found[column] for column in DEFECT_TYPE_NUMBERS)]
        for row, defects in types.items()
        for defect, found in defects.items()
    )
    write_csv(path, [columns.ROW_NAMES, columns.DEFECT_TYPE, *DEFECT_TYPE_NUMBERS], cells)


def read_defect_types(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Read what `write_defect_types` wrote."""
    types: dict[str, dict[str, dict[str, float]]] = {}
    for row in read_csv(path, [columns.ROW_NAMES, columns.DEFECT_TYPE, *DEFECT_TYPE_NUMBERS]):
        found = {column: read_number(path, row, column) for column in DEFECT_TYPE_NUMBERS}
        types.setdefault(row[columns.ROW_NAMES], {})[row[columns.DEFECT_TYPE]] = found
    return types


def format_results(rows: Rows) -> str:
    """The closing table of a run for the terminal, a line per category and the mean.

    A category without test images has dashes, and a line below the table that says so.
    """
    mean = mean_row(rows)
    decimals = {column: 4 if column in columns.METRICS else 1 for column in _HEADINGS if column in mean}
    lines = [["category", *(_HEADINGS[column] for column in decimals)]]
    for name, row in ({**rows, columns.MEAN: mean} if len(rows) > 1 else rows).items():
        lines.append([name, *(_cell(row, column, places) for column, places in decimals.items())])
    unmeasured = [f"{name}: {columns.NOTHING_TO_MEASURE}" for name, row in rows.items() if not _was_tested(row)]
    return "\n".join([align_columns(lines), *unmeasured])


def format_verdicts(rows: Rows) -> str:
    """What the thresholds of a run catch and reject, a line per category that has one; empty if none has."""
    lines = [["false rejects stated", "defects caught", "good parts rejected"]]
    for name, row in rows.items():
        rate = row.get(columns.STATED_RATE, math.nan)
        if not math.isnan(rate):
            defective = round(row[columns.DEFECTIVE_IMAGES])
            good = round(row[columns.TEST_IMAGES]) - defective
            caught = format_counted(row[columns.DEFECTS_CAUGHT], defective)
            lines.append([f"{name}: {rate:.2g}", caught, format_counted(row[columns.FALSE_REJECTS], good)])
    return align_columns(lines) if len(lines) > 1 else ""


def format_counted(share: float, of: int) -> str:
    """A share of so many images, as "60 of 71, 85 % [74 to 92 %]" with its Clopper-Pearson interval of 95 %."""
    if not of:
        return "-"
    count = round(share * of)
    low, high = clopper_pearson(count, of)
    return f"{count} of {of}, {share:.0%} [{low:.0%} to {high:.0%}]".replace("%", " %")


def _cell(row: Mapping[str, float], column: str, places: int) -> str:
    number = row.get(column, math.nan)
    return "-" if math.isnan(number) and not _was_tested(row) else f"{number:.{places}f}"


def _was_tested(row: Mapping[str, float]) -> bool:
    return row.get(columns.TEST_IMAGES) != 0


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Text columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )
