"""For each use the best method among the runs, with the numbers behind it, or that there is no clear winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patchcore.comparison.statistics import DECIMALS, Difference, Line, ranked
from patchcore.comparison.study import Study, mean_or_nan
from patchcore.comparison.table import Record, format_amount, format_interval, format_share
from patchcore.results import columns

NO_WINNER = "no clear winner"
NOISE = 0.1  # a time or a peak of memory must be this much smaller to be called smaller; sizes on disk do not vary


@dataclass(frozen=True)
class Recommendation:
    """The best method for a use.

    Attributes:
        use: what for.
        winner: None where there is no clear one.
        measure: what was compared.
        evidence: the number of each method that matters, or the reason why nothing can be said.
    """

    use: str
    winner: str | None
    measure: str
    evidence: tuple[str, ...]

    @property
    def heading(self) -> str:
        return f"{self.use} ({self.measure})"

    @property
    def record(self) -> Record:
        """What its CSV file says of it."""
        winner, figures = self.winner or NO_WINNER, "; ".join(self.evidence)
        return {"use": self.use, "measure": self.measure, "winner": winner, "figures": figures}


def recommend(study: Study, lines: Mapping[str, Sequence[Line]]) -> list[Recommendation]:
    """The winners for classification, localisation, speed and size; nothing where a study has one contender only."""
    if len(study.contenders) < 2:
        return []
    return [
        _recommend_by_auroc("best classification", study, columns.IMAGE_AUROC, lines),
        _recommend_by_auroc("best localisation", study, columns.PIXEL_AUROC, lines),
        _recommend_by_cost("fastest inference", study, columns.MS_PER_IMAGE, varies=True),
        _recommend_by_cost("fastest training", study, columns.FIT_SECONDS, varies=True),
        _recommend_by_cost("least host memory", study, columns.PEAK_HOST_MIB, varies=True),
        _recommend_by_cost("smallest model", study, columns.MODEL_MIB, varies=False),
    ]


def _recommend_by_auroc(use: str, study: Study, metric: str, lines: Mapping[str, Sequence[Line]]) -> Recommendation:
    """Judge by the average over categories, or by the only one."""
    heading = columns.METRICS[metric]
    if study.has_conflict:
        return Recommendation(use, None, heading, ("a category was run on different test images: no average",))
    line = lines[metric][-1]
    measure = f"{heading}, {study.label(line.row)}"
    order = ranked(line.means)
    if len(order) < 2:
        return Recommendation(use, None, measure, ("fewer than two methods have it",))
    best = order[0]
    clear = line.standing.kind == "best"
    others = order[1:2] if clear else line.standing.leaders[1:]
    compared = {found.second: found for found in line.differences if found.first == best}
    evidence = [f"{best}: {format_share(line.means[best].mean)}"]
    evidence += [
        f"{other}: {format_share(line.means[other].mean)}, {_describe_gap(compared.get(other))}" for other in others
    ]
    return Recommendation(use, best if clear else None, measure, tuple(evidence))


def _describe_gap(found: Difference | None) -> str:
    if found is None:
        return "no scores to tell it from the highest (--save_anomaly_scores)"
    return f"lower by {found.difference:.{DECIMALS}f} {format_interval(found.low, found.high)}"


def _recommend_by_cost(use: str, study: Study, column: str, *, varies: bool) -> Recommendation:
    """Judge by a cost; one that `varies` with the machine must be lower by more than `NOISE`, whatever the run."""
    measure = columns.COSTS[column]
    rows = study.common_rows
    if not rows:
        return Recommendation(use, None, measure, ("no category was run by every method",))
    measured = {one.name: one.costs(rows, column) for one in study.contenders}
    order = sorted((name for name in measured if measured[name]), key=lambda name: mean_or_nan(measured[name]))
    lacking = [name for name in measured if not measured[name]]
    evidence = [f"{name}: {format_amount(mean_or_nan(measured[name]))}" for name in order]
    evidence += [f"{name}: not measured" for name in lacking]
    comparable = not lacking
    if varies and len(study.hardware) > 1:
        evidence.append("measured on different machines")
        comparable = False
    if column in (columns.FIT_SECONDS, columns.MS_PER_IMAGE) and study.cached_runs:
        evidence.append("some features came from a cache (--feature_cache)")
        comparable = False
    best, *rivals = order or [""]
    margin = 1 + NOISE if varies else 1
    clear = comparable and all(max(measured[best]) * margin < min(measured[rival]) for rival in rivals)
    return Recommendation(use, best if clear else None, measure, tuple(evidence))
