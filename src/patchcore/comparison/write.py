"""The files of a report: `report.md`, `report.html` and `tables/*.csv`."""

from __future__ import annotations

from pathlib import Path

from patchcore.comparison import recommendations
from patchcore.comparison.page import html
from patchcore.comparison.report import Report
from patchcore.comparison.statistics import AUROCS
from patchcore.comparison.tables import Record
from patchcore.comparison.text import markdown
from patchcore.results.run_folder import write_rows
from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError

# Every table that a report may have; of an earlier report those go that this one lacks.
TABLES = {
    *AUROCS,
    "costs",
    "defect_types",
    "differences",
    "further_metrics",
    "published",
    "recommendations",
    "runs",
    "thresholds",
}


def write_report(report: Report, output: Path) -> None:
    """Write `report.md`, `report.html` and `tables/*.csv` into a folder, in place of an earlier report's.

    Raises:
        PatchCoreError: the folder cannot be written.
    """
    records: dict[str, list[Record]] = {"runs": report.runs.records, "recommendations": []}
    for chapter in report.chapters:
        records["recommendations"] += recommendations.records(chapter.study, chapter.recommended)
        for table in chapter.tables:
            records.setdefault(table.name, []).extend(table.records)
    filled = {name: rows for name, rows in records.items() if rows}
    assert filled.keys() <= TABLES, f"TABLES lacks {', '.join(filled.keys() - TABLES)}"
    for name, rows in filled.items():
        columns = dict.fromkeys(column for row in rows for column in row)  # not every study has every stage
        write_rows(output / "tables" / f"{name}.csv", [{**dict.fromkeys(columns, ""), **row} for row in rows])
    for name, content in (("report.md", markdown(report)), ("report.html", html(report))):
        with atomic_write(output / name) as aside:
            aside.write_text(content, encoding="utf-8")
    for name in sorted(TABLES - filled.keys()):
        _remove(output / "tables" / f"{name}.csv")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PatchCoreError(f"cannot remove {path} of an earlier report: {error.strerror or error}") from error
