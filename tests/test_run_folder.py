"""The folder of a run: how it is made and found again, and where everything lies in it."""

from pathlib import Path

import pytest

from patchcore.results.config_file import write_yaml
from patchcore.results.run_folder import RunFolder, find_run_folders
from patchcore.types import PatchCoreError

ROW = "mpdd_metal_plate"


def newest(results_path):
    return RunFolder.newest(results_path, "project", "group")


def test_a_run_never_gets_a_folder_that_was_there(tmp_path):
    made = [RunFolder.create(tmp_path, "project", "group").path for _ in range(3)]
    assert made == [tmp_path / "project" / name for name in ("group", "group_0", "group_1")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "project").write_text("a file")
    with pytest.raises(PatchCoreError, match=f"cannot make the results folder {tmp_path / 'project' / 'group'}"):
        RunFolder.create(tmp_path, "project", "group")


def test_the_newest_run_of_a_group_is_the_one_made_last(tmp_path):
    assert newest(tmp_path) is None
    for _ in range(12):
        made = RunFolder.create(tmp_path, "project", "group")
        assert newest(tmp_path).path == made.path


def test_a_group_named_like_the_second_run_of_another_is_not_taken_for_it(tmp_path):
    first = RunFolder.create(tmp_path, "project", "group")
    write_yaml(first.config, {"run": {"log_group": "group"}})
    other = RunFolder.create(tmp_path, "project", "group_0")
    write_yaml(other.config, {"run": {"log_group": "group_0"}})
    assert newest(tmp_path).path == first.path
    second = RunFolder.create(tmp_path, "project", "group")
    assert second.path.name == "group_1"
    assert newest(tmp_path).path == second.path  # ended before it wrote its settings


def test_every_file_has_its_place():
    run = RunFolder(Path("g"))
    places = {
        "config.yaml": run.config,
        "results.csv": run.results,
        "defect_types.csv": run.defect_types,
        "run.log": run.log,
        "training": run.trainings,
        "models": run.models,
        "segmentation_images": run.overlays,
        f"anomaly_scores/{ROW}.csv": run.scores(ROW),
        f"anomaly_scores/{ROW}.png": run.score_histogram(ROW),
        f"anomaly_scores/{ROW}_pixels.npz": run.pixel_pairs(ROW),
    }
    assert {name: place.relative_to("g").as_posix() for name, place in places.items()} == {
        name: name for name in places
    }


def test_an_overlay_is_named_after_its_image_and_score():
    expected = Path("g") / "segmentation_images" / ROW / "metal_plate_test_major_rust_00.7_score0.988.png"
    assert RunFolder(Path("g")).overlay(ROW, "metal_plate/test/major_rust/00.7.png", 0.98765) == expected


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../x.png", "a/../../b/c.png"])
def test_no_path_in_a_damaged_file_leads_out_of_the_folder(path):
    overlay = RunFolder(Path("g")).overlay(ROW, path, 0.5)
    assert overlay.parent == Path("g") / "segmentation_images" / ROW
    assert "/" not in overlay.name


def test_runs_are_found_by_any_of_their_files_in_the_order_of_their_numbers(tmp_path):
    for name, file in (("run_10", "run.log"), ("run_2", "config.yaml"), ("deep/er", "results.csv"), ("no", "x.csv")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / file).touch()
    assert [name for name, _ in find_run_folders(tmp_path)] == ["deep/er", "run_2", "run_10"]
    ((name, run),) = find_run_folders(tmp_path / "run_2")
    assert (name, run.path) == ("run_2", tmp_path / "run_2")
