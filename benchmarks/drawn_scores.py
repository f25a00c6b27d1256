"""Does the stated rate hold for drawn scores? Calibrations of single detectors and of ensembles against the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.left_out import calibration, expected_rate
from benchmarks.measure import Table

COUNTS = (10, 20, 50, 54, 200)
RATES = (0.01, 0.05, 0.1)
DISTRIBUTIONS = {
    "normal": stats.norm(),
    "lognormal": stats.lognorm(1),
    "Pareto (tail index 1.5)": stats.pareto(1.5),
    "Poisson (mean 2: ties)": stats.poisson(2),
}
MEMBERS = 3
JUDGED = 200  # good and as many defective images for every calibration of an ensemble
SHIFT = 2.5  # standard deviations by which a member's scores of defective images lie higher


def mean_and_error(values: NDArray[np.float64]) -> str:
    """Shares in per cent: their mean and its standard error."""
    return f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1) / len(values) ** 0.5:.2f} %"


def realised(name: str, n: int, rate: float, repeats: int) -> NDArray[np.float64]:
    """The share of good images that each of `repeats` calibrations rejects, exact by the law of the scores."""
    distribution = DISTRIBUTIONS[name]
    drawn = distribution.rvs((repeats, n), random_state=np.random.default_rng([n, len(name)]))
    return distribution.sf([calibration(scores).threshold(rate) for scores in drawn])


def rates_table(repeats: int) -> Table:
    """The realised rate of single detectors, on average and over the calibration sets."""
    rows = []
    for rate in RATES:
        for n in COUNTS:
            expected = expected_rate(n, rate)
            found = {name: realised(name, n, rate, repeats) for name in DISTRIBUTIONS}
            low, high = np.quantile(found["normal"], [0.05, 0.95])
            ranks = round(expected * (n + 1))
            law = stats.beta(ranks, n + 1 - ranks).ppf([0.05, 0.95])
            rows.append(
                (
                    f"{100 * rate:g} %",
                    str(n),
                    f"{100 * expected:.2f} %",
                    *(mean_and_error(values) for values in found.values()),
                    f"{100 * low:.1f} to {100 * high:.1f} %",
                    f"{100 * law[0]:.1f} to {100 * law[1]:.1f} %",
                )
            )
    header = (
        *("stated", "n", "to be expected", *DISTRIBUTIONS),
        *("of 90 % of the calibration sets (normal)", "by the Beta law"),
    )
    return Table(title=f"One detector, drawn scores, {repeats} calibrations", header=header, rows=rows)


Judge = Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.bool_]]


def by_ranks(good: NDArray[np.float64], scores: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """(M, N) scores of an ensemble by the (M, n) that calibrate it, as the package judges."""
    return calibration(good).judge(scores, rate).rejected


def by_one(good: NDArray[np.float64], scores: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """As if there were the first member alone."""
    return calibration(good[0]).judge(scores[:1], rate).rejected


def by_mean(good: NDArray[np.float64], scores: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """The mean of the members' scores, each divided by its mean of the calibration images."""
    scale = good.mean(axis=1, keepdims=True)
    return calibration((good / scale).mean(axis=0)).judge((scores / scale).mean(axis=0)[None], rate).rejected


JUDGES: dict[str, Judge] = {"by ranks": by_ranks, "first member": by_one, "mean of scores": by_mean}


def draw_members(rng: np.random.Generator, shape: tuple[int, ...], correlation: float, shift: NDArray) -> NDArray:
    """(M, *shape) scores of images whose normal scores correlate; the members differ in scale and skewness."""
    common = rng.standard_normal(shape)
    own = rng.standard_normal((MEMBERS, *shape))
    normal = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
    spread = np.array([0.2, 0.5, 1.0])  # of the logarithm: the last member has the longest tail
    return np.exp((normal + shift[:, None]) * spread[:, None])


def ensembles_table(repeats: int, rate: float = 0.05) -> Table:
    """Ensembles of three whose members are more or less dependent: false rejects, and defects caught."""
    seen = {"by all": np.full(MEMBERS, SHIFT), "by the first": np.eye(MEMBERS)[0] * SHIFT}
    rows = []
    for correlation in (0.0, 0.5, 0.9):
        for n in (10, 50, 200):
            rng = np.random.default_rng(n)
            wrongly: dict[str, list[float]] = {name: [] for name in JUDGES}
            caught: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in JUDGES for kind in seen}
            for _ in range(repeats):
                good = draw_members(rng, (n,), correlation, np.zeros(MEMBERS))
                fresh = draw_members(rng, (JUDGED,), correlation, np.zeros(MEMBERS))
                faulty = {kind: draw_members(rng, (JUDGED,), correlation, shift) for kind, shift in seen.items()}
                for name, judge in JUDGES.items():
                    wrongly[name].append(judge(good, fresh, rate).mean())
                    for kind, scores in faulty.items():
                        caught[name, kind].append(judge(good, scores, rate).mean())
            rows.append(
                (
                    f"{correlation:g}",
                    str(n),
                    f"{100 * expected_rate(n, rate):.1f} %",
                    *(mean_and_error(np.array(values)) for values in wrongly.values()),
                    *(
                        " / ".join(f"{100 * np.mean(caught[name, kind]):.0f}" for name in JUDGES) + " %"
                        for kind in seen
                    ),
                )
            )
    header = (
        *("correlation", "n", "to be expected", *(f"rejected {name}" for name in JUDGES)),
        *(f"defects seen {kind}, caught: {' / '.join(JUDGES)}" for kind in seen),
    )
    title = f"Ensembles of three, {100 * rate:g} % stated, {repeats} calibrations and {JUDGED} images each"
    return Table(title=title, header=header, rows=rows)
