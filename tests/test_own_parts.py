"""The layout `folder`: good, bad and masks of one's own parts, from folders to a stored model and its evaluation."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from commands import (
    LITE0,
    load_and_evaluate_patchcore,
    run_fastflow,
    run_patchcore,
    score_lines,
)
from image_files import one_line, write_category, write_image
from patchcore.config import DatasetConfig, category_of
from patchcore.datasets.own_parts import scan_bad, scan_good
from patchcore.results.tables import read_results
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = ("patch_core", *LITE0, "--weights", "random")
SMALL = ("--resize", 96, "--imagesize", 64)


# Which images there are


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Good and bad images of brackets, with masks."""
    return write_category(
        tmp_path / "photos" / "brackets",
        "good/1.png",
        "good/0.png",
        "bad/9.png",
        "bad/bend/0.png",
        "bad/scratch/0.jpg",
        "masks/9.png",
        "masks/bend/0_mask.png",
        "masks/scratch/0.png",
    )


def test_good_images_lie_directly_in_their_folder(photos: Path) -> None:
    for stray in ("good/._0.png", "good/Thumbs.db"):
        (photos / stray).write_bytes(b"no image")
    (photos / "good" / ".thumbnails").mkdir()
    samples = scan_good(photos / "good", "brackets")
    assert [one.path for one in samples] == [photos / "good" / "0.png", photos / "good" / "1.png"]
    assert all(
        (one.category, one.split, one.defect, one.mask_path) == ("brackets", "train", "good", None) for one in samples
    )


def test_bad_images_are_of_the_kind_of_their_folder(photos: Path) -> None:
    bad, masks = photos / "bad", photos / "masks"
    samples = scan_bad(bad, masks, "brackets")
    assert [(one.path, one.defect, one.mask_path) for one in samples] == [
        (bad / "9.png", "bad", masks / "9.png"),
        (bad / "bend" / "0.png", "bend", masks / "bend" / "0_mask.png"),
        (bad / "scratch" / "0.jpg", "scratch", masks / "scratch" / "0.png"),
    ]
    assert all(one.is_defective and one.split == "test" for one in samples)
    without = scan_bad(bad, None, "brackets")
    assert [one.path for one in without] == [one.path for one in samples]
    assert all(one.mask_path is None for one in without)


@pytest.mark.parametrize("missing", ["masks/9.png", "masks/bend/0_mask.png", "masks/bend"])
def test_with_masks_every_bad_image_needs_one(photos: Path, missing: str) -> None:
    path = photos / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PatchCoreError, match=r"no mask for .*; add it, or leave --masks out") as error:
        scan_bad(photos / "bad", photos / "masks", "brackets")
    one_line(error)


def test_a_folder_among_the_images_is_refused_not_left_out(photos: Path) -> None:
    with pytest.raises(PatchCoreError, match=r"expected images directly in it, got the folders bad, good, masks"):
        scan_good(photos, "brackets")
    write_image(photos / "bad" / "bend" / "deeper" / "1.png")
    with pytest.raises(PatchCoreError, match=r"bend: expected images directly in it, got the folder deeper") as error:
        scan_bad(photos / "bad", None, "brackets")
    one_line(error)


def test_good_images_among_the_bad_are_refused(photos: Path) -> None:
    write_image(photos / "bad" / "Good" / "0.png")
    with pytest.raises(PatchCoreError, match=r"Good: expected defective images only"):
        scan_bad(photos / "bad", None, "brackets")


@pytest.mark.parametrize("folder", ["good", "bad"])
def test_folders_that_are_missing_or_empty_are_named(tmp_path: Path, folder: str) -> None:
    def scan() -> None:
        path = tmp_path / folder
        scan_good(path, "parts") if folder == "good" else scan_bad(path, None, "parts")

    with pytest.raises(PatchCoreError, match=f"no folder {tmp_path / folder}"):
        scan()
    (tmp_path / folder).mkdir()
    with pytest.raises(PatchCoreError, match=f"no image in {tmp_path / folder}"):
        scan()


# What the parts are called, and what belongs together


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/photos/brackets/good", "brackets"),
        ("/photos/brackets/train/good", "brackets"),
        ("/photos/brackets/Train/Images", "brackets"),
        ("/photos/brackets", "brackets"),
        ("/photos/brackets/bad/", "brackets"),
        ("/photos/brackets/good/../../lids/good", "lids"),
        ("/photos/Träger 7/good", "Träger 7"),
    ],
)
def test_the_category_is_the_nearest_name_that_says_more_than_good(folder: str, name: str) -> None:
    assert category_of(Path(folder)) == name


