"""Calibrating stored models in place, of every method and format, with images of good parts."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import older_formats
import patchcore
from commands import Ended
from patchcore import FastFlow, PatchCore
from patchcore.cli.calibrate import calibrate
from patchcore.methods import METHODS
from patchcore.methods.detector import Detector
from patchcore.methods.stored_model import MODEL_FILE, read_model
from tiny_models import LITE0, ONE, TWO, pixels, write

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
GEOMETRY = {"resize": 80, "imagesize": SIZE, "device": "cpu"}
KINDS = ("patchcore", "ensemble", "fastflow")


@pytest.fixture(scope="module")
def detectors() -> dict[str, Detector]:
    flow = FastFlow(backbone=LITE0, steps=2, epochs=1, weights="random", **GEOMETRY)
    new = {"patchcore": PatchCore(**ONE, **GEOMETRY), "ensemble": PatchCore(**TWO, **GEOMETRY), "fastflow": flow}
    return {kind: detector.fit(pixels(5, seed=0), seed=5) for kind, detector in new.items()}


@pytest.fixture(scope="module")
def saved(detectors, tmp_path_factory) -> dict[str, Path]:
    """Model folders by kind: read them, do not write to them."""
    folders = {kind: tmp_path_factory.mktemp("saved") / kind for kind in KINDS}
    for kind, detector in detectors.items():
        detector.save(folders[kind])
    return folders


@pytest.fixture
def stored(saved, tmp_path) -> dict[str, Path]:
    return {kind: Path(shutil.copytree(folder, tmp_path / kind)) for kind, folder in saved.items()}


@pytest.fixture
def good(tmp_path) -> Path:
    return write(tmp_path / "good", pixels(4, seed=1))


def load(folder: Path, **settings) -> Detector:
    return patchcore.load(folder, device="cpu", **settings)


def scores(detector: Detector) -> list[float]:
    return [result.score for result in detector.predict(pixels(3, seed=2))]


def last_line(ended: Ended) -> str:
    """The error; a notice that there is no GPU may stand before it."""
    return ended.err.splitlines()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_it_stores_what_the_detector_says_of_good_images_and_changes_nothing_else(kind, stored, good, shell):
    before = json.loads((stored[kind] / MODEL_FILE).read_text())
    files = {path.name: path.read_bytes() for path in stored[kind].iterdir() if path.name != MODEL_FILE}
    ended = shell(calibrate, stored[kind], good)
    assert ended.code == 0, ended.err
    after = json.loads((stored[kind] / MODEL_FILE).read_text())
    assert list(before) == list(after)
    assert {**before, "calibration": None} == {**after, "calibration": None}
    assert {path.name: path.read_bytes() for path in stored[kind].iterdir() if path.name != MODEL_FILE} == files
    found = load(stored[kind]).calibration
    assert found.kind == "good_images"
    told = [load(stored[kind]).predict(path).member_scores for path in sorted(good.iterdir())]
    np.testing.assert_allclose(found.scores.T, told, rtol=1e-4)


def test_it_says_what_was_stored_and_what_was_replaced(stored, good, shell):
    ended = shell(calibrate, stored["patchcore"], good)
    calibration = load(stored["patchcore"]).calibration
    assert ended.out.splitlines() == [
        "replaced a calibration of 5 images (leave_one_out)",
        "calibrated with 4 good images: rates of false rejects from 0.2 on",
        f"threshold at a rate of 0.2 (0.05 needs 19 images or more): {calibration.scores.max():.6g}",
        f"stored in {stored['patchcore'] / MODEL_FILE}",
    ]
    assert "does not say" not in ended.err
    ended = shell(calibrate, stored["ensemble"], good)
    assert "threshold at a rate of 0.2 (0.05 needs 19 images or more): none, the p-values" in ended.out
    ended = shell(calibrate, stored["fastflow"], good)
    assert "replaced" not in ended.out
    ended = shell(calibrate, stored["fastflow"], write(good.parent / "more", pixels(19, seed=3)))
    assert ended.out.startswith("replaced a calibration of 4 images (good_images)\n")
    assert "rates of false rejects from 0.05 on\nthreshold at a rate of 0.05: " in ended.out


OLDER = {
    "patchcore of format 1": ("patchcore", older_formats.patchcore_format_1),
    "ensemble of format 1": ("ensemble", older_formats.patchcore_format_1),
    "fastflow of format 1": ("fastflow", older_formats.fastflow_format_1),
}


@pytest.mark.parametrize("kind", OLDER)
def test_an_older_model_becomes_one_of_today_with_the_same_scores(kind, saved, good, tmp_path, shell):
    name, write_older = OLDER[kind]
    folder = write_older(saved[name], tmp_path / "older")
    older = {path.name: path.read_bytes() for path in folder.iterdir()}
    before, config = scores(load(folder)), read_model(folder, METHODS).config
    ended = shell(calibrate, folder, good)
    assert ended.code == 0, ended.err
    assert f"warning: {folder} does not say of every image that it was trained on" in ended.err
    assert {path.name for path in folder.iterdir()} == {*older, MODEL_FILE}
    assert all((folder / name).read_bytes() == content for name, content in older.items())
    model = read_model(folder, METHODS)
    assert set(model.checksums) == {name for name in older if name.endswith((".faiss", ".safetensors"))}
    assert (model.config, model.training.images, model.photos) == (config, None, ())
    assert len(model.calibration) == 4
    again = load(folder)
    assert scores(again) == before
    for path in folder.glob("*_params.*"):
        path.unlink()  # no longer needed
    assert scores(load(folder)) == before
    assert shell(calibrate, folder, good).out.startswith("replaced a calibration of 4 images (good_images)")


@pytest.mark.parametrize("kind", ["patchcore", "ensemble"])
def test_the_originals_folder_keeps_one_neighbour_and_its_geometry(
    kind, detectors, saved, good, tmp_path, shell, monkeypatch
):
    from patchcore.features import workspace

    build = workspace.load_backbone
    monkeypatch.setattr(  # the original had pretrained weights only
        workspace,
        "load_backbone",
        lambda name, *, weights, weights_dir: build(name, weights="random", weights_dir=None),
    )
    folder = older_formats.patchcore_original(saved[kind], tmp_path / "original", anomaly_scorer_num_nn=3)
    ended = shell(calibrate, folder, good)
    assert ended.code == 1
    assert "--resize" in ended.err
    assert not (folder / MODEL_FILE).exists()
    before = scores(load(folder, resize=72))
    ended = shell(calibrate, folder, good, "--resize", 72)
    assert ended.code == 0, ended.err
    again = load(folder)
    assert (again.geometry.resize, again.config.num_nn, again.config.sampler) == (72, 1, None)
    assert scores(again) == before
    ended = shell(calibrate, folder, good, "--resize", 80)
    assert (ended.code, last_line(ended)) == (1, f"error: {folder}: stored with resize 72, got 80: leave it out")


def test_files_and_folders_are_read_once_and_folders_within_are_left_alone(stored, good, shell):
    write(good / "scratched", pixels(2, seed=9))
    (good / "notes.txt").write_text("no image")
    ended = shell(calibrate, stored["patchcore"], good / "1.png", good, good / "1.png")
    assert ended.code == 0, ended.err
    assert "calibrated with 4 good images" in ended.out


def test_images_that_the_model_has_learnt_are_refused(stored, tmp_path, shell):
    before = (stored["patchcore"] / MODEL_FILE).read_bytes()
    learnt = write(tmp_path / "learnt", [*pixels(2, seed=1), pixels(5, seed=0)[2]])
    ended = shell(calibrate, stored["patchcore"], learnt)
    assert ended.code == 1
    assert last_line(ended).startswith("error: the model was trained on an image that should calibrate it (image 2)")
    assert (stored["patchcore"] / MODEL_FILE).read_bytes() == before


def test_an_interrupted_write_leaves_the_model_as_it_was(stored, good, shell, monkeypatch):
    folder = stored["patchcore"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_text = Path.write_text

    def fill_the_disk(path, text, **settings):
        write_text(path, text[:100], **settings)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    ended = shell(calibrate, folder, good)
    assert ended.code == 1
    assert last_line(ended) == f"error: cannot write {folder / MODEL_FILE}: No space left on device"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_read_only_folder_is_named_in_one_line(stored, good, shell, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    ended = shell(calibrate, stored["patchcore"], good)
    assert ended.code == 1
    assert last_line(ended) == f"error: cannot write {stored['patchcore'] / MODEL_FILE}: Permission denied"


def test_options_have_their_effect(stored, good, shell, monkeypatch, tmp_path):
    ended = shell(calibrate, stored["patchcore"], good, "--weights_dir", tmp_path)
    assert ended.code == 1
    assert "--weights_dir has no effect with --weights random" in ended.err
    assert "every --gpu once, got 1 1" in shell(calibrate, stored["patchcore"], good, "--gpu", 1, "--gpu", 1).err
    asked = []
    monkeypatch.setattr(
        "patchcore.system.devices.choose_devices", lambda gpus: asked.append(gpus) or ([], f"not {gpus}")
    )
    assert shell(calibrate, stored["patchcore"], good, "--gpu", 1, "--gpu", 2).code == 1
    assert asked == [(1, 2)]
    monkeypatch.undo()
    sizes = []
    score = PatchCore.score
    monkeypatch.setattr(
        PatchCore, "score", lambda self, images, timer: sizes.append(len(images)) or score(self, images, timer)
    )
    assert shell(calibrate, stored["patchcore"], good, "--batch_size", 3).code == 0
    assert sizes == [3, 1]


@pytest.mark.parametrize(
    ("images", "code", "says"),
    [
        (("nowhere",), 2, "'nowhere' does not exist"),
        ((), 2, "Missing argument 'GOOD_IMAGES...'"),
        ((".",), 1, "no image in .: expected *.png"),
    ],
)
def test_what_is_no_image_is_named(images, code, says, stored, shell, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    ended = shell(calibrate, stored["patchcore"], *images)
    assert ended.code == code
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_a_folder_without_a_model_is_named_before_anything_is_read(good, shell, tmp_path):
    ended = shell(calibrate, tmp_path / "nowhere", good)
    assert ended.code == 1
    assert (
        ended.err == f"error: no folder {tmp_path / 'nowhere'}: expected a stored PatchCore or FastFlow model there\n"
    )


def test_a_few_images_do_not_replace_a_calibration_of_enough(stored, good, tmp_path, shell):
    enough = write(tmp_path / "enough", pixels(19, seed=5))
    assert shell(calibrate, stored["patchcore"], enough).code == 0
    before = (stored["patchcore"] / MODEL_FILE).read_bytes()
    ended = shell(calibrate, stored["patchcore"], good)
    assert ended.code == 1
    assert "4 different images allow no rate of false rejects below 0.2" in last_line(ended)
    assert last_line(ended).endswith("give 19 or more")
    assert (stored["patchcore"] / MODEL_FILE).read_bytes() == before
    assert shell(calibrate, stored["patchcore"], write(tmp_path / "others", pixels(19, seed=6))).code == 0
