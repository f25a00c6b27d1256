"""`predict`: verdicts on new images, what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import older_formats
from commands import LITE0, patchcore_args, run_patchcore
from image_files import noise, write_image
from patchcore.calibration import Calibration
from patchcore.cli.predict import predict
from patchcore.datasets.geometry import Geometry
from patchcore.inspection.images import find_images
from patchcore.inspection.overlays import Overlays, picture_name
from patchcore.methods.fastflow.detector import FastFlow
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.pictures.panels import OUTLINE
from patchcore.pictures.verdict import ACCEPT, NO_VERDICT, REJECT
from patchcore.types import Inspected, Result

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--resize", "96", "--imagesize", "64")
ENSEMBLE = (
    *("-b", "efficientnet_lite0", "-b", "efficientnet_lite0.seed-1"),
    *("-le", "0.blocks.2", "-le", "1.blocks.2", "--weights", "random"),
)


@pytest.fixture(scope="module")
def detector(parts):
    """A calibrated PatchCore that has learnt the six good plates."""
    settings = {"backbones": ["efficientnet_lite0"], "layers": [["blocks.2"]], "weights": "random"}
    return PatchCore(**settings, resize=96, imagesize=64, device="cpu").fit(parts / "metal_plate/train/good")


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    """Its folder: read it, do not write to it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    detector.save(folder)
    return folder


@pytest.fixture(scope="module")
def images(parts, tmp_path_factory):
    """Test images in folders by kind, and in `noise` two that no model takes for good; do not write to it."""
    folder = shutil.copytree(parts / "metal_plate" / "test", tmp_path_factory.mktemp("images") / "test")
    (folder / "noise").mkdir()
    for number in range(2):
        noise(96, 110, seed=number).save(folder / "noise" / f"{number}.png")
    return folder


def table(folder, name="predictions.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def by_name(rows):
    return {Path(row["path"]).name: row for row in rows}


def broken_image(path):
    whole = io.BytesIO()
    noise(40, 30).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[:700])
    return path


# The numbers