def test_the_category_comes_from_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lids" / "good").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "lids" / "good")
    assert category_of(Path()) == "lids"
    with pytest.raises(ValueError, match="give a name, -d NAME"):
        category_of(Path("/train/good"))


def folders(**settings: object) -> DatasetConfig:
    return DatasetConfig(**{"name": "folder", "categories": ("brackets",), "resize": 64, "imagesize": 64, **settings})


def test_the_root_is_around_the_test_images(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = photos / "good", photos / "bad"
    assert folders(good=good, bad=bad).root == folders(bad=bad).root == folders(good=good).root == photos
    assert folders(good=tmp_path / "elsewhere", bad=bad).root == photos
    monkeypatch.chdir(bad)
    assert folders(bad=Path()) == folders(bad=bad)
    assert DatasetConfig(name="mpdd", path="d", categories=("a",), resize=64, imagesize=64).root == Path("d")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "folder needs --good FOLDER to learn from, or --bad FOLDER to test on"),
        ({"good": "g", "masks": "m"}, "--masks has no effect without --bad"),
        ({"good": "g", "path": "data"}, "DATA_PATH data has no effect with folder"),
        ({"good": "g", "categories": ("a", "b")}, "folder is one category: -d NAME once, got 2"),
        ({"good": "g", "categories": ("a/b",)}, "-d must be the name of a folder, got 'a/b'"),
        ({"good": "g", "bad": "g"}, "put them apart"),
        ({"good": "g", "bad": "g/../g/bad"}, "put them apart"),
        ({"bad": "b", "masks": "b/masks"}, "put them apart"),
        ({"name": "mpdd", "path": "data", "good": "g"}, "--good has no effect with mpdd"),
        ({"name": "mvtec", "path": "data", "bad": "b", "masks": "m"}, "--bad has no effect with mvtec"),
        ({"name": "mpdd"}, "mpdd needs DATA_PATH"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        folders(**settings)


# From the command line


@pytest.fixture(scope="module")
def brackets(parts, tmp_path_factory) -> Path:
    """The synthetic metal plates in the folders good, bad and masks."""
    root = tmp_path_factory.mktemp("photos") / "brackets"
    plate = parts / "metal_plate"
    shutil.copytree(plate / "train" / "good", root / "good")
    shutil.copytree(plate / "test", root / "bad", ignore=shutil.ignore_patterns("good"))
    shutil.copytree(plate / "ground_truth", root / "masks")
    return root


def test_good_images_are_all_that_a_model_needs(shell, brackets, tmp_path):
    run = ("--save_patchcore_model", "--save_anomaly_scores", "--save_segmentation_images", tmp_path)
    ended = shell(run_patchcore, *run, *NETWORK, "sampler", "dataset", *SMALL, "--good", brackets / "good", "folder")
    assert ended.code == 0, ended.err
    assert "brackets: no test images: nothing to measure" in ended.err
    assert "folder_brackets: no test images: nothing to measure" in ended.out.splitlines()
    assert "nan" not in ended.out
    folder = tmp_path / "project" / "group"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "models", "results.csv", "run.log"}
    assert [path.name for path in (folder / "models").iterdir()] == ["folder_brackets"]
    row = read_results(folder / "results.csv")["folder_brackets"]
    assert (row["train_images"], row["test_images"], str(row["instance_auroc"])) == (6, 0, "nan")
    config = yaml.safe_load((folder / "config.yaml").read_text())["dataset"]
    described = {name: config[name] for name in ("name", "path", "categories", "good", "bad", "masks")}
    assert described == {
        **{"name": "folder", "path": str(brackets), "categories": ["brackets"]},
        **{"good": str(brackets / "good"), "bad": None, "masks": None},
    }


def test_a_flow_learns_from_good_images_alone(shell, brackets, tmp_path):
    flow = ("fastflow", "--backbone", "efficientnet_lite0", "--weights", "random", "--epochs", 1, "--steps", 2)
    images = ("dataset", *SMALL, "--good", brackets / "good", "-d", "lids", "folder")
    ended = shell(run_fastflow, "--save_model", tmp_path, *images, *flow)
    assert ended.code == 0, ended.err
    assert "folder_lids: no test images: nothing to measure" in ended.out.splitlines()
    assert (tmp_path / "project" / "group" / "models" / "folder_lids" / "model.json").is_file()


