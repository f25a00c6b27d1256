"""The detector: against the method's definition, one pass for all members, and its files."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from patchcore.config import TrainedOn
from patchcore.methods.patchcore import detector, patch_store
from patchcore.methods.patchcore.config import PatchCoreConfig, PatchCoreLoaderConfig, SamplerConfig
from patchcore.methods.patchcore.detector import (
    PatchCore,
    StoredPatchCore,
    TrainedPatchCore,
    devices_of_members,
    load_embedders,
)
from patchcore.methods.patchcore.index_file import read_flat_index, write_flat_index
from patchcore.methods.patchcore.model_files import INDEX_FILE, PARAMS_FILE, read_model
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = 64
TRAINED_ON = TrainedOn(resize=80, imagesize=SIZE, train_val_split=0.75, seed=5)
ONE = PatchCoreConfig(
    backbones=("efficientnet_lite0",),
    layers=(("blocks.2", "blocks.4"),),
    pretrain_embed_dimension=64,
    target_embed_dimension=48,
    weights="random",
)
THREE = replace(
    ONE,
    backbones=("efficientnet_lite0", "efficientnet_lite0.seed-1", "efficientnet_lite0"),
    layers=(("blocks.2", "blocks.4"), ("blocks.1",), ("blocks.3", "blocks.2")),
)
ALL = SamplerConfig(name="identity", fraction=1.0)


def images(count, seed=0):
    return torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def timer():
    return StageTimer(CPU)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(config=ONE, sampler=ALL):
    detector = PatchCore(load_embedders(config, SIZE, [CPU]), config, sampler, TRAINED_ON)
    return detector.fit(images(6).split(4), 6, generator(), timer())


def predicted(detector):
    return detector.predict(images(5, seed=1).split(2), timer())


@pytest.fixture(scope="module")
def stored_ensemble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    fitted(THREE).save(folder)
    return folder


def copied(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def loaded(folder):
    model = read_model(folder)
    return PatchCore.load(model, load_embedders(model.config, model.trained_on.imagesize, [CPU]))


def equal_to_the_bit(a, b):
    return all((getattr(a, name) == getattr(b, name)).all() for name in ("scores", "maps", "raw_scores"))


# Fit and predict


@pytest.mark.parametrize(("k", "patchsize"), [(1, 3), (3, 5)])
def test_scores_are_distances_to_the_good_patches(k, patchsize):
    detector = fitted(replace(ONE, num_nn=k, patchsize=patchsize))
    result = predicted(detector)
    (embedder,) = detector.embedders
    bank = embedder(images(6), timer()).flatten(0, 2).double()
    patches = embedder(images(5, seed=1), timer()).double()  # (N, h, w, D)
    distances = torch.cdist(patches.flatten(0, 2), bank).square().sort(dim=1).values[:, :k]
    grid = distances.mean(dim=1).reshape(patches.shape[:3])  # (N, h, w)
    maps = F.interpolate(grid[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
    maps = np.stack([gaussian_filter(one, sigma=4) for one in maps.numpy()])
    np.testing.assert_allclose(result.scores, grid.amax(dim=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(result.maps, maps, rtol=1e-4)
    assert (result.raw_scores == result.scores).all()
    assert result.raw_scores.shape == (1, 5)


def test_what_was_trained_on_is_not_anomalous():
    detector = fitted()
    known = detector.predict(images(6).split(4), timer())
    assert known.scores.max() < 1e-4 * predicted(detector).scores.min()


def test_the_sampler_decides_what_is_kept():
    assert fitted().costs()["bank_patches"] == 6 * 8 * 8
    half = fitted(sampler=SamplerConfig(name="approx_greedy_coreset", fraction=0.5))
    assert half.costs() == {"bank_patches": 6 * 8 * 8 / 2, "bank_mib": 6 * 8 * 8 / 2 * 48 * 4 / 2**20}
    everything = {tuple(patch) for patch in fitted().banks_[0].features.tolist()}
    assert {tuple(patch) for patch in half.banks_[0].features.tolist()} < everything


def test_fit_starts_afresh_and_repeats():
    sampler = SamplerConfig(name="random", fraction=0.1)
    detector = fitted(sampler=sampler)
    first = detector.banks_[0].features
    assert detector.fit([images(6)], 6, generator(), timer()) is detector
    assert len(detector.banks_) == 1
    torch.testing.assert_close(detector.banks_[0].features, first)


@pytest.mark.parametrize("promised", [5, 7])
def test_another_number_of_images_than_promised_is_refused(promised):
    detector = PatchCore(load_embedders(ONE, SIZE, [CPU]), ONE, ALL, TRAINED_ON)
    with pytest.raises((ValueError, RuntimeError)):
        detector.fit([images(6)], promised, generator(), timer())


def test_all_members_see_the_images_in_one_pass():
    detector = PatchCore(load_embedders(THREE, SIZE, [CPU]), THREE, ALL, TRAINED_ON)
    given = []

    def once(batches):
        for batch in batches:
            given.append(len(batch))
            yield batch

    detector.fit(once(images(6).split(4)), 6, generator(), timer())
    assert given == [4, 2]
    assert [len(bank) for bank in detector.banks_] == [6 * 8 * 8, 6 * 16 * 16, 6 * 4 * 4]
    detector.predict(once(images(5).split(2)), timer())
    assert given == [4, 2, 2, 2, 1]


def test_an_ensemble_is_the_mean_of_its_normalised_members():
    result = predicted(fitted(THREE))
    singles = [
        predicted(fitted(replace(THREE, backbones=(backbone,), layers=(layers,))))
        for backbone, layers in zip(THREE.backbones, THREE.layers, strict=True)
    ]
    for name in ("scores", "maps"):
        members = [getattr(single, name) for single in singles]
        normalised = [(member - member.min()) / (member.max() - member.min()) for member in members]
        np.testing.assert_allclose(getattr(result, name), np.mean(normalised, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.raw_scores, [single.scores for single in singles], rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_full_gpu_leaves_the_patches_to_the_host(on_gpu, monkeypatch):
    config = replace(THREE, faiss_on_gpu=on_gpu)
    sampler = SamplerConfig(name="approx_greedy_coreset", fraction=0.3)
    outputs = []
    for free in (2**40, 0):
        monkeypatch.setattr(patch_store, "available_bytes", lambda device, free=free: free)
        detector = PatchCore(load_embedders(config, SIZE, [torch.device("cuda:0")]), config, sampler, TRAINED_ON)
        detector.fit(images(6).split(4), 6, generator(), timer())
        outputs.append(predicted(detector))
    np.testing.assert_allclose(outputs[1].raw_scores, outputs[0].raw_scores, rtol=1e-3)


def test_members_are_spread_over_the_devices():
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    assert [embedder.device for embedder in load_embedders(THREE, SIZE, devices)] == [*devices, devices[0]]


# Files


@pytest.mark.parametrize(
    "config",
    [
        ONE,
        replace(ONE, num_nn=3, patchsize=5),
        replace(ONE, precision="bfloat16"),
        THREE,
        replace(THREE, num_nn=2),
    ],
    ids=lambda config: None,
)
def test_a_stored_detector_gives_the_same_to_the_last_bit(config, tmp_path):
    sampler = SamplerConfig(name="approx_greedy_coreset", fraction=0.2)
    detector = fitted(config, sampler)
    detector.save(tmp_path)
    again = loaded(tmp_path)
    assert equal_to_the_bit(predicted(detector), predicted(again))
    assert (again.config, again.sampler, again.trained_on) == (config, sampler, TRAINED_ON)
    assert again.costs() == detector.costs()


def test_the_files_are_named_as_in_the_original(stored_ensemble, tmp_path):
    fitted().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"nnscorer_search_index.faiss", "patchcore_params.json"}
    assert {path.name for path in stored_ensemble.iterdir()} == {
        f"Ensemble-{number}-3_{name}"
        for number in (1, 2, 3)
        for name in ("nnscorer_search_index.faiss", "patchcore_params.json")
    }


def test_the_loader_sets_how_the_bank_is_searched(stored_ensemble, tmp_path):
    loader = PatchCoreLoaderConfig(
        paths=(stored_ensemble,), num_nn=7, faiss_on_gpu=True, faiss_num_workers=2, weights_dir=tmp_path
    )
    expected = replace(THREE, num_nn=7, faiss_on_gpu=True, faiss_num_workers=2, weights_dir=tmp_path)
    assert read_model(stored_ensemble, loader).config == expected


def test_equal_models_share_their_backbones(tmp_path, monkeypatch):
    names = []
    real = detector.load_backbone
    monkeypatch.setattr(
        detector, "load_backbone", lambda name, **settings: (names.append(name), real(name, **settings))[1]
    )
    for name, config in (("a", ONE), ("b", ONE), ("c", replace(ONE, patchsize=1))):
        (tmp_path / name).mkdir()
        fitted(config).save(tmp_path / name)
    names.clear()
    models = {name: read_model(tmp_path / name) for name in ("a", "b", "c")}
    method = StoredPatchCore(models, PatchCoreLoaderConfig(paths=(tmp_path,)), [CPU])
    assert not method.fits
    assert method.detector("a").embedders == method.detector("b").embedders
    assert method.detector("c").embedders != method.detector("a").embedders
    assert names == ["efficientnet_lite0"] * 2


def test_categories_share_the_backbones_but_no_bank():
    method = TrainedPatchCore(ONE, ALL, TRAINED_ON, [CPU])
    first = method.detector("a").fit([images(2)], 2, generator(), timer())
    second = method.detector("b")
    assert first.embedders == second.embedders
    assert not second.banks_


def edited(name, **changes):
    def edit(folder):
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**stored, **changes}))

    return edit


def without(key):
    def edit(folder):
        stored = json.loads((folder / FIRST).read_text())
        del stored[key]
        (folder / FIRST).write_text(json.dumps(stored))

    return edit


def other_dimension(folder):
    write_flat_index(folder / INDEX, np.zeros((9, 47), dtype=np.float32))


FIRST, INDEX = f"Ensemble-1-3_{PARAMS_FILE}", f"Ensemble-2-3_{INDEX_FILE}"

# Each row: what happens to a stored ensemble, the file that the error names, and what it says.
DAMAGE = {
    "member gone": (lambda folder: (folder / FIRST).unlink(), "", f"missing {FIRST}"),
    "last member gone": (lambda folder: (folder / FIRST.replace("1-3", "3-3")).unlink(), "", "missing Ensemble-3-3"),
    "member too many": (lambda folder: (folder / f"Ensemble-4-4_{PARAMS_FILE}").write_text("{}"), "", "Ensemble-4-4"),
    "many members": (
        lambda folder: (folder / FIRST).rename(folder / f"Ensemble-1-99999999999_{PARAMS_FILE}"),
        "",
        "incomplete ensemble",
    ),
    "bank gone": (lambda folder: (folder / INDEX).unlink(), INDEX, f"belongs to Ensemble-2-3_{PARAMS_FILE}"),
    "bank cut short": (lambda folder: os.truncate(folder / INDEX, 999), INDEX, "damaged index"),
    "other dimension": (other_dimension, INDEX, "expected patches of 48 values, .* found 47"),
    "empty": (lambda folder: (folder / FIRST).write_text(""), FIRST, "expected the parameters of a PatchCore model"),
    "no JSON": (lambda folder: (folder / FIRST).write_bytes(b"\x80\x04}."), FIRST, "expected the parameters"),
    "deep JSON": (lambda folder: (folder / FIRST).write_text("[" * 10**5), FIRST, "expected the parameters"),
    "a list": (lambda folder: (folder / FIRST).write_text("[]"), FIRST, "expected the parameters"),
    "unknown field": (edited(FIRST, patchsiz=3), FIRST, "'patchsiz'"),
    "field missing": (without("patchsize"), FIRST, "'patchsize'"),
    "other format": (edited(FIRST, format=2), FIRST, "format 2, this version reads format 1"),
    "no format": (without("format"), FIRST, "'format' is missing"),
    "text for a number": (edited(FIRST, patchsize="3"), FIRST, "patchsize must be of type int, got '3'"),
    "number for text": (edited(FIRST, backbone=3), FIRST, "backbone must be of type str, got 3"),
    "text for layers": (edited(FIRST, layers="blocks.2"), FIRST, "layers must be of type"),
    "layers of numbers": (edited(FIRST, layers=[2]), FIRST, "layers must be names"),
    "truth for a number": (edited(FIRST, num_nn=True), FIRST, "num_nn must be of type int"),
    "no neighbour": (edited(FIRST, num_nn=0), f"Ensemble-2-3_{PARAMS_FILE}", "num_nn is 1"),
    "members differ": (edited(FIRST, patchsize=5), f"Ensemble-2-3_{PARAMS_FILE}", "patchsize is 3, in .* it is 5"),
    "no such backbone": (edited(FIRST, backbone="efficientnet_lit0"), "", "did you mean efficientnet_lite0"),
    "no such layer": (edited(FIRST, layers=["block.2"]), "", "has no layer 'block.2'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name, stored_ensemble, tmp_path):
    edit, file, message = DAMAGE[name]
    folder = copied(stored_ensemble, tmp_path / "model")
    edit(folder)
    with pytest.raises(PatchCoreError, match=message) as error:
        loaded(folder)
    assert "\n" not in str(error.value)
    if file:
        assert str(error.value).startswith(f"{folder / file}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patchsize": 0}, "patchsize must be at least 1, got 0"),
        ({"weights": "mine"}, "weights must be one of pretrained, random, got 'mine'"),
        ({"imagesize": 81}, "--imagesize 81 must be at most --resize 80"),
        ({"train_val_split": 0}, r"must be in \(0, 1\], got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"fraction": 2}, "fraction"),
        ({"fraction": None}, "sampler identity with fraction None"),
        ({"sampler": "mine"}, "sampler must be one of"),
        ({"layers": []}, "every backbone needs a layer"),
    ],
)
def test_values_out_of_range_are_named(changes, message, tmp_path):
    fitted().save(tmp_path)
    edited(PARAMS_FILE, **changes)(tmp_path)
    with pytest.raises(PatchCoreError, match=message) as error:
        read_model(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / PARAMS_FILE}: ")


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(PatchCoreError, match=r"no PatchCore model in .*: expected nnscorer_search_index.faiss and"):
        read_model(tmp_path)


@pytest.mark.parametrize("field", ["backbone", "layers", "weights", "sampler"])
def test_nothing_in_the_parameters_is_executed(field, tmp_path):
    fitted().save(tmp_path)
    trace = tmp_path / "was run"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    edited(PARAMS_FILE, **{field: [code] if field == "layers" else code})(tmp_path)
    with pytest.raises(PatchCoreError):
        loaded(tmp_path)
    assert not trace.exists()


def test_a_stored_bank_is_a_flat_index(tmp_path):
    detector = fitted()
    detector.save(tmp_path)
    assert (read_flat_index(tmp_path / INDEX_FILE) == detector.banks_[0].features).all()


def test_devices_are_dealt_out_to_the_members_of_an_ensemble():
    zero, one, two = (torch.device("cuda", index) for index in range(3))
    assert devices_of_members(3, [zero]) == [[zero], [zero], [zero]]
    assert devices_of_members(3, [zero, one]) == [[zero], [one], [zero]]
    assert devices_of_members(2, [zero, one, two]) == [[zero, two], [one]]
    assert devices_of_members(1, [zero, one]) == [[zero, one]]


def test_a_gpu_without_work_is_refused():
    config = PatchCoreConfig(backbones=("efficientnet_lite0",), layers=(("blocks.2",),), weights="random")
    with pytest.raises(PatchCoreError, match="2 GPUs for 1 backbones"):
        load_embedders(config, 64, [torch.device("cuda", 0), torch.device("cuda", 1)])
