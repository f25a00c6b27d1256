"""What each method costs: seconds, milliseconds per image by stage, and memory; measured by the runs themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from patchcore.comparison.study import Method, Row, Study, mean
from patchcore.comparison.tables import Cell, Table, amount

COSTS = {  # column of results.csv -> heading
    "fit_seconds": "training, s",
    "ms_per_image": "per image, ms",
    "peak_host_mib": "host memory, MiB",
    "peak_gpu_mib": "GPU memory, MiB",
    "bank_mib": "bank, MiB",
    "model_mib": "model on disk, MiB",
}
TIMES = ("fit_seconds", "ms_per_image")
_STAGE = "_ms_per_image"


def common_rows(study: Study) -> list[Row]:
    """The rows that every method has, so that their costs are those of the same work."""
    return [row for row in study.rows if all(method.runs_of(row) for method in study.methods)]


def per_run(method: Method, rows: Sequence[Row], column: str) -> list[float]:
    """A cost, averaged over the rows, of every run that measured it in all of them."""
    values = [
        mean([run.rows[row.name].get(column, math.nan) for row in rows])
        for run in method.runs
        if all(run in method.runs_of(row) for row in rows)
    ]
    return [value for value in values if not math.isnan(value)]


def costs_table(study: Study) -> Table:
    """A line per method: time in all and by stage, memory and sizes, with the ratio to the least of all methods."""
    rows = common_rows(study)
    columns = {column: heading for column, heading in COSTS.items() if _measured(study, rows, column)}
    stages = {
        column: f"{column.removesuffix(_STAGE)}, ms"
        for method in study.methods
        for row in rows
        for run in method.runs_of(row)
        for column in run.rows[row.name]
        if column.endswith(_STAGE)
    }
    columns |= stages
    means = {
        (method.name, column): mean(per_run(method, rows, column)) for method in study.methods for column in columns
    }
    least = {
        column: min(
            (means[method.name, column] for method in study.methods), key=lambda value: (math.isnan(value), value)
        )
        for column in columns
    }
    lines, records = [], []
    for method in study.methods:
        source = "; ".join(f"{run.name}/results.csv" for run in method.runs)
        cells = [Cell(method.name)]
        for column in columns:
            value = means[method.name, column]
            ratio = value / least[column] if least[column] else math.nan
            shown = column in COSTS and len(study.methods) > 1 and not math.isnan(ratio)
            cells.append(Cell(amount(value), value, detail=f"{ratio:.1f} ×" if shown else "", source=source))
        lines.append(cells)
        measured = {column: means[method.name, column] for column in columns}
        hardware = "; ".join(sorted({run.hardware for run in method.runs}))
        records.append(
            {"test_set": study.title, "method": method.name, **measured, "hardware": hardware, "sources": source}
        )
    notes = [
        f"Means over {', '.join(study.labels[row] for row in rows)} and seeds; × is the ratio to the least."
        if rows
        else "No category was run by every method, so their costs are not those of the same work.",
        "Host memory is the most that the whole process held. Model size needs --save_patchcore_model (FastFlow:"
        " --save_model).",
    ]
    if warm := cached(study):
        notes.append(f"Times do not compare: some features of {', '.join(warm)} came from a cache.")
    machines = hardware_of(study)
    notes.append(
        f"Measured on {machines[0]}."
        if len(machines) == 1
        else f"Measured on different machines, so times do not compare: {'; '.join(machines)}."
    )
    header = ["method", *columns.values()]
    return Table(name="costs", title="Costs", header=header, rows=lines, records=records, notes=notes)


def hardware_of(study: Study) -> list[str]:
    """What the runs of a study were measured on, each once."""
    return sorted({run.hardware for method in study.methods for run in method.runs})


def cached(study: Study) -> list[str]:
    """The runs of a study that took features from a cache, so that their times are not those of a whole run."""
    runs = {run.name: run for method in study.methods for run in method.runs}
    return [name for name, run in runs.items() if any(row.get("cached_share", 0) > 0 for row in run.rows.values())]


def _measured(study: Study, rows: Sequence[Row], column: str) -> bool:
    """Whether any run measured something other than 0."""
    return any(any(per_run(method, rows, column)) for method in study.methods)