def test_bad_images_are_tested_on_and_again_with_the_stored_model(shell, brackets, tmp_path, monkeypatch):
    run = ("--save_patchcore_model", "--save_anomaly_scores", "--save_segmentation_images", tmp_path)
    bad = ("--bad", brackets / "bad", "--masks", brackets / "masks")
    images = ("dataset", *SMALL, "--good", brackets / "good", *bad, "folder")
    ended = shell(run_patchcore, *run, *images, *NETWORK, "sampler")  # no stage is taken for a DATA_PATH
    assert ended.code == 0, ended.err
    assert "all test images are defective, so image metrics are undefined" in ended.err
    trained = tmp_path / "project" / "group"
    row = read_results(trained / "results.csv")["folder_brackets"]
    assert 0 <= row["full_pixel_auroc"] <= 1
    assert row["test_images"] == 8
    lines = score_lines(trained / "anomaly_scores" / "folder_brackets.csv")
    assert lines[0]["path"] == f"bad/{lines[0]['defect_type']}/000.png"
    assert all(line["label"] == "1" for line in lines)
    assert len(list((trained / "segmentation_images" / "folder_brackets").glob("bad_*_000_score*.png"))) == 4

    monkeypatch.chdir(brackets)
    loader = ("patch_core_loader", "-p", trained / "models")
    bad = ("--bad", "bad", "--masks", "masks")
    run = ("--save_anomaly_scores", "--log_group", "again", tmp_path)
    ended = shell(load_and_evaluate_patchcore, *run, *loader, "dataset", *bad, "folder")
    assert ended.code == 0, ended.err
    again = tmp_path / "project" / "again"
    assert score_lines(again / "anomaly_scores" / "folder_brackets.csv") == lines
    assert read_results(again / "results.csv")["folder_brackets"]["aupro"] == row["aupro"]
    test_sets = [yaml.safe_load((one / "config.yaml").read_text())["test_set"] for one in (trained, again)]
    assert test_sets[0] == test_sets[1]

    other = shutil.copytree(brackets / "bad", tmp_path / "of another name" / "bad")
    run, loader = (tmp_path / "named"), ("patch_core_loader", "-p", trained / "models" / "folder_brackets")
    ended = shell(load_and_evaluate_patchcore, run, *loader, "dataset", "--bad", other, "folder")
    assert ended.code == 0, ended.err
    assert "warning: brackets: the model" not in ended.err
    assert "folder_brackets" in read_results(run / "project" / "group" / "results.csv")


def test_a_resumed_run_has_the_same_folders(shell, brackets, tmp_path):
    other = shutil.copytree(brackets / "good", tmp_path / "lids" / "good")

    def start(*images):
        return shell(run_patchcore, "--resume", tmp_path, *NETWORK, "sampler", "dataset", *SMALL, *images, "folder")

    assert start("--good", brackets / "good").code == 0
    assert "brackets: finished before, skipped" in start("--good", brackets / "good").err
    ended = start("--good", other, "-d", "brackets")
    assert ended.code == 1
    assert f"was begun with dataset path '{brackets}'" in ended.err
    ended = start("--good", brackets / "good", "--bad", brackets / "bad")
    assert ended.code == 1
    assert f"was begun with dataset bad None, now it is '{brackets / 'bad'}'" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder",), "folder needs --good FOLDER"),
        (("--bad", "b", "folder"), "folder needs --good FOLDER"),
        (("--good", "g", "--masks", "m", "folder"), "--masks has no effect without --bad"),
        (("--good", "g", "folder", "data"), "DATA_PATH data has no effect with folder"),
        (("--good", "g", "-d", "a", "-d", "b", "folder"), "folder is one category"),
        (("--good", "/good", "folder"), "give a name, -d NAME"),
        (("--good", "g", "-d", "a", "mpdd", "data"), "--good has no effect with mpdd"),
        (("-d", "a", "mpdd"), "mpdd needs DATA_PATH"),
        (("mpdd", "data"), "at least one category is needed: -d NAME"),
    ],
    ids=str,
)
def test_wrong_use_of_the_folders_is_one_line(shell, tmp_path, arguments, message):
    ended = shell(run_patchcore, tmp_path / "out", *NETWORK, "dataset", *arguments, "sampler")
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_evaluation_needs_bad_images(shell, tmp_path):
    loader = ("patch_core_loader", "-p", tmp_path / "models")
    ended = shell(load_and_evaluate_patchcore, tmp_path / "out", *loader, "dataset", "folder")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "folder needs --bad FOLDER" in ended.err
