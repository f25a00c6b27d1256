"""What is to be said of a folder of results, before it becomes text or a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchcore.comparison import gallery, tables
from patchcore.comparison.gallery import Panel
from patchcore.comparison.published import PublishedMethod, read_published
from patchcore.comparison.recommendations import Recommendation, recommend
from patchcore.comparison.runs import Problems, Row, find_runs
from patchcore.comparison.statistics import AUROCS, compare
from patchcore.comparison.study import Study, studies_of
from patchcore.comparison.table import Table
from patchcore.types import PatchCoreError


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What the report says of one study."""

    study: Study
    main: list[Table]
    further: list[Table]
    gallery: dict[Row, dict[str, list[Panel]]]
    recommended: list[Recommendation]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is to be said of a folder of results."""

    root: Path
    chapters: list[Chapter]
    runs: Table
    problems: Problems


def make_report(root: Path, reference: Path | None) -> Report:
    """Read the runs below `root` and compare them.

    Raises:
        PatchCoreError: there is no such folder, no finished run in it, or the reference is not in its format.
    """
    published = read_published(reference) if reference else []
    runs, problems = find_runs(root)
    studies = studies_of(runs, problems)
    if not studies:
        found = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
        raise PatchCoreError(f"no finished run in {root}{f' ({found})' if found else ''}")
    most = gallery.affordable(studies)
    return Report(
        root=root,
        chapters=[_chapter(study, published, most, problems) for study in studies],
        runs=tables.runs_table(studies),
        problems=problems,
    )


def _chapter(study: Study, published: list[PublishedMethod], most: int, problems: Problems) -> Chapter:
    by_metric = {metric: compare(study, metric) for metric in AUROCS}
    further = [
        tables.costs_table(study),
        tables.defect_types_table(study),
        tables.thresholds_table(study),
        tables.further_metrics_table(study),
        tables.differences_table(study, by_metric),
    ]
    if published and (table := tables.published_table(study, published)).records:
        further.append(table)
    return Chapter(
        study=study,
        main=[tables.auroc_table(study, metric, lines, published) for metric, lines in by_metric.items()],
        further=further,
        gallery={row: gallery.find_hardest(study, row, most, problems) for row in study.rows},
        recommended=recommend(study, by_metric),
    )
