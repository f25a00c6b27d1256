"""The tables of the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from patchcore.comparison.published import PublishedMethod, find_published
from patchcore.comparison.runs import Row
from patchcore.comparison.statistics import CONFIDENCE, RESAMPLES, Line
from patchcore.comparison.study import Contender, SeedMean, Study, mean_or_nan
from patchcore.comparison.table import (
    MARKS,
    METHOD,
    SOURCES,
    TEST_SET,
    Cell,
    Column,
    Record,
    Table,
    format_amount,
    format_difference,
    format_interval,
    format_percent,
    format_share,
    format_spread,
    make_table,
    number,
    text,
)
from patchcore.results import columns
from patchcore.results.tables import DEFECT_TYPE_NUMBERS, format_counted

LEGEND = (
    "★ best: clearly ahead of all others; = tie: the same as printed; ≈ no clear winner: these test images do not tell"
    " it from the highest. ± is the standard deviation over seeds."
)
_CATEGORY = text("category", "category")
_METRIC = text("metric", "metric", columns.METRICS.__getitem__)


def auroc_table(study: Study, metric: str, lines: Sequence[Line], published: list[PublishedMethod]) -> Table:
    """One of the study's three tables: a line per category and the average, a column per method, the best marked."""
    records: list[Record] = []
    for line, contender in itertools.product(lines, study.contenders):
        measured = line.means[contender.name]
        printed = find_published(published, contender)
        reference = printed.value(study, line.row, metric) if printed else math.nan
        records.append(
            {
                "category": study.label(line.row),
                METHOD: contender.name,
                **vars(measured),
                "verdict": line.standing.kind if contender.name in line.standing.leaders else "",
                "published": reference,
                "difference_to_published": measured.mean - reference,
                SOURCES: _sources(contender, line.row, "results.csv"),
            }
        )
    notes = [LEGEND, *_single_trainings(study)] if len(study.contenders) > 1 else []
    return make_table(metric, columns.METRICS[metric], records, [_CATEGORY, _SEED_MEANS], notes=notes)


def _seed_mean(record: Record) -> Cell:
    mark = record.get("verdict", "")
    gap = record.get("difference_to_published", math.nan)
    return Cell(
        format_spread(record["mean"], record["std"]),
        record["mean"],
        mark=mark if mark in MARKS else "",
        detail="" if math.isnan(gap) else f"published {format_share(record['published'])}, {format_difference(gap)}",
        source=record[SOURCES],
    )


_SEED_MEANS = Column(METHOD, _seed_mean, spread=True)


def _single_trainings(study: Study) -> list[str]:
    """A note of who was trained with one seed only."""
    single = [one.name for one in study.contenders if any(len(one.runs_of(row)) == 1 for row in study.rows)]
    every = "All methods" if len(single) == len(study.contenders) else "; ".join(single)
    what = "one training of each category, or of some; what another seed changes is not in their intervals."
    return [f"{every}: {what}"] if single else []


def _sources(contender: Contender, line: Row | None, file: str) -> str:
    return "; ".join(f"{run.name}/{file}" for run in contender.runs_of(line))


def published_table(study: Study, published: list[PublishedMethod]) -> Table:
    """The printed results that no run here reproduces."""
    reproduced = [find_published(published, contender) for contender in study.contenders]
    records = [
        {
            METHOD: method.name,
            "metric": metric,
            "category": study.label(line),
            "published": method.value(study, line, metric),
            "log_group": method.log_group,
            "note": method.note,
        }
        for method in published
        if method not in reproduced
        for metric in columns.METRICS
        if not all(math.isnan(method.value(study, line, metric)) for line in study.lines)
        for line in study.lines
    ]
    shown = [
        text("published method", METHOD),
        _METRIC,
        Column("category", lambda record: Cell(format_share(record["published"]), record["published"]), spread=True),
        text("log_group", "log_group"),
        text("note", "note"),
    ]
    notes = [
        f"{published[0].source}. A run stands beside its published value if its --log_group is the one named here;"
        " nothing says that these results come from the same test images."
    ]
    return make_table("published", "Published, without a run here", records, shown, notes=notes)


def further_metrics_table(study: Study) -> Table:
    """AP, F1max and AUPRO; a line per category and metric."""
    records = [
        {
            "metric": metric,
            "category": study.label(line),
            METHOD: contender.name,
            **vars(study.means(line, metric)[contender.name]),
            SOURCES: _sources(contender, line, "results.csv"),
        }
        for metric in list(columns.METRICS)[3:]
        for line in study.lines
        for contender in study.contenders
    ]
    return make_table(
        "further_metrics",
        "AP, F1max and AUPRO",
        records,
        [_METRIC, _CATEGORY, _SEED_MEANS],
        notes=["No bootstrap was made of these, so none is called best."],
    )


