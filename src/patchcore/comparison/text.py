"""The report as Markdown, and its main part for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from patchcore.comparison.recommendations import NO_WINNER, Recommendation
from patchcore.comparison.report import Report
from patchcore.comparison.tables import MARKS, Cell, Table
from patchcore.results.run_folder import aligned


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


def terminal(report: Report) -> str:
    """The study's tables, the costs, the recommendations, and what is not in the tables."""
    parts = []
    for chapter in report.chapters:
        names = [method.name for method in chapter.study.methods]
        parts.append(f"Test set: {chapter.study.title}\n{numbered(names)}")
        parts += [terminal_table(table) for table in chapter.main]
        parts += ["\n".join(recommendation_lines(chapter.recommended))] if chapter.recommended else []
    if report.problems:
        parts.append("\n".join(["Not in the tables:", *(f"  {one.name}: {one.reason}" for one in report.problems)]))
    return "\n\n".join(parts)


def markdown(report: Report) -> str:
    """The report without its pictures."""
    parts = ["# Comparison of methods", f"Runs below `{report.root}`. Full precision: `tables/*.csv`."]
    for chapter in report.chapters:
        parts.append(f"## Test set: {chapter.study.title}")
        if chapter.recommended:
            lines = recommendation_lines(chapter.recommended)
            parts += ["### Recommendations", "\n".join(f"- {line}" for line in lines)]
        parts += [markdown_table(table) for table in chapter.tables]
    parts += ["## Sources", markdown_table(report.runs)]
    problems = [f"- `{one.name}`: {one.reason}" for one in report.problems]
    parts += ["### Not in the tables", "\n".join(problems) or "Nothing: every run found is in the tables."]
    return "\n\n".join(parts) + "\n"
