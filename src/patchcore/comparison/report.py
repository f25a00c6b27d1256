"""The whole report: from a folder of results to `report.md`, `report.html` and `tables/*.csv`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchcore.comparison import gallery, recommendations, tables, text
from patchcore.comparison.costs import costs_table
from patchcore.comparison.gallery import Case
from patchcore.comparison.page import html
from patchcore.comparison.published import Published, read_published
from patchcore.comparison.recommendations import Recommendation, recommend
from patchcore.comparison.runs import Problem, find_runs
from patchcore.comparison.statistics import AUROCS, judge
from patchcore.comparison.study import Row, Study, studies_of
from patchcore.comparison.tables import Table
from patchcore.results import write_rows
from patchcore.runtime import written_aside
from patchcore.types import PatchCoreError


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What the report says of one study."""

    study: Study
    main: tuple[Table, ...]
    further: tuple[Table, ...]
    gallery: dict[Row, list[Case]]
    recommended: tuple[Recommendation, ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        return self.main + self.further


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is to be said of a folder of results."""

    root: Path
    chapters: tuple[Chapter, ...]
    runs: Table
    problems: tuple[Problem, ...]


def make_report(root: Path, reference: Path | None) -> Report:
    """Read the runs below `root` and compare them.

    Raises:
        PatchCoreError: there is no such folder, no finished run in it, or the reference is not in its format.
    """
    published = read_published(reference) if reference else None
    runs, problems = find_runs(root)
    studies = studies_of(runs, problems)
    if not studies:
        found = "; ".join(f"{problem.name}: {problem.reason}" for problem in problems)
        raise PatchCoreError(f"no finished run in {root}{f' ({found})' if found else ''}")
    return Report(
        root=root,
        chapters=tuple(_chapter(study, published, problems) for study in studies),
        runs=tables.runs_table(studies),
        problems=tuple(problems),
    )


def _chapter(study: Study, published: Published | None, problems: list[Problem]) -> Chapter:
    judged = {metric: judge(study, metric) for metric in AUROCS}
    main = [tables.auroc_table(study, metric, lines, published) for metric, lines in judged.items()]
    further = [
        costs_table(study),
        tables.defect_types_table(study),
        tables.thresholds_table(study),
        tables.further_metrics_table(study),
        tables.differences_table(study, judged),
    ]
    if published:
        further += tables.published_tables(study, published)
    return Chapter(
        study=study,
        main=tuple(main),
        further=tuple(further),
        gallery={row: gallery.cases(study, row, problems) for row in study.rows},
        recommended=tuple(recommend(study, judged)),
    )


def terminal(report: Report) -> str:
    """The study's tables, the costs, the recommendations, and what is not in the tables."""
    parts = []
    for chapter in report.chapters:
        names = [method.name for method in chapter.study.methods]
        parts.append(f"Test set: {chapter.study.title}\n{text.numbered(names)}")
        parts += [text.terminal_table(table) for table in chapter.main]
        parts += ["\n".join(text.recommendation_lines(chapter.recommended))] if chapter.recommended else []
    if report.problems:
        parts.append("\n".join(["Not in the tables:", *(f"  {one.name}: {one.reason}" for one in report.problems)]))
    return "\n\n".join(parts)


def write_report(report: Report, output: Path) -> None:
    """Write `report.md`, `report.html` and `tables/*.csv` into a folder.

    Raises:
        PatchCoreError: the folder cannot be written.
    """
    records: dict[str, list[tables.Record]] = {"runs": report.runs.records, "recommendations": []}
    for chapter in report.chapters:
        records["recommendations"] += recommendations.records(chapter.study, chapter.recommended)
        for table in chapter.tables:
            records.setdefault(table.name, []).extend(table.records)
    for name, rows in records.items():
        path = output / "tables" / f"{name}.csv"
        if rows:
            write_rows(path, rows)
        else:
            path.unlink(missing_ok=True)  # it would be an earlier report's
    for name, content in (("report.md", markdown(report)), ("report.html", html(report))):
        with written_aside(output / name) as aside:
            aside.write_text(content, encoding="utf-8")


def markdown(report: Report) -> str:
    """The report without its pictures."""
    parts = ["# Comparison of methods", f"Runs below `{report.root}`. Full precision: `tables/*.csv`."]
    for chapter in report.chapters:
        parts.append(f"## Test set: {chapter.study.title}")
        if chapter.recommended:
            lines = text.recommendation_lines(chapter.recommended)
            parts += ["### Recommendations", "\n".join(f"- {line}" for line in lines)]
        parts += [text.markdown_table(table) for table in chapter.tables]
    parts += ["## Sources", text.markdown_table(report.runs)]
    problems = [f"- `{one.name}`: {one.reason}" for one in report.problems]
    parts += ["### Not in the tables", "\n".join(problems) or "Nothing: every run found is in the tables."]
    return "\n\n".join(parts) + "\n"