def differences_table(study: Study, by_metric: Mapping[str, Sequence[Line]]) -> Table:
    """The highest method of every line against each other one; all pairs are in the CSV file."""
    found = [
        (line, difference, metric)
        for metric, lines in by_metric.items()
        for line in lines
        for difference in line.differences
    ]
    records = [{"metric": metric, "category": study.label(line.row), **vars(one)} for line, one, metric in found]
    shown = [
        _METRIC,
        _CATEGORY,
        text("highest", "first"),
        text("compared with", "second"),
        number("difference", "difference", format_difference),
        Column("interval", lambda record: Cell(format_interval(record["low"], record["high"]), record["low"])),
        text("verdict", "clear", lambda clear: "clear" if clear else "not clear"),
    ]
    notes = [
        f"Paired bootstrap over test images: {RESAMPLES:,} resamples, good and defective images drawn separately,"
        f" seeds drawn as well. The intervals shown, of the highest method of a line, hold jointly with"
        f" {CONFIDENCE:.0%}; those of the other pairs, in the CSV file, do not. A difference is clear if its"
        " interval lies above 0 and the two values differ as printed."
    ]
    of_leaders = [
        record for record, (line, one, _) in zip(records, found, strict=True) if one.first == line.standing.leaders[0]
    ]
    return make_table("differences", "Differences between methods", records, shown, visible=of_leaders, notes=notes)


def costs_table(study: Study) -> Table:
    """A line per contender: time in all and by stage, memory and sizes, with the ratio to the least of all."""
    rows = study.common_rows
    costs = [name for name in columns.COSTS if any(any(one.costs(rows, name)) for one in study.contenders)]
    measured = (run.rows[row.name] for one in study.contenders for row in rows for run in one.runs_of(row))
    stages = [name for name in dict.fromkeys(itertools.chain(*measured)) if columns.stage_of(name)]
    records: list[Record] = [
        {
            METHOD: contender.name,
            **{column: mean_or_nan(contender.costs(rows, column)) for column in (*costs, *stages)},
            "hardware": "; ".join(sorted({run.hardware for run in contender.runs})),
            SOURCES: "; ".join(f"{run.name}/results.csv" for run in contender.runs),
        }
        for contender in study.contenders
    ]
    shown = [text("method", METHOD), *(_cost(column, columns.COSTS[column], records) for column in costs)]
    shown += [_cost(column, f"{columns.stage_of(column)}, ms", []) for column in stages]
    return make_table("costs", "Costs", records, shown, notes=_cost_notes(study, rows))


def _cost(column: str, heading: str, compared: Sequence[Record]) -> Column:
    """A cost, with its ratio to the least of the records that it is compared with."""
    known = [record[column] for record in compared if not math.isnan(record[column])]
    least = min(known) if len(compared) > 1 and known else 0

    def cell(record: Record) -> Cell:
        value = record[column]
        detail = f"{value / least:.1f} ×" if least and not math.isnan(value) else ""
        return Cell(format_amount(value), value, detail=detail, source=record[SOURCES])

    return Column(heading, cell)


def _cost_notes(study: Study, rows: Sequence[Row]) -> list[str]:
    notes = [
        f"Means over {', '.join(study.labels[row] for row in rows)} and seeds; × is the ratio to the least."
        if rows
        else "No category was run by every method, so their costs are not those of the same work.",
        "Host memory is the most that the whole process held. The size on disk needs a run that stored its models.",
    ]
    if cached := study.cached_runs:
        notes.append(f"Times do not compare: some features of {', '.join(cached)} came from a cache.")
    measured = "Measured on" if len(study.hardware) == 1 else "Measured on different machines, so times do not compare:"
    return [*notes, f"{measured} {'; '.join(study.hardware)}."]


