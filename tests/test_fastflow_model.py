"""The flows by their invariants: inverse, log-determinant, gradients, and a density that is known."""

import math

import pytest
import torch

from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.coupling import CouplingStep
from patchcore.methods.fastflow.model import FastFlowModel, Flow
from patchcore.methods.fastflow.tiles import Tiling

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """A module whose parameters are no longer those of the identity."""
    draws = generator(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=draws)
    return module


def flow(channels: int, kernel_sizes: list[int], **settings) -> Flow:
    settings = {"hidden_ratio": 1.0, "clamp": 2.0, **settings}
    return shaken(Flow(channels, kernel_sizes=kernel_sizes, generator=generator(), **settings))


@pytest.mark.parametrize("channels", [2, 5, 8])
@pytest.mark.parametrize("kernel_sizes", [[1], [3], [3, 1, 3]])
def test_inverse_of_forward_is_the_input(channels, kernel_sizes):
    model = flow(channels, kernel_sizes)
    x = torch.randn(2, channels, 5, 7, generator=generator(1))
    z, log_det = model(x)
    assert z.shape == x.shape
    assert log_det.shape == (2, 5, 7)
    assert (z - x).abs().max() > 0.1  # or the identity would pass
    assert (model.inverse(z) - x).abs().max() < 1e-4


@pytest.mark.parametrize(("channels", "kernel_sizes"), [(2, [3]), (3, [1, 3]), (4, [3, 1, 3])])
def test_log_determinant_is_that_of_the_jacobian(channels, kernel_sizes):
    model = flow(channels, kernel_sizes).double()
    x = torch.randn(1, channels, 3, 2, generator=generator(1), dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda value: model(value)[0], x).reshape(x.numel(), x.numel())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert abs(float(expected)) > 0.1
    assert float(model(x)[1].sum().detach()) == pytest.approx(float(expected), abs=1e-9)


