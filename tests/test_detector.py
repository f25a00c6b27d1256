"""The Python API, which is the same for every method: fit, predict, save, load."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import patchcore
from image_files import one_line
from patchcore import FastFlow, PatchCore
from patchcore.methods.detector import Detector, TrainingImages
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.patchcore.config import PatchCoreConfig
from patchcore.methods.stored_model import Training
from patchcore.types import PatchCoreError, Result
from tiny_models import LITE0, ONE

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
GEOMETRY = {"resize": 72, "imagesize": SIZE, "device": "cpu"}
TWO = {**ONE, "backbones": [LITE0, f"{LITE0}.seed-1"], "layers": [["blocks.2", "blocks.4"], ["blocks.3"]]}
FLOW = {"backbone": LITE0, "steps": 2, "epochs": 1, "weights": "random"}
TILES = {**FLOW, "tile": 32, "tile_stride": 16, "match_brightness": True}
NEW: dict[str, Callable[..., Any]] = {
    "one network": lambda **settings: PatchCore(**{**GEOMETRY, **ONE, **settings}),
    "ensemble": lambda **settings: PatchCore(**{**GEOMETRY, **TWO, **settings}),
    "fastflow": lambda **settings: FastFlow(**{**GEOMETRY, **FLOW, **settings}),
    "fastflow on tiles": lambda **settings: FastFlow(**{**GEOMETRY, **TILES, **settings}),
}
KINDS = sorted(NEW)
METHODS = ["one network", "fastflow"]


def pixels(count: int, seed: int = 0, height: int = 80, width: int = 96) -> list[np.ndarray]:
    """(H, W, 3) uint8 pictures of different brightness."""
    draws = np.random.default_rng(seed)
    top = draws.integers(64, 256, count)
    return [draws.integers(0, high, (height, width, 3), dtype=np.uint8) for high in top]


@pytest.fixture(scope="module")
def fitted() -> dict[str, Detector]:
    return {kind: new().fit(pixels(5)) for kind, new in NEW.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The pictures that detectors are fitted to, as files in their order."""
    folder = tmp_path_factory.mktemp("good")
    for number, picture in enumerate(pixels(5)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def assert_same(result: Result, other: Result) -> None:
    """Equal to the last bit."""
    assert (result.score, result.member_scores) == (other.score, other.member_scores)
    np.testing.assert_array_equal(result.map, other.map)


# Images in, results out


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_gives_a_result_and_a_list_a_list(kind, fitted):
    detector, pictures = fitted[kind], pixels(3, seed=1)
    result = detector.predict(pictures[0])
    assert isinstance(result, Result)
    assert type(result.score) is float
    assert (result.map.shape, result.map.dtype) == ((SIZE, SIZE), np.float32)
    members = 2 if kind == "ensemble" else 1
    assert len(result.member_scores) == members
    assert result.score == pytest.approx(np.mean(result.member_scores))
    for some in (pictures, tuple(pictures)):
        results = detector.predict(some)
        assert [type(one) for one in results] == [Result] * 3
    assert len(detector.predict(pictures[:1])) == 1
    assert detector.predict([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_an_image_depends_on_no_other(kind, fitted):
    detector, pictures = fitted[kind], pixels(10, seed=1)
    among_ten = detector.predict(pictures, batch_size=1)
    for number in (0, 4, 9):
        alone = detector.predict(pictures[number])
        assert_same(alone, among_ten[number])
        assert alone.score != 0
    backwards = detector.predict(pictures[::-1], batch_size=1)
    for result, other in zip(among_ten, backwards[::-1], strict=True):
        assert_same(result, other)
    for result, other in zip(among_ten, detector.predict(pictures), strict=True):  # in batches of 8
        assert result.score == pytest.approx(other.score, rel=1e-4)
        np.testing.assert_allclose(result.map, other.map, rtol=1e-3, atol=1e-4 * np.abs(result.map).max())


@pytest.mark.parametrize("kind", METHODS)
def test_threads_may_share_a_detector(kind, fitted):
    detector, pictures = fitted[kind], pixels(10, seed=1)
    expected = detector.predict(pictures, batch_size=1)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(detector.predict, pictures, batch_size=1) for _ in range(8)]
    for results in found:
        for result, other in zip(results.result(), expected, strict=True):
            assert result.score == other.score


def test_an_ensemble_is_the_mean_of_its_members(fitted):
    [picture] = pixels(1, seed=1)
    result = fitted["ensemble"].predict(picture)
    singles = [
        NEW["ensemble"](backbones=[name], layers=[layers], sampler="identity").fit(pixels(5)).predict(picture)
        for name, layers in zip(TWO["backbones"], TWO["layers"], strict=True)
    ]
    whole = NEW["ensemble"](sampler="identity").fit(pixels(5)).predict(picture)
    assert whole.member_scores == tuple(single.score for single in singles)
    assert whole.score == pytest.approx(np.mean([single.score for single in singles]))
    np.testing.assert_allclose(whole.map, np.mean([single.map for single in singles], axis=0), rtol=1e-6)
    assert result.score >= whole.score  # with fewer patches in the banks


@pytest.mark.parametrize("kind", METHODS)
def test_a_path_a_pillow_image_and_an_array_are_the_same_image(kind, fitted, folder):
    detector, picture, path = fitted[kind], pixels(5)[2], folder / "2.png"
    expected = detector.predict(picture)
    for image in (path, str(path), Image.open(path), Image.fromarray(picture), picture[:, ::-1][:, ::-1]):
        assert_same(detector.predict(image), expected)
    mixed = detector.predict([str(path), picture, Image.open(path)], batch_size=1)
    for result in mixed:
        assert_same(result, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_a_pillow_image_of_any_kind_is_read_as_its_file_would_be(mode, fitted, tmp_path):
    grey = pixels(1, seed=1)[0][..., 0]
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels(1, seed=1)[0]).convert(mode)
    image.save(tmp_path / "image.png")
    detector = fitted["one network"]
    assert_same(detector.predict(image), detector.predict(tmp_path / "image.png"))


def test_a_pillow_image_stays_as_it_is(fitted):
    picture = Image.fromarray(GOOD).convert("P")
    picture.info["transparency"] = 0
    fitted["one network"].predict(picture)
    assert (picture.mode, picture.info["transparency"]) == ("P", 0)


def test_images_of_other_sizes_are_brought_to_the_network(fitted):
    for height, width in ((1, 1), (SIZE, 300), (300, SIZE)):
        [picture] = pixels(1, height=height, width=width)
        assert fitted["one network"].predict(picture).map.shape == (SIZE, SIZE)


ARRAY = r"an image as an array must be RGB pixels \(H, W, 3\) uint8 in \[0, 255\], got "
GOOD = pixels(1)[0]
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "float": (GOOD / 255, ValueError, ARRAY + r"\(80, 96, 3\) float64"),
    "float32": (GOOD.astype(np.float32), ValueError, ARRAY + r"\(80, 96, 3\) float32"),
    "16 bits": (GOOD.astype(np.uint16), ValueError, ARRAY + r"\(80, 96, 3\) uint16"),
    "signed": (GOOD.astype(np.int64), ValueError, ARRAY + r"\(80, 96, 3\) int64"),
    "truth": (GOOD > 9, ValueError, ARRAY + r"\(80, 96, 3\) bool"),
    "grey": (GOOD[..., 0], ValueError, ARRAY + r"\(80, 96\) uint8"),
    "with alpha": (np.zeros((8, 8, 4), np.uint8), ValueError, ARRAY + r"\(8, 8, 4\) uint8"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), ValueError, ARRAY + r"\(3, 8, 8\) uint8"),
    "a batch": (np.zeros((2, 8, 8, 3), np.uint8), ValueError, ARRAY + r"\(2, 8, 8, 3\) uint8"),
    "empty": (np.zeros((0, 8, 3), np.uint8), ValueError, ARRAY + r"\(0, 8, 3\) uint8"),
    "list of lists": ([[0, 0, 0]], TypeError, r"a path, a Pillow image or an array \(H, W, 3\) uint8, got list"),
    "nothing": (None, TypeError, "a path, a Pillow image or an array .*, got NoneType"),
    "nothing in a list": ([GOOD, None], TypeError, "a path, a Pillow image or an array .*, got NoneType"),
    "a number": (3, TypeError, "a path, a Pillow image or an array .*, got int"),
    "bytes": (b"PNG", TypeError, "a path, a Pillow image or an array .*, got bytes"),
    "a tensor": (
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        TypeError,
        "a path, a Pillow image or an array .*, got Tensor",
    ),
    "a generator": ((image for image in [GOOD]), TypeError, "a path, a Pillow image or an array .*, got generator"),
    "float pixels": (
        Image.fromarray(GOOD[..., 0].astype(np.float32)),
        PatchCoreError,
        "expected pixels of 8 or 16 bits",
    ),
    "no file": ("nowhere.png", PatchCoreError, "cannot read the image nowhere.png: No such file or directory"),
    "a folder": (Path(), PatchCoreError, r"cannot read the image \.: Is a directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_what_was_expected(name, fitted):
    image, error, message = REFUSED[name]
    with pytest.raises(error, match=message) as raised:
        fitted["one network"].predict(image)
    assert "\n" not in str(raised.value)


def test_it_is_refused_in_training_too():
    with pytest.raises(ValueError, match=ARRAY):
        NEW["one network"]().fit([GOOD / 255])


@pytest.mark.parametrize("kind", METHODS)
def test_what_was_not_fitted_neither_predicts_nor_saves(kind, tmp_path):
    detector = NEW[kind]()
    title = "PatchCore" if kind == "one network" else "FastFlow"
    with pytest.raises(PatchCoreError, match=f"this {title} has learnt nothing yet: fit it, or load a stored one"):
        detector.predict(GOOD)
    with pytest.raises(PatchCoreError, match=f"this {title} has learnt nothing yet: there is nothing to store"):
        detector.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Fitting


@pytest.mark.parametrize("kind", METHODS)
def test_a_folder_paths_pillow_images_and_arrays_train_alike(kind, fitted, folder):
    paths = sorted(folder.iterdir())
    sources = [folder, str(folder), paths, [str(path) for path in paths], [Image.open(path) for path in paths]]
    expected = fitted[kind].predict(GOOD)
    for source in sources:
        detector = NEW[kind]()
        assert detector.fit(source) is detector
        assert detector.training == fitted[kind].training
        assert_same(detector.predict(GOOD), expected)


def test_one_image_is_enough():
    detector = NEW["one network"](sampler="identity").fit(GOOD)
    assert detector.training.images == 1
    assert detector.predict(GOOD).score < 1e-3 * detector.predict(pixels(1, seed=1)[0]).score


@pytest.mark.parametrize("kind", METHODS)
def test_no_image_is_none_to_learn_from(kind, tmp_path):
    with pytest.raises(PatchCoreError, match="learns from one or more images, got none"):
        NEW[kind]().fit([])
    with pytest.raises(PatchCoreError, match="no image in") as error:
        NEW[kind]().fit(tmp_path)
    assert str(tmp_path) in one_line(error)
    with pytest.raises(PatchCoreError, match="nowhere"):
        NEW[kind]().fit(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", METHODS)
def test_the_seed_decides(kind, fitted):
    kinds = {"one network": {"sampler": "random"}}.get(kind, {})
    first, again, other = (NEW[kind](**kinds).fit(pixels(5), seed=seed) for seed in (0, 0, 1))
    assert_same(first.predict(GOOD), again.predict(GOOD))
    assert first.predict(GOOD).score != other.predict(GOOD).score
    assert other.training == replace(first.training, seed=1)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_what_is_no_seed_is_refused_before_the_training(seed):
    def never():
        raise AssertionError("an image was read")
        yield

    with pytest.raises(ValueError, match=f"seed must be .*, got {seed}"):
        NEW["one network"]().fit_batches(TrainingImages(batches=never(), count=5), Training(seed=seed))


def test_the_fingerprint_is_of_pixels_and_order_not_of_batches(fitted):
    def fingerprint(pictures, **settings):
        return NEW["one network"](sampler="random").fit(pictures, **settings).training.fingerprint

    pictures = pixels(5)
    expected = fingerprint(pictures)
    assert expected == fingerprint(pictures, batch_size=1) == fingerprint(pictures, batch_size=3, seed=1)
    assert expected == fitted["fastflow"].training.fingerprint == fitted["fastflow on tiles"].training.fingerprint
    assert expected != fingerprint(pictures[::-1])
    assert expected != fingerprint(pictures[:4])
    changed = [picture.copy() for picture in pictures]
    changed[3][40, 48, 0] ^= 128
    assert expected != fingerprint(changed)
    changed[3][40, 48, 0] ^= 128
    changed[3][0, 0] ^= 255  # the crop leaves the corner out
    assert expected == fingerprint(changed)


def test_the_fingerprint_is_a_hash_of_what_the_network_saw_of_every_image():
    pictures = pixels(3, height=SIZE, width=SIZE)
    detector = NEW["one network"](resize=SIZE).fit(pictures, batch_size=2)
    hashes = [hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in pictures]
    assert [photo.pixels for photo in detector.album.photos] == hashes
    assert detector.training.fingerprint == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_a_record_of_the_training_is_kept_where_it_is_asked_for(tmp_path):
    NEW["fastflow"](epochs=3).fit(pixels(5), record=tmp_path / "record")
    lines = (tmp_path / "record" / "training.csv").read_text().splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_hold_an_image_or_more(batch_size, fitted):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        fitted["one network"].predict([GOOD], batch_size=batch_size)


def test_a_detector_whose_training_failed_says_so(monkeypatch):
    detector = NEW["ensemble"]().fit(pixels(5))
    remembered = []

    def fail_at_the_second(self, *args):
        if remembered:
            raise MemoryError
        remembered.append(self)

    monkeypatch.setattr("patchcore.methods.patchcore.detector.Member.remember", fail_at_the_second)
    with pytest.raises(MemoryError):
        detector.fit(pixels(5, seed=1))
    with pytest.raises(PatchCoreError, match="has learnt nothing yet"):
        detector.predict(GOOD)


# Settings


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("one network", {"patchsiz": 3}, "no setting is called 'patchsiz'; there are backbones, layers"),
        ("fastflow", {"epoch": 3}, "no setting is called 'epoch'; there are backbone, layers, steps"),
        ("one network", {"patchsize": 0}, "patchsize must be at least 1, got 0"),
        ("one network", {"backbones": LITE0}, "backbones must be a list, got 'efficientnet_lite0'"),
        ("one network", {"layers": ["blocks.2"]}, "layers must be a list, got 'blocks.2'"),
        (
            "one network",
            {"sampler": "greedy"},
            "sampler must be one of approx_greedy_coreset, greedy_coreset, identity",
        ),
        ("fastflow", {"match_brightness": "no"}, "match_brightness must be bool, got 'no'"),
        ("fastflow", {"noise": float("nan")}, "noise must be finite, got nan"),
        ("one network", {"imagesize": 73}, "imagesize 73 is larger than resize 72"),
        ("one network", {"imagesize": 0}, "imagesize must be a number of pixels, at least 1, got 0"),
        ("fastflow", {"imagesize": -64}, "imagesize must be a number of pixels, at least 1, got -64"),
        ("one network", {"resize": "72"}, "resize must be a number of pixels, at least 1, got '72'"),
        ("fastflow", {"resize": 72.5}, "resize must be a number of pixels, at least 1, got 72.5"),
        ("fastflow", {"image_score": "max", "top_share": 0.1}, "--top_share has no effect with --image_score max"),
        ("one network", {"weights_dir": "here"}, "--weights_dir has no effect with --weights random"),
    ],
)
def test_settings_that_there_are_not_or_that_do_not_fit_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        NEW[kind](**settings)
    assert "\n" not in str(error.value)


def test_settings_come_by_name_or_as_a_configuration():
    config = PatchCoreConfig(**ONE)
    assert PatchCore(config, **GEOMETRY).config == NEW["one network"]().config == config
    with pytest.raises(ValueError, match="with the configuration or by name, got both: num_nn"):
        PatchCore(config, num_nn=3, **GEOMETRY)
    with pytest.raises(ValueError, match="the setting backbones is missing"):
        PatchCore(**GEOMETRY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbones": ["efficientnet_lit0"]}, "did you mean efficientnet_lite0"),
        ({"layers": [["block.2"]]}, "has no layer 'block.2'"),
    ],
)
def test_networks_that_there_are_not_are_named(settings, message):
    with pytest.raises(PatchCoreError, match=message) as error:
        NEW["one network"](**settings)
    one_line(error)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(PatchCoreError, match=f"device '{device}' cannot be had here") as error:
        NEW["one network"](device=device)
    one_line(error)


