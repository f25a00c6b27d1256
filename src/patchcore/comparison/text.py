"""The report as Markdown, and its main tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from patchcore.comparison.recommendations import NO_WINNER, Recommendation
from patchcore.comparison.tables import MARKS, Cell, Table
from patchcore.results import aligned


def plain(cell: Cell) -> str:
    """A cell on one line of text."""
    mark = f" {MARKS[cell.mark]}" if cell.mark else ""
    detail = f" ({cell.detail})" if cell.detail else ""
    return f"{cell.text}{mark}{detail}"


def numbered(names: Sequence[str]) -> str:
    """What the numbers over the columns of `terminal_table` stand for."""
    return "\n".join(f"  [{number}] {name}" for number, name in enumerate(names, start=1))


def terminal_table(table: Table) -> str:
    """A table with numbered columns, since the names of methods are longer than their numbers."""
    lines = [[table.title, *(f"[{number}]" for number in range(1, len(table.header)))]]
    lines += [[plain(cell) for cell in row] for row in table.rows]
    return aligned(lines)


def markdown_table(table: Table) -> str:
    """A table with its title and notes."""
    lines = [f"### {table.title}", ""]
    if not table.rows:
        return "\n".join([*lines, "None."])
    lines += [_markdown_row(table.header), _markdown_row(["---"] * len(table.header))]
    lines += [_markdown_row([_bold(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def _bold(cell: Cell) -> str:
    return f"**{plain(cell)}**" if cell.mark == "best" else plain(cell)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def recommendation_lines(found: Sequence[Recommendation]) -> list[str]:
    """A line per use."""
    return [f"{one.heading}: {one.winner or NO_WINNER} [{'; '.join(one.figures)}]" for one in found]