@pytest.mark.parametrize("patch_core", [(*LITE0, "--weights", "random"), ENSEMBLE], ids=["one", "ensemble"])
def test_scores_are_those_of_the_run_to_the_last_digit(shell, parts, tmp_path, patch_core):
    rate = ("--false_rejects", "0.4")
    run = ("--save_patchcore_model", "--save_anomaly_scores", *rate)
    ended = shell(
        run_patchcore,
        *patchcore_args(tmp_path, parts, run=run, patch_core=patch_core, dataset=(*SMALL, "-d", "metal_plate")),
    )
    assert ended.code == 0, ended.err
    folder = tmp_path / "project" / "group"
    elsewhere = shutil.move(folder / "models" / "mpdd_metal_plate", tmp_path / "model")
    ended = shell(predict, elsewhere, parts / "metal_plate" / "test", "--output", tmp_path / "out", *rate)
    assert ended.code == 0, ended.err
    expected = table(folder / "anomaly_scores", "mpdd_metal_plate.csv")
    found = table(tmp_path / "out")
    assert [row["path"] for row in found] == [str(parts / row["path"]) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row["score"] == other["raw_score"]
        assert row["p_value"] == other["p_value"]
        assert (row["verdict"] == "reject") == (other["rejected"] == "1")
        assert (row["threshold"] == "") == ("raw_score_1" in other)  # an ensemble is judged by its p-values
    for row in found:
        alone = lines(shell(predict, elsewhere, row["path"], "--json", *rate).out)[0]
        assert alone["verdict"] == row["verdict"]
        assert alone["score"] == pytest.approx(float(row["score"]), rel=1e-5)


def test_predictions_and_regions_are_those_of_the_python_api(detector, model, images, shell, tmp_path):
    ended = shell(predict, model, images / "noise", "--output", tmp_path / "out", "--batch_size", 1)
    paths = sorted((images / "noise").iterdir())
    results = detector.predict(paths, batch_size=1)
    rows, regions = table(tmp_path / "out"), table(tmp_path / "out", "regions.csv")
    assert list(rows[0]) == ["path", "score", "p_value", "verdict", "threshold", "seconds", "error"]
    assert list(regions[0]) == ["path", "region", "left", "top", "right", "bottom", "area", "peak", "share"]
    for path, result, row in zip(paths, results, rows, strict=True):
        assert row["path"] == str(path)
        assert (float(row["score"]), float(row["p_value"])) == (result.score, result.p_value)
        assert (row["verdict"], float(row["threshold"]), row["error"]) == (result.verdict, result.threshold, "")
        assert 0 < float(row["seconds"]) < 10
        own = [one for one in regions if one["path"] == row["path"]]
        assert [int(one["region"]) for one in own] == list(range(1, len(result.regions) + 1))
        for one, region in zip(own, result.regions, strict=True):
            assert tuple(int(one[side]) for side in ("left", "top", "right", "bottom")) == region.box
            assert [float(one[name]) for name in ("area", "peak", "share")] == [region.area, region.peak, region.share]
    assert regions
    assert "images: " in ended.err
    assert not (tmp_path / "out" / "overlays").exists()


def test_json_says_the_same_as_the_tables(model, images, shell, tmp_path):
    ended = shell(predict, model, images, "--json", "--output", tmp_path / "out")
    regions = table(tmp_path / "out", "regions.csv")
    for line, row in zip(lines(ended.out), table(tmp_path / "out"), strict=True):
        assert list(line) == ["path", "score", "p_value", "verdict", "threshold", "seconds", "regions", "error"]
        assert {name: "" if line[name] is None else str(line[name]) for name in row} == row
        own = [one for one in regions if one["path"] == row["path"]]
        assert [
            {name: str(value) for name, value in {"path": row["path"], "region": number, **region}.items()}
            for number, region in enumerate(line["regions"], start=1)
        ] == own


def test_people_get_a_line_per_image_and_a_summary(model, images, shell):
    ended = shell(predict, model, images)
    assert ended.code == 0
    printed = ended.out.splitlines()
    assert len(printed) == sum(1 for path in images.rglob("*.png"))
    rejected = [line for line in printed if line.startswith("REJECT ")]
    accepted = [line for line in printed if line.startswith("ACCEPT ")]
    assert len(rejected) + len(accepted) == len(printed)
    assert all(str(images) in line and "score" in line and "threshold" in line and " p 0." in line for line in printed)
    summary = f"{len(printed)} images: {len(accepted)} accepted, {len(rejected)} rejected"
    assert summary in ended.err.splitlines()
    assert summary not in ended.out


def test_rate_and_threshold_move_the_verdict(model, images, shell):
    def run(*options):
        return lines(shell(predict, model, images, "--json", *options).out)

    by_rate = {rate: run("--false_rejects", rate) for rate in (0.15, 0.5)}
    for rate, found in by_rate.items():
        assert [line["verdict"] == "reject" for line in found] == [line["p_value"] <= rate for line in found]
    scores = sorted(line["score"] for line in by_rate[0.5])
    assert by_rate[0.5][0]["threshold"] < by_rate[0.15][0]["threshold"]
    found = run("--threshold", scores[4])
    assert [line["verdict"] == "reject" for line in found] == [line["score"] > scores[4] for line in found]
    assert {line["threshold"] for line in found} == {scores[4]}
    assert {line["p_value"] for line in found} == {line["p_value"] for line in by_rate[0.5]}


def test_a_rate_that_the_images_do_not_allow_is_said_in_a_line(model, images, shell):
    said = shell(predict, model, images / "good", "--false_rejects", "0.05").err
    assert "warning: 6 calibration images allow no lower rate of false rejects than 1/7 = 0.143: that" in said
    assert "calibration images" not in shell(predict, model, images / "good", "--false_rejects", "0.2").err


# Where images come from


def test_folders_are_searched_in_the_order_of_paths(tmp_path):
    for name in (
        "b/z.png",
        "b c/a.png",
        "a.PNG",
        "b.tif",
        "b/x/deep.jpeg",
        "b/.hidden.png",
        ".git/a.png",
        "b/text.txt",
    ):
        write_image(tmp_path / name) if name[-3:] != "txt" else (tmp_path / name).write_text("no image")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert found == ["a.PNG", "b/x/deep.jpeg", "b/z.png", "b c/a.png", "b.tif"]
    assert next(find_images([tmp_path / "a.PNG", tmp_path, tmp_path / "b"])) == tmp_path / "a.PNG"
    (tmp_path / "b" / "loop").unlink()
    assert len(list(find_images([tmp_path / "a.PNG", tmp_path, tmp_path / "b"]))) == 5


def test_paths_come_from_standard_input(model, images, shell, monkeypatch):
    paths = sorted((images / "good").iterdir())
    text = f"{paths[2]}\n\n{images / 'scratches'}\r\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    ended = shell(predict, model, "-", paths[0], "--json")
    assert [line["path"] for line in lines(ended.out)] == [
        str(path) for path in (paths[2], *sorted((images / "scratches").iterdir()), paths[0])
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_broken_image_is_a_line_and_leaves_the_others_as_they_are(model, images, shell, tmp_path, batch_size):
    expected = lines(shell(predict, model, images, "--json", "--batch_size", batch_size).out)
    shutil.copytree(images, tmp_path / "test")
    broken_image(tmp_path / "test" / "good" / "000a.png")
    (tmp_path / "test" / "scratches" / "000a.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    given = (tmp_path / "nowhere.png", tmp_path / "test", tmp_path / "empty")
    ended = shell(predict, model, *given, "--json", "--batch_size", batch_size, "--output", tmp_path / "out")
    assert ended.code == 1
    found = lines(ended.out)
    broken = [line for line in found if line["error"]]
    assert [Path(line["path"]).name for line in broken] == ["nowhere.png", "000a.png", "000a.jpg", "empty"]
    for line, reason in zip(
        broken, ("no file or folder", "truncated", "the file is empty", "no image in"), strict=True
    ):
        assert reason in line["error"]
        assert {line[name] for name in ("score", "p_value", "verdict", "threshold", "seconds", "regions")} == {None}
    whole = [line for line in found if not line["error"]]
    for line, other in zip(whole, expected, strict=True):
        assert (line["score"], line["p_value"]) == (other["score"], other["p_value"])
    rows = table(tmp_path / "out")
    assert [row["path"] for row in rows] == [line["path"] for line in found]
    assert [row["error"] for row in rows] == [line["error"] or "" for line in found]
    assert f"{len(found)} images: " in ended.err
    assert ", 4 broken" in ended.err
    assert "BROKEN" in shell(predict, model, tmp_path / "nowhere.png").out


def test_an_image_that_is_too_long_is_broken(model, shell, tmp_path, images, monkeypatch):
    write_image(tmp_path / "long.png", size=(1, 1_000_000))
    ended = shell(predict, model, tmp_path / "long.png", next((images / "good").iterdir()), "--json")
    assert ended.code == 1
    assert [line["error"] is None for line in lines(ended.out)] == [False, True]


def test_names_of_any_bytes_are_told(model, images, shell, tmp_path):
    good = next((images / "good").iterdir())
    names = [b"=1+1.png", b"\xff\xfe.png", b'a"b,c.png', b"new\nline.png"]
    for name in names:
        shutil.copy(good, os.fsencode(tmp_path) + b"/" + name)
    found = lines(shell(predict, model, tmp_path, "--json", "--output", tmp_path / "out", "--save_overlays").out)
    assert sorted(os.fsencode(Path(line["path"]).name) for line in found) == sorted(names)
    assert len(table(tmp_path / "out")) == len(list((tmp_path / "out" / "overlays").iterdir())) == 4
    assert len(shell(predict, model, tmp_path / os.fsdecode(names[3])).out.splitlines()) == 1


# Ends and refusals


def test_exit_codes(model, images, shell, tmp_path):
    bad, good = images / "noise", tmp_path / "none"
    assert shell(predict, model, bad, "--fail_on_reject").code == 3
    assert shell(predict, model, bad).code == 0
    assert shell(predict, model, bad, "--fail_on_reject", "--threshold", "1e30").code == 0
    assert shell(predict, model, bad, good, "--fail_on_reject").code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected images"),
        (("-", "-"), "standard input"),
        (("a.png", "--save_overlays"), "--save_overlays needs a folder"),
        (("a.png", "--explain"), "--explain needs a folder"),
        (("a.png", "--threshold", "nan"), "--threshold must be a number"),
        (("a.png", "--false_rejects", "nan"), "--false_rejects must be a number"),
        (("a.png", "--threshold", "1", "--false_rejects", "0.1"), "--false_rejects has no effect with --threshold"),
        (("a.png", "--resize", "100"), "--resize 100 contradicts the model, stored with 96"),
        (("a.png", "--weights_dir", "."), "--weights_dir has no effect with --weights random"),
        (("a.png", "--false_rejects", "0"), "--false_rejects"),
        (("a.png", "--batch_size", "0"), "--batch_size"),
    ],
)
def test_options_without_effect_are_refused(model, shell, options, message):
    ended = shell(predict, model, *options)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["predictions.csv", "regions.csv", "overlays"])
