"""What PatchCore shows of its bank: the most anomalous places, and where in which training photo the nearest lie."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import patchcore
from patchcore.datasets.loader import turn
from patchcore.methods.fastflow.detector import FastFlow
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.methods.patchcore.explaining import highest_places
from patchcore.methods.stored_model import Training
from patchcore.methods.training_images import TrainingImages
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
SETTINGS = {"weights": "random", "sampler": "identity", "fraction": 1.0, "device": "cpu", "resize": SIDE}


def new(**settings):
    single = {"backbones": ["efficientnet_lite0"], "layers": [["blocks.1"]]}
    return PatchCore(**{**single, **SETTINGS, "imagesize": SIDE, **settings})


def photos(count=4):
    """Smooth pictures, which JPEG keeps well."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 5, 5)).astype(np.float32)
    large = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(SIDE, SIDE), mode="bicubic")
    return large.clamp(0, 255).byte()


def array(image):
    return image.permute(1, 2, 0).contiguous().numpy()


def learnt(detector, images, views=1):
    several = torch.stack([turn(image, view) for image in images for view in range(views)])
    names = [f"photo {number}" for number in range(len(images))]
    training = TrainingImages(batches=[several], count=len(several), views=views, names=names)
    return detector.fit_batches(training, Training())


@pytest.fixture(scope="module")
def detector():
    return learnt(new(), photos())


def test_a_patch_that_was_learnt_is_found_where_it_came_from(detector):
    image = photos()[2]
    evidence = detector.explain(array(image))
    assert 1 <= len(evidence) <= 3
    for place in evidence:
        first, *others = place.nearest
        assert (first.photo, first.view, first.box) == ("photo 2", 0, place.box)
        assert place.score == first.distance == pytest.approx(0, abs=1e-6)
        assert np.abs(first.picture.astype(int) - array(image)).mean() < 4
        assert {patch.photo for patch in others} <= {"photo 0", "photo 1", "photo 3"}
        assert len({patch.photo for patch in place.nearest}) == 3
        assert [patch.distance for patch in place.nearest] == sorted(patch.distance for patch in place.nearest)


def test_places_are_the_highest_and_their_neighbourhoods_are_shown(detector):
    image = photos()[1].clone()
    image[:, 40:48, 16:24] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    result, evidence = detector.predict(array(image)), detector.explain(array(image))
    assert evidence[0].score == pytest.approx(result.score, rel=1e-5)
    scores = [place.score for place in evidence]
    assert scores == sorted(scores, reverse=True)
    left, top, right, bottom = evidence[0].box
    assert left < 24
    assert right > 16
    assert top < 48
    assert bottom > 40
    cell = SIDE // detector.members[0].grid[0]
    assert (right - left, bottom - top) == (3 * cell, 3 * cell)


@pytest.mark.parametrize("view", range(8))
def test_turned_views_are_shown_turned(view):
    images = photos(2)
    detector = learnt(new(), images, views=8)
    turned = turn(images[1], view)
    for place in detector.explain(array(turned)):
        first = place.nearest[0]
        assert (first.photo, first.view, first.box) == ("photo 1", view, place.box)
        assert np.abs(first.picture.astype(int) - array(turned)).mean() < 4


def test_the_bank_need_not_hold_every_patch():
    detector = learnt(new(sampler="random", fraction=0.2), photos())
    bank, origins = detector.members[0].bank.features, detector.members[0].origins
    grid = detector.members[0].grid
    for place in detector.explain(array(photos()[0])):
        for patch in place.nearest:
            own = origins // (grid[0] * grid[1]) == int(patch.photo[-1])
            assert own.any()
            assert patch.distance >= 0
    assert len(bank) == len(origins) < 4 * grid[0] * grid[1]


def test_one_photo_gives_several_patches():
    detector = learnt(new(), photos(1))
    nearest = detector.explain(array(photos()[3]))[0].nearest
    assert [patch.photo for patch in nearest] == ["photo 0"] * 3
    assert len({patch.box for patch in nearest}) == 3


def test_places_are_local_maxima_apart_from_each_other():
    grid = torch.zeros(9, 9)
    grid[4, 4], grid[4, 5], grid[4, 6], grid[0, 0], grid[8, 8] = 9, 8, 8.5, 3, 2
    assert highest_places(grid, 3) == [(4, 4), (0, 0), (8, 8)]
    assert highest_places(grid, 1) == [(4, 4), (4, 6), (0, 0)]
    flat = highest_places(torch.ones(3, 3), 1)
    assert flat == [(0, 0), (0, 2), (2, 0)]


def test_of_an_ensemble_the_member_is_shown_that_is_most_surprised():
    detector = new(
        backbones=["efficientnet_lite0", "efficientnet_lite0.seed-1"], layers=[["blocks.1"], ["blocks.2"]]
    ).fit([array(image) for image in photos(6)], calibration="leave_one_out")
    image = array(torch.flip(photos(7)[6], (0,)))
    result = detector.predict(image)
    for member in (0, 1):
        scores = np.ones((2, 6)) * result.member_scores[1 - member]
        scores[1 - member] *= 1e6
        scores[member] = 1
        detector.calibration = dataclasses.replace(detector.calibration, scores=scores)
        shown = detector.explain(image)[0]
        assert shown.score == pytest.approx(result.member_scores[member], rel=1e-5)


def test_stored_models_explain_the_same(detector, tmp_path):
    detector.save(tmp_path / "model")
    image = array(torch.flip(photos()[0], (0,)))
    again = patchcore.load(tmp_path / "model", device="cpu").explain(image)
    for one, other in zip(detector.explain(image), again, strict=True):
        assert (one.box, one.score) == (other.box, other.score)
        for patch, same in zip(one.nearest, other.nearest, strict=True):
            assert (patch.photo, patch.box, patch.distance) == (same.photo, same.box, same.distance)
            np.testing.assert_array_equal(patch.picture, same.picture)


def test_what_cannot_be_explained_is_refused(detector, tmp_path):
    detector.save(tmp_path / "model")
    (tmp_path / "model" / "training_images.zip").unlink()
    with pytest.raises(PatchCoreError):
        patchcore.load(tmp_path / "model", device="cpu").explainer()
    without = learnt(new(), photos())
    without.members[0].origins = None
    with pytest.raises(PatchCoreError, match="keeps no pictures"):
        without.explainer()
    with pytest.raises(PatchCoreError, match="keeps no pictures"):
        new().explainer()
    damaged = learnt(new(), photos())
    damaged.members[0].origins[0] = 10**6
    with pytest.raises(PatchCoreError, match="damaged"):
        damaged.explainer()
    flow = FastFlow(backbone="efficientnet_lite0", weights="random", device="cpu", resize=SIDE, imagesize=SIDE)
    with pytest.raises(PatchCoreError, match="FastFlow remembers no good patches"):
        flow.explainer()