def thresholds_table(study: Study) -> Table:
    """What the calibrated threshold of every run catches and falsely rejects."""
    records: list[Record] = []
    for row, contender in itertools.product(study.rows, study.contenders):
        for run in contender.runs_of(row):
            numbers = run.rows[row.name]
            if math.isnan(numbers.get(columns.STATED_RATE, math.nan)):
                continue
            defective = round(numbers[columns.DEFECTIVE_IMAGES])
            good = round(numbers[columns.TEST_IMAGES]) - defective
            records.append(
                {
                    "category": study.labels[row],
                    METHOD: contender.name,
                    "seed": run.config["run"]["seed"],
                    columns.THRESHOLD: numbers[columns.THRESHOLD],
                    columns.STATED_RATE: numbers[columns.STATED_RATE],
                    columns.DEFECTS_CAUGHT: numbers[columns.DEFECTS_CAUGHT],
                    columns.FALSE_REJECTS: numbers[columns.FALSE_REJECTS],
                    "caught": format_counted(numbers[columns.DEFECTS_CAUGHT], defective),
                    "rejected": format_counted(numbers[columns.FALSE_REJECTS], good),
                    SOURCES: run.name_of(run.folder.results),
                }
            )
    shown = [
        _CATEGORY,
        text("method", METHOD),
        number("seed", "seed", str),
        number("false rejects stated", columns.STATED_RATE, format_percent),
        text("defective images caught", "caught"),
        text("good images rejected", "rejected"),
    ]
    notes = [
        "The threshold follows from good training images that the model had not learnt, for the stated rate of false"
        " rejects; no test image had a part in it. In brackets the Clopper-Pearson interval of 95 %."
    ]
    return make_table("thresholds", "Verdicts", records, shown, notes=notes)


def defect_types_table(study: Study) -> Table:
    """Every kind of defect by itself, since the mean hides them."""
    records: list[Record] = []
    for row in study.rows:
        found = {one.name: [run.defect_types.get(row.name, {}) for run in one.runs_of(row)] for one in study.contenders}
        images = {
            defect: numbers[columns.IMAGES]
            for types in itertools.chain(*found.values())
            for defect, numbers in types.items()
        }
        for defect, contender in itertools.product(sorted(images), study.contenders):
            own = [types[defect] for types in found[contender.name] if defect in types]
            _, image, pixel, caught = (SeedMean.of([one[column] for one in own]) for column in DEFECT_TYPE_NUMBERS)
            records.append(
                {
                    "category": study.labels[row],
                    columns.DEFECT_TYPE: defect,
                    columns.IMAGES: images[defect],
                    METHOD: contender.name,
                    columns.IMAGE_AUROC: image.mean,
                    f"{columns.IMAGE_AUROC}_std": image.std,
                    columns.DEFECTIVE_PIXEL_AUROC: pixel.mean,
                    f"{columns.DEFECTIVE_PIXEL_AUROC}_std": pixel.std,
                    columns.DEFECTS_CAUGHT: caught.mean,
                    "seeds": image.seeds,
                    SOURCES: _sources(contender, row, "defect_types.csv"),
                }
            )
    shown = [
        _CATEGORY,
        text("defect", columns.DEFECT_TYPE),
        Column("images", lambda record: Cell(str(record[columns.IMAGES]), record[columns.IMAGES])),
        Column(METHOD, _defect_type, spread=True),
    ]
    notes = [
        "Image AUROC of the images of one kind against all good ones; below it the AUROC of their defect pixels"
        " against the other pixels of these images, and the share caught at the threshold."
    ]
    return make_table("defect_types", "Kinds of defects", records, shown, notes=notes)


def _defect_type(record: Record) -> Cell:
    details = []
    if not math.isnan(record[columns.DEFECTIVE_PIXEL_AUROC]):
        pixels = format_spread(record[columns.DEFECTIVE_PIXEL_AUROC], record[f"{columns.DEFECTIVE_PIXEL_AUROC}_std"])
        details.append(f"pixels {pixels}")
    if not math.isnan(record[columns.DEFECTS_CAUGHT]):
        details.append(f"caught {format_percent(record[columns.DEFECTS_CAUGHT])}")
    value = record[columns.IMAGE_AUROC]
    text = format_spread(value, record[f"{columns.IMAGE_AUROC}_std"])
    return Cell(text, value, detail=", ".join(details), source=record[SOURCES])


def runs_table(studies: Sequence[Study]) -> Table:
    """Every run in the tables: which column and categories it stands behind."""
    records: list[Record] = []
    for study in studies:
        for contender, run in ((one, run) for one in study.contenders for run in one.runs):
            rows = [row for row in study.rows if run in contender.runs_of(row)]
            kept = {"scores": bool(run.scores), "pictures": any(run.has_overlays(row.name) for row in rows)}
            records.append(
                {
                    TEST_SET: study.title,
                    METHOD: contender.name,
                    "run": run.name,
                    "categories": ", ".join(study.labels[row] for row in rows),
                    "seed": run.config["run"]["seed"],
                    "kept": ", ".join(name for name, is_kept in kept.items() if is_kept),
                    "hardware": run.hardware,
                    "command": run.config.get("command", ""),
                }
            )
    shown = [
        text("method", METHOD),
        text("run", "run"),
        text("categories", "categories"),
        number("seed", "seed", str),
        text("kept", "kept", lambda kept: kept or "–"),
        text("measured on", "hardware"),
    ]
    return make_table("runs", "Runs in the tables", records, shown)
