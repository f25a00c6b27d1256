"""How detectors are calibrated: by leaving one image out, by folds, with images that were held out."""

import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import patchcore
from patchcore.features.workspace import Workspace
from patchcore.methods import METHODS
from patchcore.methods.fastflow.detector import FastFlow
from patchcore.methods.patchcore import detector as detector_module
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.methods.stored_model import Photo
from patchcore.methods.training_images import Album, TrainingImages, hash_of
from patchcore.types import PatchCoreError

SIDE = 64
CPU = Workspace([torch.device("cpu")])
ONE = {"backbones": ["efficientnet_lite0"], "layers": [["blocks.2"]]}
TWO = {"backbones": ["efficientnet_lite0", "efficientnet_lite0.seed-1"], "layers": [["blocks.2"], ["blocks.4"]]}
SMALL = {"weights": "random", "target_embed_dimension": 128, "resize": SIDE, "imagesize": SIDE}


def pixels(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def new(networks=ONE, **settings):
    return PatchCore(**networks, **{**SMALL, **settings}, workspace=CPU)


@pytest.mark.parametrize("networks", [ONE, TWO], ids=["one network", "ensemble"])
@pytest.mark.parametrize("num_nn", [1, 3])
def test_leaving_an_image_out_of_a_whole_bank_is_training_without_it(networks, num_nn):
    images = pixels(5)
    settings = {"sampler": "identity", "num_nn": num_nn}
    found = new(networks, **settings).fit(images).calibration
    for i, image in enumerate(images):
        others = new(networks, **settings).fit(images[:i] + images[i + 1 :], calibration="none")
        expected = others.predict(image).member_scores
        np.testing.assert_allclose(found.scores[:, i], expected, rtol=1e-5)
    maps = np.stack(
        [new(networks, **settings).fit(images[:i] + images[i + 1 :]).predict(images[i]).map for i in range(5)]
    )
    sample = maps[:, ::4, ::4]
    np.testing.assert_allclose(found.pixels, np.quantile(sample, [0.5, 0.9, 0.99, 0.999, 0.9999]), rtol=1e-5)


def test_without_its_own_rows_a_coreset_is_at_least_as_far():
    images = pixels(6)
    detector = new(fraction=0.3).fit(images)
    in_sample = np.array([result.score for result in detector.predict(images)])
    (member,) = detector.members
    assert (detector.calibration.scores[0] > in_sample - 1e-3).all()
    own = member.origins // 64 == 2  # 64 px at reduction 8: a grid of 8 x 8
    rows = member.bank.features[~own]
    patches = member.embed(torch.from_numpy(images[2]).permute(2, 0, 1)[None], _Untimed()).flatten(0, 2)
    distances = torch.cdist(patches.double(), rows.double()).square().amin(dim=1)
    assert detector.calibration.scores[0, 2] == pytest.approx(float(distances.max()), rel=1e-5)


def test_views_of_a_photo_are_left_out_together():
    images = pixels(4)
    turned = torch.from_numpy(np.stack([np.rot90(image, k).copy() for image in images for k in (0, 1)]))
    batches = [turned.permute(0, 3, 1, 2)]
    detector = new(sampler="identity").fit_batches(
        TrainingImages(batches=batches, count=8, views=2, leave_one_out=True, names=list("abcd"))
    )
    assert [photo.name for photo in detector.album.photos] == ["a", "b", "c", "d"]
    for i in range(4):
        rest = [turned[j].numpy() for j in range(8) if j // 2 != i]
        expected = new(sampler="identity").fit(rest, calibration="none").predict(images[i]).score
        assert detector.calibration.scores[0, i] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "num_nn"), [(1, 1), (2, 65)])  # an image has 64 patches
def test_too_few_images_to_leave_one_out_are_said_to_be(count, num_nn, caplog):
    caplog.set_level(logging.WARNING)
    detector = new(sampler="identity", num_nn=num_nn).fit(pixels(count))
    assert detector.calibration is None
    assert "not calibrated, so there are no verdicts: without one of the" in caplog.text
    assert detector.predict(pixels(1)[0]).verdict is None


