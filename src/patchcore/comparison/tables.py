"""The tables of the report, each in two shapes: cells to read, and records in full precision for its CSV file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from patchcore.comparison.published import Published
from patchcore.comparison.statistics import CONFIDENCE, DECIMALS, RESAMPLES, Line
from patchcore.comparison.study import Figure, Method, Row, Study
from patchcore.results.run_folder import METRICS

MARKS = {"best": "★", "tie": "=", "unclear": "≈"}
LEGEND = (
    "★ best: clearly ahead of all others; = tie: the same as printed; ≈ no clear winner: these test images do not tell"
    " it from the highest. ± is the standard deviation over seeds."
)

Record = dict[str, object]


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


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to read, and its records for `tables/NAME.csv`."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    records: list[Record]
    notes: list[str] = field(default_factory=list)


def share(value: float) -> str:
    """A number in [0, 1] as the study prints it."""
    return "–" if math.isnan(value) else f"{value:.{DECIMALS}f}"


def percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def amount(value: float) -> str:
    """A cost or a score in three significant digits, thousands in full."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_spread(figure: Figure) -> str:
    return share(figure.mean) if figure.seeds < 2 else f"{share(figure.mean)} ± {share(figure.std)}"


def _sources(method: Method, line: Row | None, file: str) -> str:
    return "; ".join(f"{run.name}/{file}" for run in method.runs_of(line))


def auroc_table(study: Study, metric: str, lines: Sequence[Line], published: Published | None) -> Table:
    """One of the study's three tables: a line per category and the average, a column per method, the best marked."""
    rows, records = [], []
    for line in lines:
        label = study.label(line.row)
        cells = [Cell(label)]
        for method in study.methods:
            figure = line.figures[method.name]
            mark = line.standing.kind if method.name in line.standing.leaders else ""
            printed = published.of(method) if published else None
            reference = printed.value(study, line.row, metric) if printed else math.nan
            gap = figure.mean - reference
            detail = "" if math.isnan(gap) else f"published {share(reference)}, {gap:+.{DECIMALS}f}"
            source = _sources(method, line.row, "results.csv")
            cells.append(Cell(with_spread(figure), figure.mean, mark if mark in MARKS else "", detail, source))
            records.append(
                {
                    "test_set": study.title,
                    "category": label,
                    "method": method.name,
                    "mean": figure.mean,
                    "std": figure.std,
                    "seeds": figure.seeds,
                    "verdict": mark,
                    "published": reference,
                    "difference_to_published": gap,
                    "sources": source,
                }
            )
        rows.append(cells)
    notes = [LEGEND] if len(study.methods) > 1 else []
    single = [
        method.name for method in study.methods if any(len(method.runs_of(line.row)) == 1 for line in lines if line.row)
    ]
    if notes and single:
        every = "All methods" if len(single) == len(study.methods) else "; ".join(single)
        notes.append(
            f"{every}: one training of each category, or of some; what another seed changes is not in their intervals."
        )
    header = ["category", *(method.name for method in study.methods)]
    return Table(name=metric, title=dict(METRICS)[metric], header=header, rows=rows, records=records, notes=notes)


def published_tables(study: Study, published: Published) -> list[Table]:
    """A table of the printed results that no run here reproduces; none where there are none for these categories."""
    rows, records = [], []
    for method in published.unmatched(study.methods):
        for metric, heading in METRICS:
            values = [method.value(study, line, metric) for line in study.lines]
            if not all(map(math.isnan, values)):
                cells = [Cell(share(value), value) for value in values]
                rows.append([Cell(method.name), Cell(heading), *cells, Cell(method.log_group), Cell(method.note)])
                records += [
                    {
                        "test_set": study.title,
                        "method": method.name,
                        "metric": metric,
                        "category": study.label(line),
                        "published": value,
                        "log_group": method.log_group,
                    }
                    for line, value in zip(study.lines, values, strict=True)
                ]
    if not rows:
        return []
    header = ["published method", "metric", *map(study.label, study.lines), "log_group", "note"]
    notes = [
        f"{published.source}. A run stands beside its published value if its --log_group is the one named here; nothing"
        " says that these results come from the same test images."
    ]
    title = "Published, without a run here"
    return [Table(name="published", title=title, header=header, rows=rows, records=records, notes=notes)]


def further_metrics_table(study: Study) -> Table:
    """AP, F1max and AUPRO; a line per category and metric."""
    rows, records = [], []
    for metric, heading in METRICS[3:]:
        for line in study.lines:
            figures = study.figures(line, metric)
            cells = [Cell(heading), Cell(study.label(line))]
            for method in study.methods:
                figure = figures[method.name]
                source = _sources(method, line, "results.csv")
                cells.append(Cell(with_spread(figure), figure.mean, source=source))
                records.append(
                    {
                        "test_set": study.title,
                        "metric": metric,
                        "category": study.label(line),
                        "method": method.name,
                        "mean": figure.mean,
                        "std": figure.std,
                        "seeds": figure.seeds,
                        "sources": source,
                    }
                )
            rows.append(cells)
    return Table(
        name="further_metrics",
        title="AP, F1max and AUPRO",
        header=["metric", "category", *(method.name for method in study.methods)],
        rows=rows,
        records=records,
        notes=["No bootstrap was made of these, so none is called best."],
    )