def test_a_workspace_has_its_devices(fitted):
    workspace = fitted["one network"].workspace
    with pytest.raises(ValueError, match="a workspace has its devices, got one and device 'cpu'"):
        NEW["one network"](workspace=workspace)
    assert NEW["one network"](workspace=workspace, device=None).workspace is workspace


def test_image_sizes_left_out_are_those_of_the_method():
    config = PatchCoreConfig(**ONE)
    flow = FastFlowConfig(**FLOW)
    sizes = {
        (256, 224): PatchCore(config, device="cpu"),
        (300, 224): PatchCore(config, device="cpu", resize=300),
        (256, 96): FastFlow(flow, device="cpu", imagesize=96),
        (100, 100): FastFlow(flow, device="cpu", resize=100),
    }
    for expected, detector in sizes.items():
        assert (detector.geometry.resize, detector.geometry.imagesize) == expected


# Storing


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_detector_is_the_fitted_one(kind, fitted, tmp_path):
    fitted[kind].save(tmp_path / "models" / "part")
    again = patchcore.load(str(tmp_path / "models" / "part"), device="cpu")
    assert type(again) is type(fitted[kind])
    assert (again.config, again.geometry) == (fitted[kind].config, fitted[kind].geometry)
    assert again.training == fitted[kind].training
    for picture in pixels(3, seed=1):
        assert_same(again.predict(picture), fitted[kind].predict(picture))