def test_a_gradient_reaches_every_parameter():
    model = flow(6, [3, 1])
    z, log_det = model(torch.randn(2, 6, 4, 4, generator=generator(1)))
    (z.square().sum() - log_det.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_new_step_only_permutes():
    step = CouplingStep(6, kernel_size=3, hidden_ratio=1.0, clamp=2.0, generator=generator())
    x = torch.randn(2, 6, 4, 4, generator=generator(1))
    y, log_det = step(x)
    torch.testing.assert_close(y, x[:, step.permutation])
    assert sorted(step.permutation.tolist()) == list(range(6))
    assert not log_det.any()


def test_the_coupled_scale_is_clamped():
    step = shaken(CouplingStep(4, kernel_size=1, hidden_ratio=1.0, clamp=0.5, generator=generator()), scale=100)
    _, log_det = step(torch.randn(8, 4, 4, 4, generator=generator(1)))
    coupled = log_det - step.log_scale.sum()
    assert float(coupled.detach().abs().max()) == pytest.approx(2 * 0.5, abs=1e-3)  # two channels change


def test_hidden_ratio_sets_the_width_of_the_subnet():
    widths = [flow(8, [3], hidden_ratio=ratio).steps[0].enter.out_channels for ratio in (0.25, 1.0, 2.0)]
    assert widths == [1, 4, 8]


def test_one_channel_cannot_be_coupled():
    with pytest.raises(ValueError, match="two channels"):
        CouplingStep(1, kernel_size=1, hidden_ratio=1.0, clamp=2.0, generator=generator())


def test_training_finds_a_known_density():
    """Two channels, the second the first plus noise of a third: the entropy is known, and the flow comes close."""
    draws = generator(3)
    first = torch.randn(256, 1, 2, 2, generator=draws)
    x = torch.cat([first, first + torch.randn(first.shape, generator=draws) / 3], dim=1)
    entropy = (2 * 0.5 * math.log(2 * math.pi * math.e) + math.log(1 / 3)) / 2  # nats per dimension
    model = Flow(2, kernel_sizes=[1] * 4, hidden_ratio=8, clamp=2, generator=generator())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        z, log_det = model(x)
        loss = (0.5 * (z.square() + math.log(2 * math.pi)).sum(1) - log_det).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > entropy + 0.2
    assert losses[-1] == pytest.approx(entropy, abs=0.05)


def config(**settings) -> FastFlowConfig:
    return FastFlowConfig(**{"backbone": "any", "steps": 2, **settings})


def maps_of(*channels: int, seed: int = 1, count: int = 6) -> list[torch.Tensor]:
    draws = generator(seed)
    return [5 + 3 * torch.randn(count, c, 8 // 2**i, 6 // 2**i, generator=draws) for i, c in enumerate(channels)]


def test_features_are_standardised_by_channel():
    model = FastFlowModel([4, 6], config(), generator())
    maps = maps_of(4, 6)
    maps[0][:, 2] = 7  # a channel that says nothing must not be blown up
    model.fit_normalisation([[x[:2] for x in maps], [x[2:] for x in maps]])
    first, second = (model._normalised(scale, x) for scale, x in enumerate(maps))
    assert first.isfinite().all()
    assert not first[:, 2].any()
    torch.testing.assert_close(second.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(second.std((0, 2, 3), correction=0), torch.ones(6), atol=1e-5, rtol=0)


def test_layer_norm_is_by_image():
    model = FastFlowModel([4], config(feature_norm="layer_norm"), generator())
    normalised = model._normalised(0, maps_of(4)[0])
    torch.testing.assert_close(normalised.mean((1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)


def test_log_likelihoods_of_a_new_flow_are_the_standard_normals():
    model = FastFlowModel([2], config(feature_norm="standardise"), generator())
    (values,) = model([torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)])
    expected = -0.5 * ((1 + 4) / 2 + math.log(2 * math.pi))  # the mean of two dimensions
    assert values.flatten().tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("density", ["latent", "full"])
@pytest.mark.parametrize("position_score", ["likelihood", "log_likelihood"])
def test_standardised_scores_of_the_training_set_have_mean_0_and_deviation_1(density, position_score):
    model = shaken(FastFlowModel([4, 6], config(), generator()), scale=0.1)
    maps = maps_of(4, 6)
    model.fit_normalisation([maps])
    model.fit_score_statistics([[x[:4] for x in maps], [x[4:] for x in maps]])
    with torch.no_grad():
        scores = model.position_scores(model(maps), config(density=density, position_score=position_score))
    for score in scores:
        assert float(score.mean()) == pytest.approx(0, abs=1e-4)
        assert float(score.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_position_scores_by_hand():
    model = FastFlowModel([2], config(), generator())
    values = [torch.tensor([-1.0, -3.0]).reshape(2, 1, 1, 1)]  # latent, full

    def score(**settings) -> float:
        return float(model.position_scores(values, config(scale_weighting="equal", **settings))[0])

    assert score(density="latent", position_score="log_likelihood") == 1
    assert score(density="full", position_score="log_likelihood") == 3
    assert score(density="latent", position_score="likelihood") == pytest.approx(1 - math.exp(-1))
    assert score(density="full", position_score="likelihood") == pytest.approx(1 - math.exp(-3))


def test_noise_moves_what_the_flow_sees():
    model = FastFlowModel([4], config(), generator())
    maps = maps_of(4)
    plain, noisy = model(maps)[0], model(maps, 0.5, generator(2))[0]
    again = model(maps, 0.5, generator(2))[0]
    assert not torch.equal(plain, noisy)
    assert torch.equal(noisy, again)


def test_bfloat16_stays_close_to_float32():
    maps = maps_of(4, 6)
    values = []
    for precision in ("float32", "bfloat16"):
        model = shaken(FastFlowModel([4, 6], config(precision=precision), generator()), scale=0.1)
        model.fit_normalisation([maps])
        with torch.no_grad():
            values.append(model(maps))
    for exact, coarse in zip(*values, strict=True):
        assert coarse.dtype == torch.float32
        assert not torch.equal(exact, coarse)
        torch.testing.assert_close(exact, coarse, atol=0.05, rtol=0.05)


def test_tiles_cover_the_image_and_end_at_its_border():
    tiling = Tiling((10, 7), 4, 3)
    assert tiling.corners == [(y, x) for y in (0, 3, 6) for x in (0, 3)]
    assert Tiling((10, 8), 4, 3).corners[:3] == [(0, 0), (0, 3), (0, 4)]
    images = torch.arange(2 * 10 * 7.0).reshape(2, 1, 10, 7)
    tiles = tiling.cut(images)
    assert tiles.shape == (2 * 6, 1, 4, 4)
    assert torch.equal(tiles[6 + 3], images[1, :, 3:7, 3:7])


@pytest.mark.parametrize(
    ("size", "tile", "stride"), [((10, 7), 4, 3), ((9, 9), 9, 9), ((32, 20), 8, 8), ((33, 21), 8, 5)]
)
def test_blending_what_was_cut_gives_it_back(size, tile, stride):
    tiling = Tiling(size, tile, stride)
    maps = torch.randn(3, *size, generator=generator())
    torch.testing.assert_close(tiling.blend(tiling.cut(maps[:, None])[:, 0]), maps)


def test_blending_leaves_no_seam():
    """Tiles that disagree by 1 pass into each other over their overlap instead of at an edge."""
    tiling = Tiling((16, 48), 16, 8)
    tiles = (torch.arange(len(tiling)) % 2).float()[:, None, None].expand(-1, 16, 16)
    steps = tiling.blend(tiles).diff(dim=2).abs()
    assert float(steps.max()) < 0.25
    assert float(steps.sum(2).max()) > 3  # it does go up and down


def test_a_tile_must_fit():
    with pytest.raises(ValueError, match="do not fit into images of 8 x 20"):
        Tiling((8, 20), 9, 4)
