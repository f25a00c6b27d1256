"""What is to be said of a folder of results, before it becomes text or a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchcore.comparison import gallery, tables
from patchcore.comparison.costs import costs_table
from patchcore.comparison.gallery import Case
from patchcore.comparison.published import Published, read_published
from patchcore.comparison.recommendations import Recommendation, recommend
from patchcore.comparison.runs import Problem, find_runs
from patchcore.comparison.statistics import AUROCS, compare
from patchcore.comparison.study import Row, Study, studies_of
from patchcore.comparison.tables import Table
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
    most = gallery.affordable(studies)
    return Report(
        root=root,
        chapters=tuple(_chapter(study, published, most, problems) for study in studies),
        runs=tables.runs_table(studies),
        problems=tuple(problems),
    )


def _chapter(study: Study, published: Published | None, most: int, problems: list[Problem]) -> Chapter:
    by_metric = {metric: compare(study, metric) for metric in AUROCS}
    main = [tables.auroc_table(study, metric, lines, published) for metric, lines in by_metric.items()]
    further = [
        costs_table(study),
        tables.defect_types_table(study),
        tables.thresholds_table(study),
        tables.further_metrics_table(study),
        tables.differences_table(study, by_metric),
    ]
    if published:
        further += tables.published_tables(study, published)
    return Chapter(
        study=study,
        main=tuple(main),
        further=tuple(further),
        gallery={row: gallery.cases(study, row, most, problems) for row in study.rows},
        recommended=tuple(recommend(study, by_metric)),
    )
