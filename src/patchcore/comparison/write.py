"""A report as files: `report.md`, `report.html` and `tables/*.csv`; and its main part for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from patchcore.comparison.page import render_html
from patchcore.comparison.recommendations import NO_WINNER, Recommendation
from patchcore.comparison.report import Report
from patchcore.comparison.table import MARKS, TEST_SET, Cell, Record, Table
from patchcore.results.tables import align_columns, write_csv
from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError


def write_report(report: Report, output: Path) -> None:
    """Write `report.md`, `report.html` and `tables/*.csv` into a folder, in place of an earlier report's.

    Raises:
        PatchCoreError: the folder cannot be written.
    """
    records: dict[str, list[Record]] = {"runs": report.runs.records, "published": []}
    for chapter in report.chapters:
        by_name = {table.name: table.records for table in chapter.main + chapter.further}
        by_name["recommendations"] = [one.record for one in chapter.recommended]
        for name, rows in by_name.items():
            records.setdefault(name, []).extend({TEST_SET: chapter.study.title, **row} for row in rows)
    paths = {name: output / "tables" / f"{name}.csv" for name in sorted(records)}
    for name, rows in records.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))  # not every study has every stage
        if rows:
            write_csv(paths[name], columns, ([row.get(column, "") for column in columns] for row in rows))
    for name, content in (("report.md", format_markdown(report)), ("report.html", render_html(report))):
        with atomic_write(output / name) as aside:  # names of files may hold bytes that are no UTF-8
            aside.write_text(content, encoding="utf-8", errors="backslashreplace")
    for path in (paths[name] for name in paths if not records[name]):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise PatchCoreError(f"cannot remove {path} of an earlier report: {error.strerror or error}") from error


def format_terminal(report: Report) -> str:
    """The study's tables, the costs, the recommendations, and what is not in the tables."""
    parts = []
    for chapter in report.chapters:
        names = [contender.name for contender in chapter.study.contenders]
        numbered = [f"  [{number}] {name}" for number, name in enumerate(names, start=1)]
        parts.append("\n".join([f"Test set: {chapter.study.title}", *numbered]))
        parts += [_terminal_table(table) for table in chapter.main]
        parts += ["\n".join(_recommendation_lines(chapter.recommended))] if chapter.recommended else []
    if report.problems:
        parts.append("\n".join(["Not in the tables:", *(f"  {name}: {why}" for name, why in report.problems.items())]))
    return "\n\n".join(parts)


def _terminal_table(table: Table) -> str:
    """A table with numbered columns, since the names of contenders are longer than their numbers."""
    lines = [[table.title, *(f"[{number}]" for number in range(1, len(table.header)))]]
    return align_columns([*lines, *([_format_cell(cell) for cell in row] for row in table.rows)])


def _recommendation_lines(found: Sequence[Recommendation]) -> list[str]:
    """A line per use."""
    return [f"{one.heading}: {one.winner or NO_WINNER} [{'; '.join(one.evidence)}]" for one in found]


def _format_cell(cell: Cell) -> str:
    """A cell on one line of text."""
    mark = f" {MARKS[cell.mark]}" if cell.mark else ""
    detail = f" ({cell.detail})" if cell.detail else ""
    return f"{cell.text}{mark}{detail}"


def format_markdown(report: Report) -> str:
    """The report without its pictures; HTML in names stays text."""
    parts = ["# Comparison of methods", f"Runs below {_text(str(report.root))}. Full precision: `tables/*.csv`."]
    for chapter in report.chapters:
        parts.append(f"## Test set: {_text(chapter.study.title)}")
        if chapter.recommended:
            lines = _recommendation_lines(chapter.recommended)
            parts += ["### Recommendations", "\n".join(f"- {_text(line)}" for line in lines)]
        parts += [_markdown_table(table) for table in chapter.main + chapter.further]
    parts += ["## Sources", _markdown_table(report.runs)]
    problems = [f"- {_text(name)}: {_text(reason)}" for name, reason in report.problems.items()]
    parts += ["### Not in the tables", "\n".join(problems) or "Nothing: every run found is in the tables."]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    """A table with its title and notes."""
    lines = [f"### {table.title}", ""]
    if not table.rows:
        return "\n".join([*lines, "None."])
    lines += [_markdown_row(table.header), _markdown_row(["---"] * len(table.header))]
    for row in table.rows:
        cells = [(f"**{_format_cell(cell)}**" if cell.mark == "best" else _format_cell(cell)) for cell in row]
        lines.append(_markdown_row(cells))
    return "\n".join([*lines, *(f"\n{_text(note)}" for note in table.notes)])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _text(content: str) -> str:
    """Text on one line in which Markdown finds no HTML."""
    return escape(" ".join(content.split()), quote=False)