def test_a_used_folder_is_refused(model, images, shell, tmp_path, name):
    (tmp_path / name).write_text("old")
    ended = shell(predict, model, images, "--output", tmp_path)
    assert ended.code == 2
    assert f"{name} is there already" in ended.err
    assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_no_model_is_one_line(shell, images, tmp_path):
    ended = shell(predict, tmp_path, images)
    assert (ended.code, ended.out) == (1, "")
    assert "no PatchCore or FastFlow model" in ended.err


def test_models_without_a_calibration_give_scores_and_say_how_to_get_verdicts(detector, model, images, shell, tmp_path):
    older = older_formats.patchcore_format_1(model, tmp_path / "older")
    ended = shell(predict, older, images, "--json", "--output", tmp_path / "out", "--save_overlays")
    assert ended.code == 0, ended.err
    warnings = [line for line in ended.err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert f"bin/calibrate.py {older} GOOD_IMAGES" in warnings[0]
    results = detector.predict([line["path"] for line in lines(ended.out)])
    for line, row, result in zip(lines(ended.out), table(tmp_path / "out"), results, strict=True):
        assert line["score"] == result.score
        assert {line[name] for name in ("p_value", "verdict", "threshold", "regions")} == {None}
        assert (row["p_value"], row["verdict"], row["threshold"]) == ("", "", "")
    assert "NO VERDICT" in shell(predict, older, images).out
    for options in (("--fail_on_reject",), ("--false_rejects", "0.1")):
        refused = shell(predict, older, images, *options)
        assert refused.code == 2
        assert "needs a calibration, which the model lacks" in refused.err
    judged = shell(predict, older, images, "--threshold", "0", "--fail_on_reject")
    assert judged.code == 3
    assert "warning" not in judged.err


# Pictures


def badge_of(path):
    pixels = np.asarray(Image.open(path))[:66]
    [found] = [badge for badge in (ACCEPT, REJECT, NO_VERDICT) if (pixels == badge.ground).all(axis=2).sum() > 100]
    return found


def test_overlays_show_the_verdict_and_mirror_the_folders(model, images, shell, tmp_path):
    out = tmp_path / "out"
    ended = shell(predict, model, images / "good", images / "noise", "--output", out, "--save_overlays", "--json")
    for line in lines(ended.out):
        picture = out / "overlays" / Path(line["path"]).relative_to(images)
        assert badge_of(picture).word.lower() == line["verdict"]
    assert sum(1 for path in (out / "overlays").rglob("*.png")) == len(lines(ended.out))


def test_pictures_of_other_images_never_collide(tmp_path):
    names = ["000.png", "000.jpg", "000.jpg.png", "000.png.png", "000.PNG", "000", "000.png.jpg", "x" * 255]
    names += ["x" * 251 + ".png", "x" * 250 + "y.png", "é" * 125 + ".jpg", "x" * 251 + ".jpg", "x" * 250 + "y.jpg"]
    pictures = [picture_name(name) for name in names]
    assert len(set(pictures)) == len(names)
    assert all(name.endswith(".png") and len(os.fsencode(name)) <= 255 for name in pictures)
    assert picture_name("000.png") == "000.png"
    overlays = Overlays(tmp_path, [Path("in/a"), Path("in/a_b/c.png")], Drawn())
    assert overlays.path(Path("in/a/b_c.png")) == tmp_path / "a" / "b_c.png"
    assert overlays.path(Path("in/a_b/c.png")) == tmp_path / "a_b" / "c.png"


class Drawn:
    """As much of a detector as pictures need."""

    def __init__(self, calibration=None):
        self.calibration, self.geometry = calibration, Geometry(resize=300, imagesize=300)


def test_the_colours_are_those_of_the_calibration():
    calibration = Calibration(kind="folds", scores=np.ones((1, 3)), pixels=np.array([1.0, 2, 3, 5, 8]))
    picture = np.asarray(noise(300, 300))
    result = Result(score=1.0, map=np.full((300, 300), 1.0, np.float32), member_scores=(1.0,))
    result.map[100:150, 100:150] = 6
    image = Inspected(path=Path("in/a.png"), result=result, picture=picture, size=(300, 300))
    sheet = np.asarray(Overlays(Path("out"), [Path("in")], Drawn(calibration)).draw(image))
    heat = sheet[66:366, 2 * 12 + 300 : 2 * 12 + 600].astype(int)
    assert heat[110:140, 110:140].sum(axis=2).mean() > 350  # above the middle of the scale
    assert heat[:90].sum(axis=2).mean() < 250
    plain = np.asarray(Overlays(Path("out"), [Path("in")], Drawn()).draw(image))
    assert (plain[66:366, 12:312] == picture).all()  # nothing is outlined
    assert (sheet[66:366, 12:312] != picture).any()


def test_explanations_stand_below_the_verdict(model, images, shell, tmp_path):
    given = (model, images / "noise" / "0.png")
    shell(predict, *given, "--output", tmp_path / "plain", "--save_overlays")
    ended = shell(predict, *given, "--output", tmp_path / "out", "--explain")
    assert ended.code == 0, ended.err
    plain, sheet = (np.asarray(Image.open(tmp_path / name / "overlays" / "0.png")) for name in ("plain", "out"))
    np.testing.assert_array_equal(sheet[: len(plain) - 1], plain[:-1])
    below = sheet[len(plain) :]
    assert (below == ACCEPT.ground).all(axis=2).sum() > 100  # the boxes of good patches
    assert (below == OUTLINE).all(axis=2).sum() > 100


def test_what_has_no_patches_to_show_refuses_to_explain(model, images, parts, shell, tmp_path):
    flow = FastFlow(backbone="efficientnet_lite0", weights="random", epochs=1, resize=64, imagesize=64, device="cpu")
    flow.fit(parts / "metal_plate/train/good").save(tmp_path / "flow")
    older = older_formats.patchcore_format_1(model, tmp_path / "older")
    for folder, reason in ((tmp_path / "flow", "FastFlow remembers no good patches"), (older, "keeps no pictures")):
        ended = shell(predict, folder, images, "--output", tmp_path / "out", "--explain")
        assert (ended.code, ended.out) == (1, "")
        assert reason in ended.err
        assert not (tmp_path / "out").exists()


def test_a_flow_gives_the_scores_of_its_python_api(images, parts, shell, tmp_path):
    flow = FastFlow(backbone="efficientnet_lite0", weights="random", epochs=1, resize=64, imagesize=64, device="cpu")
    flow.fit(parts / "metal_plate/train/good").calibrate(images / "good").save(tmp_path / "flow")
    found = lines(shell(predict, tmp_path / "flow", images / "noise", "--json").out)
    results = flow.predict(sorted((images / "noise").iterdir()))
    assert [(line["score"], line["p_value"], line["verdict"]) for line in found] == [
        (result.score, result.p_value, result.verdict) for result in results
    ]
