"""A table: records in full precision for its CSV file, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from patchcore.comparison.statistics import DECIMALS

MARKS = {"best": "★", "tie": "=", "unclear": "≈"}
TEST_SET, METHOD, SOURCES = "test_set", "method", "sources"  # fields of many tables

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        value: what it is sorted by; None for the text itself.
        mark: one of `MARKS`.
        detail: a second, smaller line.
        source: the files that the number comes from.
    """

    text: str
    value: float | None = None
    mark: str = ""
    detail: str = ""
    source: str = ""

    @property
    def sort_key(self) -> str:
        """The value as text, empty where it is undefined."""
        return "" if self.value is None or math.isnan(self.value) else str(self.value)


@dataclass(frozen=True)
class Column:
    """A column to read: its heading, and the cell that it shows of a record.

    A `spread` one stands for a column per value of the field `heading`, each with a cell of the record that has it.
    """

    heading: str
    cell: Callable[[Record], Cell]
    spread: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to read, and its records for `tables/NAME.csv`."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    records: list[Record]
    notes: list[str]


def make_table(
    name: str,
    title: str,
    records: list[Record],
    shown: Sequence[Column],
    *,
    visible: list[Record] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Lay out records.

    Args:
        name: the name of the CSV file.
        title: the heading.
        records: what the CSV file holds, its columns being their fields.
        shown: what a reader sees of them. With a `spread`, records that show the same text in the columns before it
            make one row; without, each makes one.
        visible: the records that the reader sees; None for all.
        notes: sentences below the table.
    """
    visible = records if visible is None else visible
    place = next((i for i, column in enumerate(shown) if column.spread), None)
    groups: dict[object, list[Record]] = {}
    for number, record in enumerate(visible):
        key = number if place is None else tuple(column.cell(record).text for column in shown[:place])
        groups.setdefault(key, []).append(record)
    header: list[str] = []
    rows: list[list[Cell]] = [[] for _ in groups]
    for column in shown:
        if column.spread:
            values = list(dict.fromkeys(record[column.heading] for record in visible))
            header += values
            for row, group in zip(rows, groups.values(), strict=True):
                cells = {record[column.heading]: column.cell(record) for record in group}
                row += [cells.get(value, Cell("–", math.nan)) for value in values]
        else:
            header.append(column.heading)
            for row, group in zip(rows, groups.values(), strict=True):
                row.append(column.cell(group[0]))
    return Table(name=name, title=title, header=header, rows=rows, records=records, notes=list(notes))


def text(heading: str, field: str, write: Callable[[Any], str] = str) -> Column:
    """A column of text."""
    return Column(heading, lambda record: Cell(write(record[field])))


def number(heading: str, field: str, write: Callable[[Any], str]) -> Column:
    """A column of numbers, with their sources."""
    return Column(heading, lambda record: Cell(write(record[field]), record[field], source=record.get(SOURCES, "")))


def format_share(value: float) -> str:
    """A number in [0, 1] as the study prints it."""
    return "–" if math.isnan(value) else f"{value:.{DECIMALS}f}"


def format_spread(value: float, std: float) -> str:
    """A number in [0, 1], with its standard deviation if there is one."""
    return format_share(value) if math.isnan(std) else f"{format_share(value)} ± {format_share(std)}"


def format_difference(value: float) -> str:
    return f"{value:+.{DECIMALS}f}"


def format_interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "[undefined]"
    return f"[{format_difference(low)}, {format_difference(high)}]"


def format_percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def format_amount(value: float) -> str:
    """A cost or a score in three significant digits, thousands in full."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
