"""For each use the best method among the runs, with the figures behind it, or that there is no clear winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patchcore.comparison.costs import common_rows, hardware_of, per_run
from patchcore.comparison.statistics import DECIMALS, Difference, Line, ranked
from patchcore.comparison.study import Study, mean
from patchcore.comparison.tables import Record, amount, share
from patchcore.results import METRICS

NOISE = 0.1  # a time or a peak of memory must be this much smaller to be called smaller; sizes on disk do not vary


@dataclass(frozen=True)
class Recommendation:
    """`winner` is None where there is no clear one; `figures` says why."""

    use: str
    winner: str | None
    figures: str


def recommend(study: Study, judged: Mapping[str, Sequence[Line]]) -> list[Recommendation]:
    """The winners for classification, localisation, speed and size; nothing where a study has one method only."""
    if len(study.methods) < 2:
        return []
    return [
        _by_auroc("best classification", study, "instance_auroc", judged),
        _by_auroc("best localisation", study, "full_pixel_auroc", judged),
        _by_cost("fastest inference", study, "ms_per_image", "ms per image", varies=True),
        _by_cost("fastest training", study, "fit_seconds", "s", varies=True),
        _by_cost("least host memory", study, "peak_host_mib", "MiB", varies=True),
        _by_cost("smallest model", study, "model_mib", "MiB on disk", varies=False),
    ]


def records(study: Study, found: Sequence[Recommendation]) -> list[Record]:
    """The recommendations for their CSV file."""
    return [
        {"test_set": study.title, "use": one.use, "winner": one.winner or "no clear winner", "figures": one.figures}
        for one in found
    ]


def _by_auroc(use: str, study: Study, metric: str, judged: Mapping[str, Sequence[Line]]) -> Recommendation:
    """Judge by the average over categories, or by the only one."""
    if study.has_conflict:
        return Recommendation(use, None, "a category was run on different test images, so there is no average")
    line = judged[metric][-1]
    what = f"{dict(METRICS)[metric]}, {study.label(line.row)}"
    order = ranked(line.figures)
    if len(order) < 2:
        return Recommendation(use, None, f"fewer than two methods have {what}")
    best, verdict = order[0], line.verdict
    others = order[1:2] if verdict.kind == "best" else verdict.leaders[1:]
    compared = {found.second: found for found in line.differences if found.first == best}
    against = "; ".join(_against(other, line, compared.get(other)) for other in others)
    figures = f"{what}: {best} {share(line.figures[best].mean)}, {against}"
    return Recommendation(use, best if verdict.kind == "best" else None, figures)


def _against(other: str, line: Line, found: Difference | None) -> str:
    if found is None:
        gap = "no image scores to tell them apart (--save_anomaly_scores)"
    else:
        gap = f"difference {found.value:+.{DECIMALS}f} [{found.low:+.{DECIMALS}f}, {found.high:+.{DECIMALS}f}]"
    return f"{other} {share(line.figures[other].mean)} ({gap})"


def _by_cost(use: str, study: Study, column: str, unit: str, *, varies: bool) -> Recommendation:
    """Judge by a cost; one that `varies` with the machine must be lower by more than `NOISE`, whatever the run."""
    rows = common_rows(study)
    if not rows:
        return Recommendation(use, None, "no category was run by every method")
    measured = {method.name: per_run(method, rows, column) for method in study.methods}
    known = {name: values for name, values in measured.items() if values}
    order = sorted(known, key=lambda name: mean(known[name]))
    figures = "; ".join(f"{name} {amount(mean(known[name]))} {unit}" for name in order)
    if len(order) < len(measured):
        lacking = ", ".join(name for name in measured if name not in known)
        return Recommendation(use, None, "; ".join(filter(None, [figures, f"not measured: {lacking}"])))
    if varies and len(hardware_of(study)) > 1:
        return Recommendation(use, None, f"{figures}; measured on different machines")
    best, *rivals = order
    margin = 1 + NOISE if varies else 1
    clear = all(max(known[best]) * margin < min(known[rival]) for rival in rivals)
    return Recommendation(use, best if clear else None, figures)
