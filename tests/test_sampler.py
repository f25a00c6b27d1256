from itertools import pairwise

import numpy as np
import pytest
import torch

from golden import GOLDEN, needs_golden
from patchcore.methods.patchcore import active_points, coreset
from patchcore.methods.patchcore.active_points import ActivePoints, RadiusForecast
from patchcore.methods.patchcore.config import SAMPLERS, PatchCoreConfig
from patchcore.methods.patchcore.coreset import approx_initial_distances, full_initial_distances, greedy_order, project
from patchcore.methods.patchcore.sampler import sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pick_by_pick(points, distances, count):
    """Farthest-point selection as the paper writes it, one pass over all points for every pick."""
    nearest, order = distances.double().clone(), []
    for _ in range(count):
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points.double() - points[order[-1]].double()).norm(dim=1))
        nearest[order] = -1
    return order


@needs_golden
@pytest.mark.parametrize("name", ["coreset_1200x128", "coreset_3000x32"])
def test_golden_coresets(name):
    case = np.load(GOLDEN / f"{name}.npz")
    points, starts = torch.from_numpy(case["points"]), torch.from_numpy(case["starting_points"])
    count = int(case["fraction"] * len(points))
    approx = greedy_order(points, approx_initial_distances(points, starts), count)
    assert approx.tolist() == case["approx_greedy_order"].tolist()
    full = greedy_order(points, full_initial_distances(points), count)
    assert full.tolist() == case["greedy_order"].tolist()


@pytest.mark.parametrize("candidates", [1, 7, 64, 5000])
def test_batched_picks_equal_pick_by_pick(candidates, monkeypatch):
    monkeypatch.setattr(coreset, "CPU_CANDIDATES", candidates)
    points = torch.randn(700, 16, generator=generator()) * torch.linspace(0.2, 2, 16)
    distances = approx_initial_distances(points, torch.arange(10))
    steps = []
    order = greedy_order(points, distances, 200, steps.append)
    assert order.tolist() == pick_by_pick(points, distances, 200)
    assert sum(steps) == 200
    assert (len(steps) < 50) == (candidates > 1)  # more than one pick per pass, which is the point


def clustered(spread):
    """700 points around 40 centres: the distance of the picks falls off a cliff once every cluster has one."""
    centres = 10 * torch.randn(40, 16, generator=generator())
    points = centres.repeat_interleave(18, dim=0)[:700] + spread * torch.randn(700, 16, generator=generator(1))
    return points.double()  # in float32 so small distances between such long vectors are mostly rounding


