"""For each use the best method among the runs, with the figures behind it, or that there is no clear winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patchcore.comparison.costs import COSTS, TIMES, cached, common_rows, hardware_of, per_run
from patchcore.comparison.statistics import DECIMALS, Difference, Line, ranked
from patchcore.comparison.study import Study, mean
from patchcore.comparison.tables import Record, amount, share
from patchcore.results.run_folder import METRICS

NO_WINNER = "no clear winner"
NOISE = 0.1  # a time or a peak of memory must be this much smaller to be called smaller; sizes on disk do not vary


@dataclass(frozen=True)
class Recommendation:
    """The best method for a use.

    Attributes:
        use: what for.
        winner: None where there is no clear one.
        measure: what was compared.
        figures: of each method that matters, or the reason why nothing can be said.
    """

    use: str
    winner: str | None
    measure: str
    figures: tuple[str, ...]

    @property
    def heading(self) -> str:
        return f"{self.use} ({self.measure})"


def recommend(study: Study, lines: Mapping[str, Sequence[Line]]) -> list[Recommendation]:
    """The winners for classification, localisation, speed and size; nothing where a study has one method only."""
    if len(study.methods) < 2:
        return []
    return [
        _by_auroc("best classification", study, "instance_auroc", lines),
        _by_auroc("best localisation", study, "full_pixel_auroc", lines),
        _by_cost("fastest inference", study, "ms_per_image", varies=True),
        _by_cost("fastest training", study, "fit_seconds", varies=True),
        _by_cost("least host memory", study, "peak_host_mib", varies=True),
        _by_cost("smallest model", study, "model_mib", varies=False),
    ]


def records(study: Study, found: Sequence[Recommendation]) -> list[Record]:
    """The recommendations for their CSV file."""
    return [
        {
            "test_set": study.title,
            "use": one.use,
            "measure": one.measure,
            "winner": one.winner or NO_WINNER,
            "figures": "; ".join(one.figures),
        }
        for one in found
    ]


def _by_auroc(use: str, study: Study, metric: str, lines: Mapping[str, Sequence[Line]]) -> Recommendation:
    """Judge by the average over categories, or by the only one."""
    heading = dict(METRICS)[metric]
    if study.has_conflict:
        return Recommendation(use, None, heading, ("a category was run on different test images: no average",))
    line = lines[metric][-1]
    measure = f"{heading}, {study.label(line.row)}"
    order = ranked(line.figures)
    if len(order) < 2:
        return Recommendation(use, None, measure, ("fewer than two methods have it",))
    best = order[0]
    clear = line.standing.kind == "best"
    others = order[1:2] if clear else line.standing.leaders[1:]
    compared = {found.second: found for found in line.differences if found.first == best}
    figures = [f"{best}: {share(line.figures[best].mean)}"]
    figures += [f"{other}: {share(line.figures[other].mean)}, {_gap(compared.get(other))}" for other in others]
    return Recommendation(use, best if clear else None, measure, tuple(figures))


def _gap(found: Difference | None) -> str:
    if found is None:
        return "no scores to tell it from the highest (--save_anomaly_scores)"
    return f"lower by {found.value:.{DECIMALS}f} {found.interval}"


def _by_cost(use: str, study: Study, column: str, *, varies: bool) -> Recommendation:
    """Judge by a cost; one that `varies` with the machine must be lower by more than `NOISE`, whatever the run."""
    measure = COSTS[column]
    rows = common_rows(study)
    if not rows:
        return Recommendation(use, None, measure, ("no category was run by every method",))
    measured = {method.name: per_run(method, rows, column) for method in study.methods}
    order = sorted((name for name in measured if measured[name]), key=lambda name: mean(measured[name]))
    lacking = [name for name in measured if not measured[name]]
    figures = [f"{name}: {amount(mean(measured[name]))}" for name in order]
    figures += [f"{name}: not measured" for name in lacking]
    comparable = not lacking
    if varies and len(hardware_of(study)) > 1:
        figures.append("measured on different machines")
        comparable = False
    if column in TIMES and cached(study):
        figures.append("some features came from a cache (--feature_cache)")
        comparable = False
    best, *rivals = order or [""]
    margin = 1 + NOISE if varies else 1
    clear = comparable and all(max(measured[best]) * margin < min(measured[rival]) for rival in rivals)
    return Recommendation(use, best if clear else None, measure, tuple(figures))