def test_a_folder_that_is_there_is_not_written_over(fitted, tmp_path):
    fitted["one network"].save(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(PatchCoreError, match="cannot write") as error:
        fitted["ensemble"].save(tmp_path / "model")
    assert str(tmp_path / "model") in one_line(error)
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_stored_detector_keeps_its_image_size(fitted, tmp_path):
    fitted["one network"].save(tmp_path / "model")
    assert patchcore.load(tmp_path / "model", resize=72, device="cpu").geometry.resize == 72
    with pytest.raises(PatchCoreError, match="stored with resize 72, got 80: leave it out"):
        patchcore.load(tmp_path / "model", resize=80, device="cpu")


def test_a_stored_detector_may_be_searched_with_other_neighbours(fitted, tmp_path):
    fitted["one network"].save(tmp_path / "model")
    [picture] = pixels(1, seed=1)
    scores = [patchcore.load(tmp_path / "model", num_nn=k, device="cpu").predict(picture).score for k in (1, 2, 5)]
    assert scores[0] == fitted["one network"].predict(picture).score
    assert scores == sorted(set(scores))  # farther neighbours lie farther
    with pytest.raises(PatchCoreError, match="999 asks for more neighbours than the memory bank has patches"):
        patchcore.load(tmp_path / "model", num_nn=999, device="cpu").predict(picture)


def test_a_stored_detector_may_be_scored_otherwise(fitted, tmp_path):
    fitted["fastflow"].save(tmp_path / "model")
    [picture] = pixels(1, seed=1)

    def predict(**settings):
        return patchcore.load(tmp_path / "model", device="cpu", **settings).predict(picture)

    plain = predict()
    highest, mean, whole = predict(image_score="max"), predict(image_score="mean"), predict(top_share=1.0)
    for result in (highest, mean, whole):
        np.testing.assert_array_equal(result.map, plain.map)
    assert highest.score == plain.map.max()
    assert mean.score == pytest.approx(plain.map.mean(), rel=1e-5) == whole.score
    assert mean.score < plain.score < highest.score
    assert (predict(position_score="log_likelihood").map != plain.map).any()
    assert (predict(density="full").map != plain.map).any()
    assert (predict(scale_weighting="equal").map != plain.map).any()
