"""The findings as aligned text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import Floors
from benchmarks.measure import Comparison, Report, Table

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def seconds(value: float) -> str:
    """A time in the unit that suits it, three digits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{_digits(value * factor)} {unit}"
    return f"{_digits(value * 1e6)} µs"


def mib(value: float) -> str:
    """MiB, three digits; a dash where it is not known."""
    return "-" if math.isnan(value) else f"{_digits(value)} MiB" if value >= 0.1 else "< 0.1 MiB"


def times(value: float) -> str:
    """A ratio."""
    return "-" if not math.isfinite(value) else f"{_digits(value)}x"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def comparison_table(rows: Sequence[Comparison]) -> Table:
    """Times, memory and differences."""
    header = ("stage", "input", "reference", "ours", "ratio", "reference peak", "our peak", "ratio", "difference")
    return Table(
        title="Stages against their references",
        header=header,
        rows=[
            (
                row.stage,
                row.case,
                seconds(row.reference_seconds),
                seconds(row.our_seconds),
                times(row.ratio),
                mib(row.reference_peak),
                mib(row.our_peak),
                times(row.memory_ratio) if min(row.our_peak, row.reference_peak) >= 1 else "-",
                row.difference,
            )
            for row in rows
        ],
    )


def roofline_table(rows: Sequence[Comparison], floors: Floors) -> Table:
    """Operations and bytes of our way, the least time for them on this machine, and the share of it reached."""
    measured = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in floors.operations.items())
    body = []
    for row in rows:
        if row.work is None:
            continue
        least = floors.seconds(row.work)
        body.append(
            (
                row.stage,
                row.case.partition(";")[0],
                f"{_digits(row.work.operations / 1e9)}",
                f"{_digits(row.work.nbytes / 2**20)}",
                floors.limit(row.work),
                seconds(least),
                seconds(row.our_seconds),
                share(least / row.our_seconds),
            )
        )
    return Table(
        title=f"Roofline (measured here: {measured}, {floors.nbytes / 1e9:.1f} GB/s)",
        header=("stage", "input", "10^9 operations", "MiB moved", "limited by", "floor", "ours", "share"),
        rows=body,
    )


def target_table(report: Report) -> Table:
    """What was asked for, and whether it holds."""
    verdict = {True: "yes", False: "NO", None: "-"}
    return Table(
        title="Targets",
        header=("target", "asked for", "measured", "holds"),
        rows=[(target.name, target.required, target.measured, verdict[target.holds]) for target in report.targets],
    )


def tables(report: Report, floors: Floors, machine: Sequence[tuple[str, str]], source: str) -> list[Table]:
    """All tables of a report, in reading order; empty ones are left out."""
    about = [*machine, ("images", source)]
    found = [
        Table(title="Machine", header=("", ""), rows=about),
        target_table(report),
        comparison_table(report.comparisons),
        roofline_table(report.comparisons, floors),
        *report.tables,
    ]
    return [table for table in found if table.rows]


def share(value: float) -> str:
    """A share in per cent, in two digits or as many as it has before the point."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def as_text(table: Table) -> str:
    """Aligned columns under a title."""
    widths = [max(len(row[column]) for row in (table.header, *table.rows)) for column in range(len(table.header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (table.header, *table.rows)
        if any(row)
    ]
    return "\n".join([table.title, "=" * len(table.title), *lines, ""])


def as_markdown(table: Table) -> str:
    """A Markdown table under a heading of the third level."""
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join([f"### {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def write(path: Path, content: str) -> None:
    """Write Markdown to a file: between its two marks if it has them, as the whole file if it is new."""
    head, tail = around(path)
    path.write_text(f"{head}{BEGIN}\n\n{content.strip()}\n\n{END}{tail}", encoding="utf-8")


def around(path: Path) -> tuple[str, str]:
    """What stands before and after the marks of a file; nothing and a line break where there is no file yet.

    Raises:
        ValueError: the file has no marks.
    """
    if not path.exists():
        return "", "\n"
    old = path.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise ValueError(f"{path} has no marks {BEGIN} and {END} to write between; name another file or add them")
    return old.partition(BEGIN)[0], old.partition(END)[2]