def test_what_takes_long_is_done_only_where_it_is_asked_for(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(detector_module, "CHEAP_SECONDS", 0.0)
    monkeypatch.setattr(detector_module, "CHEAP_SHARE", 0.0)
    images = pixels(4)
    assert new().fit(images).calibration is None
    assert "--calibration leave_one_out does it all the same" in caplog.text
    assert len(new().fit(images, calibration="leave_one_out").calibration) == 4
    monkeypatch.setattr(detector_module, "CHEAP_SECONDS", 1000.0)
    assert len(new().fit(images).calibration) == 4


@pytest.mark.parametrize("sampler", ["identity", "approx_greedy_coreset"])
def test_images_alike_are_left_out_together(sampler, caplog):
    caplog.set_level(logging.WARNING)
    images = pixels(6)
    twice = new(sampler=sampler, fraction=0.5).fit([*images, *images[:3]])
    assert "3 training images are the same as others, pixel by pixel: remove them" in caplog.text
    scores = twice.calibration.scores[0]
    np.testing.assert_allclose(scores[:3], scores[6:], rtol=1e-5)
    for i, image in enumerate(images):
        others = twice.members[0].bank.features[twice.members[0].origins // 64 % 6 != i]
        patches = twice.members[0].embed(torch.from_numpy(image).permute(2, 0, 1)[None], _Untimed()).flatten(0, 2)
        expected = torch.cdist(patches.double(), others.double()).square().amin(dim=1).max()
        assert scores[i] == pytest.approx(float(expected), rel=1e-5)


def test_images_alike_calibrate_once(caplog):
    caplog.set_level(logging.WARNING)
    others = pixels(5, seed=1)
    detector = new().fit(pixels(3), calibration="none").calibrate([*others, others[0], *[others[3]] * 9], batch_size=4)
    assert len(detector.calibration) == 5
    assert "10 images are the same as others, pixel by pixel: each counts once" in caplog.text


def test_folds_are_scored_by_what_was_fitted_to_the_others(monkeypatch):
    images, fitted = pixels(7), []
    real = PatchCore.fit_batches

    def fit_batches(self, training, *args, **kwargs):
        fitted.append((self, training.count))
        return real(self, training, *args, **kwargs)

    monkeypatch.setattr(PatchCore, "fit_batches", fit_batches)
    detector = new(fraction=0.2).fit(images, calibration="folds", folds=3)
    (whole, *of_folds) = fitted
    assert (whole, detector.calibration.kind) == ((detector, 7), "folds")
    assert sorted(count for _, count in of_folds) == [4, 5, 5]
    for i, image in enumerate(images):
        unseen = [fold for fold, _ in of_folds if hash_of(image) not in {photo.pixels for photo in fold.album.photos}]
        assert len(unseen) == 1
        assert detector.calibration.scores[0, i] == pytest.approx(unseen[0].predict(image).score, rel=1e-5)
    for folds in (1, 8):
        with pytest.raises(PatchCoreError, match="from 2 to 7 folds"):
            new(fraction=0.2).fit(images, calibration="folds", folds=folds)


def test_every_image_its_own_fold_of_a_whole_bank_is_leaving_one_out():
    images = pixels(4)
    left_out = new(sampler="identity").fit(images).calibration
    folds = new(sampler="identity").fit(images, calibration="folds", folds=4).calibration
    np.testing.assert_allclose(folds.scores, left_out.scores, rtol=1e-5)


def test_a_flow_is_calibrated_by_folds():
    make = {"backbone": "efficientnet_lite0", "weights": "random", "steps": 2, "epochs": 1}
    images = pixels(4)
    plain = FastFlow(**make, imagesize=SIDE, resize=SIDE, workspace=CPU).fit(images, seed=3)
    assert plain.calibration is None
    detector = FastFlow(**make, imagesize=SIDE, resize=SIDE, workspace=CPU).fit(
        images, seed=3, calibration="folds", folds=2
    )
    assert (detector.calibration.kind, len(detector.calibration)) == ("folds", 4)
    assert detector.predict(images[0]).score == plain.predict(images[0]).score  # it has learnt all of them
    with pytest.raises(ValueError, match="FastFlow cannot leave one image out"):
        plain.fit(images, calibration="leave_one_out")


def test_the_bank_is_the_same_with_and_without_a_calibration():
    images = pixels(5)
    banks = [
        new(TWO, fraction=0.2).fit(images, seed=1, calibration=how).members[1].bank.features
        for how in ("none", "leave_one_out")
    ]
    assert torch.equal(*banks)


def test_good_images_that_were_not_learnt_calibrate(tmp_path, caplog):
    learnt, others = pixels(4), pixels(6, seed=1)
    detector = new().fit(learnt, calibration="none")
    assert detector.predict(others[0]).p_value is None
    detector.calibrate(others)
    scores = [result.score for result in detector.predict(others)]
    np.testing.assert_allclose(detector.calibration.scores, [scores])
    assert detector.calibration.kind == "good_images"
    with pytest.raises(PatchCoreError, match=r"trained on an image that should calibrate it \(image 2\)"):
        detector.calibrate([others[0], learnt[2]])
    detector.save(tmp_path / "model")
    with pytest.raises(PatchCoreError, match="trained on an image"):
        patchcore.load(tmp_path / "model", device="cpu").calibrate(learnt[:1])
    caplog.set_level(logging.WARNING)
    assert patchcore.load(tmp_path / "model", num_nn=2).calibration is None  # other scores
    assert "calibrated with other settings than {'num_nn': 2}" in caplog.text
    assert patchcore.load(tmp_path / "model", faiss_num_workers=1).calibration is not None  # the same scores


@pytest.mark.parametrize("networks", [ONE, TWO], ids=["one network", "ensemble"])
def test_results_say_what_the_calibration_says(networks):
    detector = new(networks, fraction=0.2).fit(pixels(20))
    new_images = [*pixels(3, seed=5), np.zeros((SIDE, SIDE, 3), np.uint8)]
    results = detector.predict(new_images, false_rejects=0.3)
    expected = detector.calibration.judge(np.array([result.member_scores for result in results]).T, 0.3)
    assert [result.p_value for result in results] == expected.p_values.tolist()
    assert [result.verdict == "reject" for result in results] == expected.rejected.tolist()
    assert {result.threshold for result in results} == {detector.calibration.threshold(0.3)}
    assert results[3].verdict == "reject"
    for result in results:
        above = result.map > detector.calibration.pixel_threshold
        assert bool(result.regions) == above.any()
        if above.any():
            assert result.regions[0].peak == pytest.approx(result.map.max())
            assert sum(region.area for region in result.regions) == pytest.approx(above.sum())
    alone = detector.predict(new_images[3], false_rejects=0.3)
    assert (alone.verdict, alone.p_value) == (results[3].verdict, results[3].p_value)


def test_regions_are_in_pixels_of_the_original_image():
    detector = new(fraction=0.2).fit(pixels(20))
    black = np.zeros((SIDE * 4, SIDE * 4, 3), np.uint8)
    result = detector.predict(black)
    assert result.regions[0].share <= 1
    largest = max(region.box[2] for region in result.regions)
    assert SIDE < largest <= SIDE * 4


@pytest.mark.parametrize(
    ("method", "asked", "splits", "expected"),
    [
        ("patchcore", None, False, "leave_one_out"),
        ("patchcore", None, True, "held_out"),
        ("patchcore", "none", True, "none"),
        ("fastflow", None, False, "none"),
        ("fastflow", None, True, "held_out"),
        ("fastflow", "folds", False, "folds"),
    ],
)
def test_how_a_method_is_calibrated(method, asked, splits, expected):
    assert METHODS[method].calibration(asked, splits=splits) == expected


@pytest.mark.parametrize(
    ("method", "asked", "splits", "message"),
    [
        ("patchcore", "guess", False, "calibration must be one of none"),
        ("patchcore", "held_out", False, "needs images that are held out"),
        ("patchcore", "leave_one_out", True, "uses every training image"),
        ("patchcore", "folds", True, "uses every training image"),
        ("fastflow", "leave_one_out", False, "cannot leave one image out"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(method, asked, splits, message):
    with pytest.raises(ValueError, match=message):
        METHODS[method].calibration(asked, splits=splits)


def test_a_calibration_of_other_members_is_damage(tmp_path):
    new().fit(pixels(3)).save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    content = json.loads(path.read_text())
    content["calibration"]["scores"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(PatchCoreError, match="damaged: a calibration of 2 members, the model has 1"):
        patchcore.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("size", [(SIDE, SIDE + 8), (SIDE - 32, SIDE - 32), (SIDE * 200, SIDE)])
def test_a_picture_of_another_size_is_damage(size):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JPEG")
    album = Album([Photo("a", "0")], [file.getvalue()], SIDE)
    with pytest.raises(PatchCoreError, match=f"picture 0 is damaged.*expected {SIDE} a side"):
        album.picture(0)


class _Untimed:
    def __call__(self, stage):
        from contextlib import nullcontext

        return nullcontext()