@pytest.mark.parametrize("margin", [0.5, 0.97, 1.5])
@pytest.mark.parametrize("spread", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("count", [60, 300, 700])
def test_points_that_are_inactive_wrongly_become_active_again(spread, count, margin, monkeypatch):
    monkeypatch.setattr(coreset, "CPU_CANDIDATES", 16)
    monkeypatch.setattr(active_points, "FORECAST_MARGIN", margin)
    limits = [0.0]

    def record(self, limit, original=ActivePoints.set_limit):
        limits.append(limit)
        original(self, limit)

    monkeypatch.setattr(ActivePoints, "set_limit", record)
    points = clustered(spread)
    distances = approx_initial_distances(points, torch.arange(10))
    assert greedy_order(points, distances, count).tolist() == pick_by_pick(points, distances, count)
    assert limits[1:] or count == 60, "no point was ever inactive"
    lowered = any(limit < before for before, limit in pairwise(limits))
    if margin > 1 or (spread < 1 and count > 60):
        assert lowered, "no forecast was ever too high"


def test_inactive_points_catch_up_solved_by_hand():
    # Picking 0 leaves squared distances 1, 4, 9, 100; below a limit of 5 are the points 1 and 2.
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    active = ActivePoints(points, torch.tensor([400.0, 399, 398, 397, 396]), 5)
    active.add(torch.tensor([0]))
    assert active.share_below(5.0) == pytest.approx(3 / 5)  # the pick and the two
    active.set_limit(5.0)
    assert active.farthest() == 100
    positions, nearest, among, bound = active.candidates(1)
    assert (positions.tolist(), nearest.tolist(), among.tolist()) == ([1], [100], [[0]])
    assert bound == 9  # the other active point
    active.add(positions)
    assert active.candidates(2)[3] == 5  # no active point is left out, an inactive one may be as far as the limit
    active.add(torch.tensor([0]))  # the point at 3, which leaves none
    assert active.farthest() == -1
    active.set_limit(0.0)
    assert active.farthest() == 1  # points 1 and 2, each 1 from a pick: point 2 has caught up with that at 3
    assert active.order[:3].tolist() == [0, 4, 3]


def test_the_forecast_follows_a_power_law():
    forecast = RadiusForecast(1000)
    forecast.add(1, 8.0)
    assert forecast.last() == 0
    forecast.add(10, 4.0)
    assert forecast.last() == 0, "the first entry is too long ago"
    forecast.add(20, 2.0)
    assert forecast.last() == pytest.approx(0.97 * 2 * (20 / 1000))  # twice the picks, half the radius


def test_selection_order_on_a_line_solved_by_hand():
    points = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
    start = torch.tensor([3.0, 2.0, 1.0, 5.0])
    # 10 first; then min(start, distance to 10) = 3, 2, 1: 0; then 1 and 4 have 1 and 1: the first of them
    assert greedy_order(points, start, 3).tolist() == [3, 0, 1]
    assert full_initial_distances(points).tolist() == pytest.approx(
        [np.sqrt(1 + 16 + 100), np.sqrt(1 + 9 + 81), np.sqrt(16 + 9 + 36), np.sqrt(100 + 81 + 36)]
    )


def test_one_point_that_is_no_candidate_can_be_next(monkeypatch):
    monkeypatch.setattr(coreset, "CPU_CANDIDATES", 2)
    points = torch.tensor([[0.0], [0.1], [100.0]])
    assert greedy_order(points, torch.tensor([10.0, 9.0, 1.0]), 3).tolist() == [0, 2, 1]


def test_points_that_coincide_are_never_picked_twice():
    points = torch.ones(50, 4)
    points[7] = 3.0
    order = greedy_order(points, approx_initial_distances(points, torch.tensor([0])), 20).tolist()
    assert order[0] == 7
    assert len(set(order)) == 20


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_keeps_its_share_and_repeats_under_a_seed(name):
    features = torch.randn(400, 160, generator=generator())
    chosen = sample(features, name, 0.25, generator(1))
    assert len(chosen) == (400 if name == "identity" else 100)
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.tolist() == sample(features, name, 0.25, generator(1)).tolist()
    same = set(chosen.tolist()) == set(sample(features, name, 0.25, generator(2)).tolist())
    assert same == (name == "identity")


def test_greedy_coreset_covers_better_than_random():
    features = torch.randn(2000, 3, generator=generator())
    reach = {}
    for name in ("random", "greedy_coreset", "approx_greedy_coreset"):
        kept = features[sample(features, name, 0.05, generator(3))]
        reach[name] = torch.cdist(features, kept).amin(dim=1).max().item()
    assert reach["greedy_coreset"] < 0.6 * reach["random"]
    assert reach["approx_greedy_coreset"] < 0.6 * reach["random"]


def test_a_tiny_share_keeps_one_patch():
    assert len(sample(torch.randn(5, 4), "approx_greedy_coreset", 0.01, generator())) == 1


def test_projection_keeps_relative_distances_and_leaves_128_dimensions_alone():
    features = torch.randn(60, 2048, generator=generator())
    projected = project(features, generator())
    ratio = torch.pdist(projected) / torch.pdist(features)
    assert ratio.std() / ratio.mean() < 0.1
    narrow = torch.randn(5, 128)
    assert project(narrow, generator()) is narrow


@pytest.mark.parametrize("fraction", [0, 1.5, -0.1])
def test_shares_outside_0_1_are_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction must be above 0 and at most 1, got {float(fraction)}"):
        PatchCoreConfig(backbones=("net",), layers=(("layer",),), fraction=fraction)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_picks_equal_cpu_picks():
    points = torch.randn(20000, 128, generator=generator())
    distances = approx_initial_distances(points, torch.arange(10))
    expected = greedy_order(points, distances, 500)
    result = greedy_order(points.cuda(), distances.cuda(), 500)
    assert set(result.tolist()) == set(expected.tolist())
