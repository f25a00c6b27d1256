"""The report as one HTML page: styles, script, plots and pictures inside, nothing fetched."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from patchcore.comparison import plots
from patchcore.comparison.recommendations import NO_WINNER
from patchcore.comparison.report import Report
from patchcore.comparison.runs import Row, Run
from patchcore.comparison.study import AVERAGE, Study
from patchcore.comparison.table import MARKS
from patchcore.results.columns import DEFECTS_CAUGHT, FALSE_REJECTS, STATED_RATE, THRESHOLD

_FOLDED = 12  # tables of more rows open on demand


def render_html(report: Report) -> str:
    """The whole page; every text is escaped by the template."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_keep_units
    )
    return environment.from_string(_asset("html")).render(
        report=report,
        plots_of=_plots_of,
        style=_asset("css"),
        script=_asset("js"),
        average=AVERAGE,
        colours=plots.COLOURS,
        folded=_FOLDED,
        marks=MARKS,
        no_winner=NO_WINNER,
    )


def _asset(ending: str) -> Markup:
    return Markup((files("patchcore.comparison") / f"page.{ending}").read_text(encoding="utf-8"))


def _keep_units(value: object) -> object:
    """A number stays on one line with its unit."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return re.sub(r"(\d) (?=%|px|×)", "\\1\u00a0", value)
    return value


def _plots_of(study: Study, row: Row) -> dict[str, Any]:
    """The plots of a category, and the numbers of its test images; empty if no run kept its scores.

    `distributions` holds the plot of every contender's scores, of its first run that kept them, and what the threshold
    does; `roc` is None where no curve is defined.
    """
    shown = study.first_scored(row)
    if not shown:
        return {}
    scores = {name: run.scores[row.name] for name, run in shown.items()}
    labels = next(iter(scores.values())).labels
    return {
        "good": int((~labels).sum()),
        "defective": int(labels.sum()),
        "distributions": [_distribution(name, run, row) for name, run in shown.items()],
        "roc": Markup(plots.roc(scores, "ROC curves")) if labels.any() and not labels.all() else None,
    }


def _distribution(contender: str, run: Run, row: Row) -> dict[str, Any]:
    columns = run.rows[row.name]
    threshold, rate = (columns.get(name, math.nan) for name in (THRESHOLD, STATED_RATE))
    effect = "no threshold: the model was not calibrated"
    if math.isnan(rate):
        threshold = math.nan  # of an older run, which stated no rate
    else:
        effect = (
            f"at {rate:.2g} false rejects stated, it catches {columns[DEFECTS_CAUGHT]:.0%} of the"
            f" defective and rejects {columns[FALSE_REJECTS]:.0%} of the good images"
        )
    svg = plots.distribution(run.scores[row.name], threshold, f"Scores, {contender}")
    return {"contender": contender, "run": run.name, "svg": Markup(svg), "effect": effect}
