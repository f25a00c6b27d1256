"""Updating PatchCore: the greedy selection goes on, old rows stay, and what is said of good parts stays valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import older_formats
import patchcore
from commands import Ended
from patchcore import FastFlow, PatchCore
from patchcore.cli.update import update_patchcore
from patchcore.datasets.loader import VIEWS, turn
from patchcore.features import workspace
from patchcore.methods.detector import Detector, TrainingImages
from patchcore.methods.patchcore.coreset import greedy_order
from patchcore.methods.patchcore.updating import continue_greedy
from patchcore.methods.stored_model import MODEL_FILE, Training
from patchcore.types import PatchCoreError
from tiny_models import LITE0, ONE, TWO, pixels, write

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, OF_IMAGE = 64, 8 * 8
CPU = torch.device("cpu")
SPACE = {"resize": 80, "imagesize": SIZE, "workspace": workspace.Workspace.on("cpu")}
OLD, NEW = 5, 4
SHARE = int(0.3 * OF_IMAGE * NEW)


def fitted(settings=ONE, **changes) -> PatchCore:
    return PatchCore(**{**settings, **changes}, **SPACE).fit(pixels(OLD, seed=0), seed=5)


def bank(detector: PatchCore, member: int = 0) -> torch.Tensor:
    return detector.members[member].bank.features.clone()


def patches(detector: PatchCore, pictures: list[np.ndarray], member: int = 0) -> torch.Tensor:
    """(N, D) patches of pictures."""
    from patchcore.methods.sources import Sources
    from patchcore.system.timing import StageTimer

    batch = torch.stack(list(Sources(pictures, detector.geometry)))
    return detector.members[member].embed(batch, StageTimer(CPU)).flatten(0, 2)


# The selection


def test_it_picks_the_patches_farthest_from_the_bank_and_all_picks():
    """On a line, in as many dimensions as the projection has, so that distances are as they are."""
    rows, new = torch.zeros(2, 128), torch.zeros(5, 128)
    rows[:, 0] = torch.tensor([0.0, 10.0])
    new[:, 0] = torch.tensor([1.0, 5.0, 30.0, 26.0, 19.0])
    # 30 is 20 away from 10; then 19 is 9 away from 10, 5 is 5 away from both rows, 26 is 4 away from 30.
    assert continue_greedy(rows, new, 4, torch.Generator().manual_seed(0), CPU).tolist() == [2, 4, 1, 3]


def test_it_goes_on_as_one_selection_that_began_with_the_bank():
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(300, 128, generator=draws)
    order = greedy_order(points, torch.full((300,), 1e3).index_fill(0, torch.tensor(7), 1e4), 120)
    assert order[0] == 7  # whence only distances between points count
    before, rest = order[:50], [i for i in range(300) if i not in set(order[:50].tolist())]
    more = continue_greedy(points[before], points[rest], 70, draws, CPU)
    assert torch.tensor(rest)[more].tolist() == order[50:].tolist()


@pytest.mark.parametrize("settings", [ONE, TWO], ids=["one", "ensemble"])
def test_old_rows_stay_and_a_share_of_the_new_patches_follows(settings):
    detector = fitted(settings)
    before = [bank(detector, member) for member in range(len(detector.members))]
    origins = [member.origins.clone() for member in detector.members]
    assert detector.update(pixels(NEW, seed=1)) is detector
    for number, (rows, places) in enumerate(zip(before, origins, strict=True)):
        member = detector.members[number]
        after, of_image = bank(detector, number), int(np.prod(member.grid))
        assert len(after) == len(rows) + int(0.3 * of_image * NEW)
        assert (after[: len(rows)] == rows).all()
        new = patches(detector, pixels(NEW, seed=1), number)
        assert (member.origins[: len(rows)] == places).all()
        chosen = member.origins[len(rows) :] - OLD * of_image
        assert len(chosen.unique()) == len(chosen)
        torch.testing.assert_close(after[len(rows) :], new[chosen], rtol=1e-4, atol=1e-4)
        # The first is the farthest of all from the bank, in the projection; so it is far in truth.
        apart = torch.cdist(new, rows).amin(dim=1)
        assert apart[chosen[0]] > apart.median()


def test_a_sampler_of_everything_adds_everything_and_random_a_random_share():
    everything = fitted(sampler="identity").update(pixels(NEW, seed=1))
    assert everything.members[0].origins.tolist() == list(range((OLD + NEW) * OF_IMAGE))
    drawn = fitted(sampler="random").update(pixels(NEW, seed=1))
    chosen = drawn.members[0].origins[-SHARE:] - OLD * OF_IMAGE
    assert (chosen.diff() > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < NEW * OF_IMAGE


@pytest.mark.parametrize("sampler", ["approx_greedy_coreset", "identity", "random"])
def test_the_bank_grows_no_larger_than_asked_for(sampler):
    detector = fitted(TWO, sampler=sampler)
    sizes = [len(member.bank) for member in detector.members]
    detector.update(pixels(NEW, seed=1), max_bank_size=max(sizes) + 7)
    fractions = [1.0 if sampler == "identity" else 0.3] * 2
    grown = [
        size + int(fraction * NEW * np.prod(member.grid))
        for size, fraction, member in zip(sizes, fractions, detector.members, strict=True)
    ]
    assert max(grown) > max(sizes) + 7
    assert [len(member.bank) for member in detector.members] == [min(one, max(sizes) + 7) for one in grown]


def test_a_limit_that_leaves_no_room_is_refused_with_the_size_of_the_bank():
    detector = fitted()
    size = len(detector.members[0].bank)
    with pytest.raises(PatchCoreError, match=f"--max_bank_size {size} leaves no room: the memory bank has {size}"):
        detector.update(pixels(NEW, seed=1), max_bank_size=size)
    assert len(detector.update(pixels(NEW, seed=1), max_bank_size=size + 1).members[0].bank) == size + 1


def test_a_detector_that_has_learnt_nothing_is_not_updated():
    with pytest.raises(PatchCoreError, match="has learnt nothing yet"):
        PatchCore(**ONE, **SPACE).update(pixels(1, seed=1))


# What the model says of itself afterwards


def test_training_photos_and_pictures_go_on():
    detector = fitted()
    before, album = detector.training, list(detector.album.photos)
    detector.training = replace(before, run="a run", category="plate", train_val_split=0.5)
    detector.update(pixels(NEW, seed=1))
    after = detector.training
    assert (after.images, after.seed, after.category) == (OLD + NEW, 5, "plate")
    assert (after.run, after.train_val_split) == (None, 1.0)
    assert detector.album.photos[:OLD] == album
    assert [photo.name for photo in detector.album.photos[OLD:]] == [f"image {i}" for i in range(NEW)]
    assert len(detector.album) == OLD + NEW
    together = PatchCore(**ONE, **SPACE).fit(pixels(OLD, seed=0) + pixels(NEW, seed=1))
    assert after.fingerprint == together.training.fingerprint != before.fingerprint
    assert [photo.pixels for photo in detector.album.photos] == [photo.pixels for photo in together.album.photos]


def test_images_that_were_learnt_or_come_twice_are_left_out(caplog):
    caplog.set_level("INFO", logger="patchcore")
    one, other = fitted(), fitted()
    new = pixels(NEW, seed=1)
    one.update(new)
    other.update([pixels(OLD, seed=0)[2], *new, new[1]], batch_size=2)
    assert "left out, since the model has learnt them already: image 0, image 5" in caplog.messages
    assert (bank(one) == bank(other)).all()
    assert len(other.album.photos) == OLD + NEW
    with pytest.raises(PatchCoreError, match="nothing to update with"):
        other.update(new)


def test_photos_are_learnt_in_as_many_views_as_before():
    detector = PatchCore(**ONE, **SPACE)
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    views = torch.stack([turn(photo, view) for photo in photos for view in range(VIEWS)])
    images = TrainingImages(batches=[views], count=2 * VIEWS, views=VIEWS, leave_one_out=True)
    detector.fit_batches(images, Training(seed=1))
    before = len(detector.members[0].bank)
    detector.update(pixels(1, seed=1))
    assert detector.training.images == 3 * VIEWS
    assert len(detector.members[0].bank) == before + int(0.3 * VIEWS * OF_IMAGE)
    photo = detector.members[0].origins[before:] // (OF_IMAGE * VIEWS)
    assert (photo == 2).all()
    assert len(detector.calibration) == len(detector.album.photos) == 3


# Calibration


@pytest.mark.parametrize("settings", [ONE, TWO], ids=["one", "ensemble"])
def test_new_images_are_scored_by_what_comes_from_others_and_old_scores_do_not_rise(settings):
    detector = fitted(settings)
    before = detector.calibration
    after = detector.update(pixels(NEW, seed=1)).calibration
    assert (after.kind, len(after)) == ("leave_one_out", OLD + NEW)
    assert (after.scores[:, :OLD] <= before.scores).all()
    for number, member in enumerate(detector.members):
        of_image = int(np.prod(member.grid))
        for image, picture in enumerate(pixels(NEW, seed=1)):
            others = bank(detector, number)[member.origins // of_image != OLD + image]
            distances = torch.cdist(patches(detector, [picture], number).double(), others.double()).square()
            assert after.scores[number, OLD + image] == pytest.approx(float(distances.amin(dim=1).max()), rel=1e-3)


def test_old_scores_are_about_what_they_would_be_now():
    # Smooth pictures, which are compressed without much loss.
    parts = [
        np.asarray(Image.fromarray(one[::8, ::8]).resize((96, 80), Image.Resampling.BICUBIC)) for one in pixels(OLD, 0)
    ]
    detector = PatchCore(**ONE, **SPACE).fit(parts, seed=5)
    old = detector.calibration.scores[0]
    # The same parts under a little noise: rows that come near the old images.
    noise = np.random.default_rng(3).integers(0, 9, (OLD, 80, 96, 3))
    close = [np.clip(one.astype(int) + some, 0, 255).astype(np.uint8) for one, some in zip(parts, noise, strict=True)]
    detector.update(close)
    origins = detector.members[0].origins // OF_IMAGE
    now = []
    for image, picture in enumerate(parts):
        others = bank(detector)[origins != image]
        now.append(torch.cdist(patches(detector, [picture]), others).square().amin(dim=1).max().item())
    assert (old * 1.001 >= now).all()
    assert (old > 1.1 * np.array(now)).any()
    kept = detector.calibration.scores[0, :OLD]
    assert ((kept > 0.9 * np.array(now)) & (kept <= old)).all()


def test_old_scores_are_taken_anew_from_pictures_where_compression_changes_little():
    blocks = [np.kron(one, np.ones((16, 16, 1), np.uint8)) for one in pixels(OLD + NEW, seed=2)]
    blocks = [one[:80, :96] for one in blocks]
    detector = PatchCore(**ONE, **SPACE).fit(blocks[:OLD])
    old = detector.calibration.scores[0]
    detector.update([*blocks[OLD:], *(np.roll(one, 3, axis=1) for one in blocks[:OLD])])  # much like the old ones
    origins = detector.members[0].origins // OF_IMAGE
    now = [
        torch.cdist(patches(detector, [one]), bank(detector)[origins != image]).square().amin(dim=1).max().item()
        for image, one in enumerate(blocks[:OLD])
    ]
    kept = detector.calibration.scores[0, :OLD]
    assert (kept <= old).all()
    assert kept.mean() < old.mean()
    np.testing.assert_allclose(kept, now, rtol=0.15)


@pytest.mark.parametrize("kind", [None, "good_images"])
def test_without_scores_of_images_left_out_all_photos_calibrate_by_their_pictures(kind, caplog):
    caplog.set_level("INFO", logger="patchcore")
    detector = fitted()
    detector.calibration = kind and detector.calibrate(pixels(3, seed=7)).calibration
    detector.update(pixels(NEW, seed=1))
    assert (detector.calibration.kind, len(detector.calibration)) == ("leave_one_out", OLD + NEW)
    said = "calibration: all 9 photos, each left out, replace 3 images (good_images)"
    assert (said in caplog.messages) == (kind is not None)


# The command


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    fitted().save(folder)
    return folder


@pytest.fixture
def good(tmp_path) -> Path:
    return write(tmp_path / "good", pixels(NEW, seed=1))


def load(folder: Path, **settings) -> Detector:
    return patchcore.load(folder, device="cpu", **settings)


def last_line(ended: Ended) -> str:
    """The error; a notice that there is no GPU may stand before it."""
    return ended.err.splitlines()[-1]


def test_the_command_writes_a_new_model_and_leaves_the_old_one(saved, good, tmp_path, shell):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    ended = shell(update_patchcore, saved, good, "--output", tmp_path / "new")
    assert ended.code == 0, ended.err
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    rows = len(load(saved).members[0].bank)
    assert f"memory bank: {rows + SHARE} patches, {SHARE} of them new" in ended.err
    new = load(tmp_path / "new")
    assert ended.out.splitlines() == [
        "learnt 4 of 4 images",
        "calibrated with 9 good images: rates of false rejects from 0.1 on",
        f"threshold at a rate of 0.1 (0.05 needs 19 images or more): {new.calibration.scores.max():.6g}",
        f"stored in {tmp_path / 'new'}",
    ]
    expected = load(saved).update(good)
    assert (bank(new) == bank(expected)).all()
    assert [photo.name for photo in new.album.photos[OLD:]] == [f"{i}.png" for i in range(NEW)]
    assert new.training == expected.training
    again = shell(update_patchcore, saved, good, "--output", tmp_path / "new")
    assert (again.code, again.err) == (
        1,
        f"error: --output {tmp_path / 'new'}: expected the name of a new folder, this is there already\n",
    )
    more = shell(update_patchcore, tmp_path / "new", good, "--output", tmp_path / "newer")
    assert last_line(more).startswith("error: there is nothing to update with")
    assert not (tmp_path / "newer").exists()


def test_max_bank_size_reaches_the_bank(saved, good, tmp_path, shell):
    rows = len(load(saved).members[0].bank)
    ended = shell(update_patchcore, saved, good, "--output", tmp_path / "new", "--max_bank_size", rows + 3)
    assert ended.code == 0, ended.err
    assert len(load(tmp_path / "new").members[0].bank) == rows + 3
    ended = shell(update_patchcore, saved, good, "--output", tmp_path / "other", "--max_bank_size", rows)
    assert ended.code == 1
    assert f"the memory bank has {rows} patches already" in last_line(ended)
    assert not (tmp_path / "other").exists()


def test_a_model_of_format_1_grows_without_saying_where_its_rows_come_from(saved, good, tmp_path, shell):
    older = older_formats.patchcore_format_1(saved, tmp_path / "older")
    ended = shell(update_patchcore, older, good, "--output", tmp_path / "new")
    assert ended.code == 0, ended.err
    assert "does not say which images its patches come from" in ended.err
    new = load(tmp_path / "new")
    expected = load(saved).update(good)
    assert (bank(new) == bank(expected)).all()
    assert new.members[0].origins is None
    assert (new.training.images, new.training.fingerprint) == (None, None)
    assert len(new.album.photos) == NEW  # the others are not known
    assert (new.calibration.scores == expected.calibration.scores[:, OLD:]).all()
    again = shell(update_patchcore, tmp_path / "new", good, "--output", tmp_path / "newer")
    assert "nothing to update with" in last_line(again)


def test_the_originals_model_needs_a_size(saved, good, tmp_path, shell, monkeypatch):
    build = workspace.load_backbone
    monkeypatch.setattr(  # the original had pretrained weights only
        workspace,
        "load_backbone",
        lambda name, *, weights, weights_dir: build(name, weights="random", weights_dir=None),
    )
    folder = older_formats.patchcore_original(saved, tmp_path / "original")
    command = (update_patchcore, folder, good, "--resize", 80, "--output", tmp_path / "new")
    ended = shell(*command)
    assert ended.code == 1
    assert "say how large its memory bank may become (--max_bank_size)" in last_line(ended)
    rows = len(load(saved).members[0].bank)
    ended = shell(*command, "--max_bank_size", rows + 20)
    assert ended.code == 0, ended.err
    new = load(tmp_path / "new")
    assert (len(new.members[0].bank), new.config.sampler, new.geometry.resize) == (rows + 20, None, 80)
    expected = load(saved)
    expected.training = replace(expected.training, seed=0)  # the original's folders name none
    expected.update(good, max_bank_size=rows + 20)
    assert (bank(new) == bank(expected)).all()


def test_a_model_of_another_method_is_refused(good, tmp_path, shell):
    flow = FastFlow(backbone=LITE0, steps=2, epochs=1, weights="random", **SPACE).fit(pixels(2, seed=0))
    flow.save(tmp_path / "flow")
    ended = shell(update_patchcore, tmp_path / "flow", good, "--output", tmp_path / "new")
    assert ended.code == 1
    assert ended.err == (
        f"error: {tmp_path / 'flow' / MODEL_FILE}: a model of the method 'fastflow', expected one of patchcore\n"
    )


def test_a_failure_leaves_the_detector_as_it_was(monkeypatch):
    detector = fitted()
    rows, training, calibration = bank(detector), detector.training, detector.calibration

    def fail(*_):
        raise PatchCoreError("no room")

    monkeypatch.setattr(PatchCore, "left_out", fail)
    with pytest.raises(PatchCoreError, match="no room"):
        detector.update(pixels(NEW, seed=1))
    assert (bank(detector) == rows).all()
    assert (detector.training, detector.calibration, len(detector.album)) == (training, calibration, OLD)