def differences_table(study: Study, by_metric: dict[str, list[Line]]) -> Table:
    """The highest method of every line against each other one; all pairs are in the CSV file."""
    rows, records = [], []
    for metric, lines in by_metric.items():
        for line in lines:
            for found in line.differences:
                label = study.label(line.row)
                clear = "clear" if found.clear else "not clear"
                if found.first == line.standing.leaders[0]:
                    value = Cell(f"{found.value:+.{DECIMALS}f}", found.value)
                    names = [dict(METRICS)[metric], label, found.first, found.second]
                    rows.append([*map(Cell, names), value, Cell(found.interval, found.low), Cell(clear)])
                records.append(
                    {
                        "test_set": study.title,
                        "metric": metric,
                        "category": label,
                        "first": found.first,
                        "second": found.second,
                        "difference": found.value,
                        "low": found.low,
                        "high": found.high,
                        "clear": found.clear,
                    }
                )
    return Table(
        name="differences",
        title="Differences between methods",
        header=["metric", "category", "highest", "compared with", "difference", "interval", "verdict"],
        rows=rows,
        records=records,
        notes=[
            f"Paired bootstrap over test images: {RESAMPLES:,} resamples, good and defective images drawn separately,"
            f" seeds drawn as well. The intervals shown, of the highest method of a line, hold jointly with"
            f" {CONFIDENCE:.0%}; those of the other pairs, in the CSV file, do not. A difference is clear if its"
            " interval lies above 0 and the two values differ as printed."
        ],
    )


def thresholds_table(study: Study) -> Table:
    """What the threshold from held-out good training images catches and falsely rejects."""
    rows, records = [], []
    for row in study.rows:
        for method in study.methods:
            threshold, caught, rejects = (
                method.figure(row, column) for column in ("threshold", "defects_caught", "false_rejects")
            )
            if threshold.seeds:
                source = _sources(method, row, "results.csv")
                rows.append(
                    [
                        Cell(study.labels[row]),
                        Cell(method.name),
                        Cell(percent(caught.mean), caught.mean, source=source),
                        Cell(percent(rejects.mean), rejects.mean, source=source),
                    ]
                )
                records.append(
                    {
                        "test_set": study.title,
                        "category": study.labels[row],
                        "method": method.name,
                        "threshold": threshold.mean,
                        "defects_caught": caught.mean,
                        "false_rejects": rejects.mean,
                        "seeds": threshold.seeds,
                        "sources": source,
                    }
                )
    return Table(
        name="thresholds",
        title="At the threshold",
        header=["category", "method", "defective images caught", "good images rejected"],
        rows=rows,
        records=records,
        notes=[
            "The threshold is the highest score of good training images that were held out (--train_val_split below 1);"
            " no test image had a part in it. Means over seeds."
        ],
    )


def defect_types_table(study: Study) -> Table:
    """Every kind of defect by itself, since the mean hides them."""
    rows, records = [], []
    for row in study.rows:
        found = {
            method.name: [run.defect_types.get(row.name, {}) for run in method.runs_of(row)] for method in study.methods
        }
        for defect in sorted({defect for runs in found.values() for types in runs for defect in types}):
            images = next(types[defect]["images"] for runs in found.values() for types in runs if defect in types)
            cells = [Cell(study.labels[row]), Cell(defect), Cell(f"{images:.0f}", images)]
            for method in study.methods:
                image, pixel, caught = (
                    Figure.of([types[defect][column] for types in found[method.name] if defect in types])
                    for column in ("instance_auroc", "anomaly_pixel_auroc", "defects_caught")
                )
                source = _sources(method, row, "defect_types.csv")
                detail = "" if math.isnan(pixel.mean) else f"pixels {with_spread(pixel)}"
                detail += "" if math.isnan(caught.mean) else f", caught {percent(caught.mean)}"
                cells.append(Cell(with_spread(image), image.mean, detail=detail.lstrip(", "), source=source))
                records.append(
                    {
                        "test_set": study.title,
                        "category": study.labels[row],
                        "defect_type": defect,
                        "images": int(images),
                        "method": method.name,
                        "instance_auroc": image.mean,
                        "instance_auroc_std": image.std,
                        "anomaly_pixel_auroc": pixel.mean,
                        "anomaly_pixel_auroc_std": pixel.std,
                        "defects_caught": caught.mean,
                        "seeds": image.seeds,
                        "sources": source,
                    }
                )
            rows.append(cells)
    return Table(
        name="defect_types",
        title="Kinds of defects",
        header=["category", "defect", "images", *(method.name for method in study.methods)],
        rows=rows,
        records=records,
        notes=[
            "Image AUROC of the images of one kind against all good ones; below it the AUROC of their defect pixels"
            " against the other pixels of these images, and the share caught at the threshold."
        ],
    )


def runs_table(studies: Sequence[Study]) -> Table:
    """Every run in the tables: which column and categories it stands behind."""
    rows, records = [], []
    for study in studies:
        for method in study.methods:
            for run in method.runs:
                shown = [study.labels[row] for row in study.rows if run in method.runs_of(row)]
                kept = ", ".join(name for name, kept in (("scores", run.scores), ("pictures", run.pictures)) if kept)
                names = [method.name, run.name, ", ".join(shown)]
                rows.append([*map(Cell, names), Cell(str(run.seed), run.seed), Cell(kept or "–"), Cell(run.hardware)])
                records.append(
                    {
                        "test_set": study.title,
                        "method": method.name,
                        "run": run.name,
                        "categories": ", ".join(shown),
                        "seed": run.seed,
                        "kept": kept,
                        "hardware": run.hardware,
                        "command": run.config.get("command", ""),
                    }
                )
    header = ["method", "run", "categories", "seed", "kept", "measured on"]
    return Table(name="runs", title="Runs in the tables", header=header, rows=rows, records=records)
