"""PatchCore: against the method's definition, one pass for all members, and what it shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from patchcore.evaluation import predictions_of
from patchcore.features import workspace
from patchcore.features.workspace import Workspace
from patchcore.methods.detector import TrainingImages
from patchcore.methods.patchcore import patch_store
from patchcore.methods.patchcore.config import PatchCoreConfig
from patchcore.methods.patchcore.detector import PatchCore, devices_of_members
from patchcore.methods.patchcore.index_file import read_flat_index
from patchcore.methods.stored_model import Training, read_model
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError, Sample

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = 64
GEOMETRY = {"resize": 80, "imagesize": SIZE}
ONE = PatchCoreConfig(
    backbones=("efficientnet_lite0",),
    layers=(("blocks.2", "blocks.4"),),
    pretrain_embed_dimension=64,
    target_embed_dimension=48,
    weights="random",
    sampler="identity",
)
THREE = replace(
    ONE,
    backbones=("efficientnet_lite0", "efficientnet_lite0.seed-1", "efficientnet_lite0"),
    layers=(("blocks.2", "blocks.4"), ("blocks.1",), ("blocks.3", "blocks.2")),
)
CPU_SPACE = Workspace([CPU])


def images(count, seed=0):
    return torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def training(count=6, promised=None, batches=None):
    return TrainingImages(batches=images(count).split(4) if batches is None else batches, count=promised or count)


def new(config=ONE, space=CPU_SPACE):
    return PatchCore(config, workspace=space, **GEOMETRY)


def fitted(config=ONE, **settings):
    return new(replace(config, **settings)).fit_batches(training())


def predicted(detector):
    return detector.predict_batches(images(5, seed=1).split(2))


def banks_of(detector):
    return [member.bank for member in detector.members]


# Fit and predict


@pytest.mark.parametrize(("k", "patchsize"), [(1, 3), (3, 5)])
def test_scores_are_distances_to_the_good_patches(k, patchsize):
    detector = fitted(num_nn=k, patchsize=patchsize)
    result = predicted(detector)
    (member,) = detector.members
    timer = StageTimer(CPU)
    bank = member.embed(images(6), timer).flatten(0, 2).double()
    patches = member.embed(images(5, seed=1), timer).double()  # (N, h, w, D)
    distances = torch.cdist(patches.flatten(0, 2), bank).square().sort(dim=1).values[:, :k]
    grid = distances.mean(dim=1).reshape(patches.shape[:3])  # (N, h, w)
    maps = F.interpolate(grid[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
    maps = np.stack([gaussian_filter(one, sigma=4) for one in maps.numpy()])
    np.testing.assert_allclose(result.scores[0], grid.amax(dim=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(result.maps[0], maps, rtol=1e-4)
    assert (result.scores.shape, result.scores.dtype) == ((1, 5), np.float64)
    assert (result.maps.shape, result.maps.dtype) == ((1, 5, SIZE, SIZE), np.float32)


def test_what_was_trained_on_is_not_anomalous():
    detector = fitted()
    known = detector.predict_batches(images(6).split(4))
    assert known.scores.max() < 1e-4 * predicted(detector).scores.min()


def test_the_sampler_decides_what_is_kept():
    assert fitted().costs()["bank_patches"] == 6 * 8 * 8
    half = fitted(sampler="approx_greedy_coreset", fraction=0.5)
    assert half.costs() == {"bank_patches": 6 * 8 * 8 / 2, "bank_mib": 6 * 8 * 8 / 2 * 48 * 4 / 2**20}
    everything = {tuple(patch) for patch in banks_of(fitted())[0].features.tolist()}
    assert {tuple(patch) for patch in banks_of(half)[0].features.tolist()} < everything


def test_fit_starts_afresh_and_repeats():
    detector = fitted(sampler="random", fraction=0.1)
    first = banks_of(detector)[0].features
    assert detector.fit_batches(training(batches=[images(6)])) is detector
    assert len(banks_of(detector)) == 1
    torch.testing.assert_close(banks_of(detector)[0].features, first)
    detector.fit_batches(training(), Training(seed=1))
    assert not torch.equal(banks_of(detector)[0].features, first)


@pytest.mark.parametrize("promised", [5, 7])
def test_another_number_of_images_than_promised_is_refused(promised):
    with pytest.raises((ValueError, RuntimeError)):
        new().fit_batches(training(promised=promised, batches=[images(6)]))


def test_more_neighbours_than_patches_are_refused_before_the_training():
    def never():
        raise AssertionError("an image was read")
        yield

    for sampler, kept in (("identity", 6 * 8 * 8), ("random", 38)):
        config = replace(ONE, sampler=sampler, fraction=0.1, num_nn=kept + 1)
        with pytest.raises(PatchCoreError, match=f"num_nn {kept + 1} asks for more .* will have patches, {kept}:"):
            new(config).fit_batches(training(batches=never()))


def test_a_model_without_a_sampler_cannot_be_fitted():
    with pytest.raises(ValueError, match="does not name a sampler: fit a detector that has one"):
        new(replace(ONE, sampler=None, fraction=None)).fit_batches(training())


def test_all_members_see_the_images_in_one_pass():
    detector = new(THREE)
    given = []

    def once(batches):
        for batch in batches:
            given.append(len(batch))
            yield batch

    detector.fit_batches(training(batches=once(images(6).split(4))))
    assert given == [4, 2]
    assert [len(bank) for bank in banks_of(detector)] == [6 * 8 * 8, 6 * 16 * 16, 6 * 4 * 4]
    detector.predict_batches(once(images(5).split(2)))
    assert given == [4, 2, 2, 2, 1]


def test_an_ensemble_is_the_mean_of_its_normalised_members():
    output = predicted(fitted(THREE))
    singles = [
        predicted(fitted(replace(THREE, backbones=(backbone,), layers=(layers,))))
        for backbone, layers in zip(THREE.backbones, THREE.layers, strict=True)
    ]
    samples = [Sample(path=f"{number}.png", category="a", split="test", defect="good") for number in range(5)]
    result = predictions_of(output, samples, None)
    for name in ("scores", "maps"):
        members = [getattr(single, name)[0] for single in singles]
        np.testing.assert_allclose(getattr(output, name), members, rtol=1e-6)  # raw, each as if alone
        normalised = [(member - member.min()) / (member.max() - member.min()) for member in members]
        np.testing.assert_allclose(getattr(result, name), np.mean(normalised, axis=0), rtol=1e-5, atol=1e-6)
    assert (result.raw_scores == output.scores).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_full_gpu_leaves_the_patches_to_the_host(on_gpu, monkeypatch):
    config = replace(THREE, faiss_on_gpu=on_gpu, sampler="approx_greedy_coreset", fraction=0.3)
    outputs = []
    for free in (2**40, 0):
        monkeypatch.setattr(patch_store, "available_bytes", lambda device, free=free: free)
        outputs.append(predicted(new(config, Workspace.on("cuda:0")).fit_batches(training())))
    np.testing.assert_allclose(outputs[1].scores, outputs[0].scores, rtol=1e-3)


# Networks and devices


def test_members_are_spread_over_the_devices(monkeypatch):
    asked = []  # since torch drops the number of a CPU, the encoders themselves do not tell
    real = Workspace.encoder
    monkeypatch.setattr(
        Workspace, "encoder", lambda *args, **settings: (asked.append(settings["device"]), real(*args, **settings))[1]
    )
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    detector = new(THREE, Workspace(devices))
    assert asked == [*devices, devices[0]]
    assert [member.devices for member in detector.members] == [[device] for device in asked]


@pytest.fixture
def loaded_backbones(monkeypatch):
    """The names of the backbones that are loaded from here on."""
    names = []
    real = workspace.load_backbone
    monkeypatch.setattr(
        workspace, "load_backbone", lambda name, **settings: (names.append(name), real(name, **settings))[1]
    )
    return names


def test_detectors_of_a_workspace_share_their_backbones_but_no_bank(loaded_backbones):
    space = Workspace([CPU])
    first = new(space=space).fit_batches(training(2))
    second = new(space=space)
    third = new(replace(ONE, patchsize=1), space)
    assert first.encoders == second.encoders == third.encoders
    assert not any(hasattr(member, "bank") for member in second.members)
    assert loaded_backbones == ["efficientnet_lite0"]
    assert new(replace(ONE, layers=(("blocks.2",),)), space).encoders != first.encoders
    assert new(replace(ONE, precision="bfloat16"), space).encoders != first.encoders


def test_stored_models_share_their_backbones(loaded_backbones, tmp_path):
    for name, config in (("a", ONE), ("b", ONE), ("c", replace(ONE, patchsize=1))):
        fitted(config).save(tmp_path / name)
    loaded_backbones.clear()
    space = Workspace([CPU])
    a, b, c = (
        PatchCore.from_stored(read_model(tmp_path / name, {"patchcore": PatchCore.method}), space)
        for name in ("a", "b", "c")
    )
    assert a.encoders == b.encoders == c.encoders
    assert banks_of(a) != banks_of(b)
    assert loaded_backbones == ["efficientnet_lite0"]


def test_devices_are_dealt_out_to_the_members_of_an_ensemble():
    zero, one, two = (torch.device("cuda", index) for index in range(3))
    assert devices_of_members(3, [zero]) == [[zero], [zero], [zero]]
    assert devices_of_members(3, [zero, one]) == [[zero], [one], [zero]]
    assert devices_of_members(2, [zero, one, two]) == [[zero, two], [one]]
    assert devices_of_members(1, [zero, one]) == [[zero, one]]


def test_a_gpu_without_work_is_refused():
    two = Workspace([torch.device("cuda", 0), torch.device("cuda", 1)])
    with pytest.raises(PatchCoreError, match="2 GPUs for 1 backbones"):
        new(ONE, two)


# Files


def test_the_files_are_named_as_in_the_original(tmp_path):
    fitted().save(tmp_path / "one")
    fitted(THREE).save(tmp_path / "three")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        *("nnscorer_search_index.faiss", "origins.npy", "training_images.zip", "model.json")
    }
    assert {path.name for path in (tmp_path / "three").iterdir()} == {
        *("model.json", "training_images.zip"),
        *(f"Ensemble-{number}-3_nnscorer_search_index.faiss" for number in (1, 2, 3)),
        *(f"Ensemble-{number}-3_origins.npy" for number in (1, 2, 3)),
    }


def test_a_stored_bank_is_a_flat_index(tmp_path):
    detector = fitted()
    detector.save(tmp_path / "model")
    bank = read_flat_index(tmp_path / "model" / "nnscorer_search_index.faiss")
    assert (bank == banks_of(detector)[0].features).all()
