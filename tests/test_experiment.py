"""The loop over categories with a method that takes no time: what it writes, what it survives, what it resumes."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from brightness_method import METHOD, Brightness, BrightnessConfig
from patchcore.category_run import Job
from patchcore.comparison.runs import find_runs
from patchcore.config import DatasetConfig, RunConfig
from patchcore.experiment import Summary, run_experiment
from patchcore.features.workspace import Workspace
from patchcore.methods.stored_model import read_model
from patchcore.results.columns import METRICS
from patchcore.results.tables import read_defect_types, read_results
from patchcore.types import PatchCoreError

SIDE = 64
BRIGHT = {"plate": 100, "lamp": 200}


@pytest.fixture
def data(tmp_path) -> Path:
    """Two categories of grey images, one dark and one bright; defective images have a white square."""
    for category, level in BRIGHT.items():
        for folder, count in (("train/good", 4), ("test/good", 3), ("test/spot", 3)):
            for index in range(count):
                pixels = np.full((SIDE, SIDE, 3), level + index, np.uint8)
                mask = np.zeros((SIDE, SIDE), np.uint8)
                if "spot" in folder:
                    pixels[10:30, 10:30] = mask[10:30, 10:30] = 255
                    target = tmp_path / "data" / category / "ground_truth" / "spot"
                    target.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(target / f"{index}_mask.png")
                target = tmp_path / "data" / category / folder
                target.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path):
    def start(*, config=None, models=None, categories=("plate", "lamp"), **settings) -> Summary:
        config = config or BrightnessConfig()
        job = Job(
            method=METHOD,
            configs=dict.fromkeys(categories, config),
            models=models or {},
            workspace=Workspace([torch.device("cpu")]),
        )
        dataset = DatasetConfig(name="mpdd", path=data, categories=categories, resize=SIDE, imagesize=SIDE)
        return run_experiment(RunConfig(results_path=tmp_path / "out", **settings), dataset, job, command="by hand")

    return start


def test_a_run_of_any_method_writes_the_same_files(run):
    summary = run(save_model=True, save_segmentation_images=True, save_anomaly_scores=True)
    assert list(summary.rows) == ["mpdd_plate", "mpdd_lamp"]
    assert all(row["instance_auroc"] == row["aupro"] == 1.0 for row in summary.rows.values())
    assert summary.rows["mpdd_plate"]["fit_mean_seconds"] >= 0
    folder = summary.folder
    assert summary.highest["mpdd_plate"] == folder.overlay("mpdd_plate", "plate/test/spot/0.png", 1.0)
    assert summary.highest["mpdd_plate"].is_file()
    config = yaml.safe_load(folder.config.read_text())
    assert list(config)[:2] == ["command", "id"]
    assert config["method"] == {
        "name": "brightness",
        "title": "Brightness",
        "short_name": "Brightness no network, 64 px, factor 1",
    }
    assert config["settings"] == {"factor": 1.0, "too_bright": 256.0}
    assert config["execution"] == {"threads": 1}
    model = json.loads((folder.models / "mpdd_lamp" / "model.json").read_text())
    assert model["training"]["run"] == config["id"]
    assert model["training"]["category"] == "lamp"
    assert model["training"]["images"] == 4


def test_a_category_that_fails_leaves_the_others(run, caplog):
    summary = run(config=BrightnessConfig(too_bright=150))
    assert list(summary.rows) == ["mpdd_plate"]
    assert summary.failures == {"lamp": "the images are too bright: 202"}
    assert "lamp: the images are too bright" in caplog.text
    assert "mpdd_lamp" not in summary.folder.results.read_text()


def test_a_run_in_which_all_fail_leaves_nothing(run, tmp_path):
    summary = run(config=BrightnessConfig(too_bright=1))
    assert len(summary.failures) == 2
    assert not (tmp_path / "out").exists()


def test_a_failure_of_another_kind_is_named_with_its_type(run, monkeypatch):
    def fail(*args: object) -> None:
        raise IndexError("out of\nrange")

    monkeypatch.setattr(Brightness, "score", fail)
    assert run().failures == dict.fromkeys(BRIGHT, "IndexError: out of range")


def test_resume_goes_on_with_what_is_missing_and_keeps_its_id(run, caplog):
    first = run(config=BrightnessConfig(too_bright=150), save_model=True)
    begun = yaml.safe_load(first.folder.config.read_text())
    text = first.folder.config.read_text().replace("too_bright: 150.0", "too_bright: 256.0")
    first.folder.config.write_text(text)  # as if what failed had been mended
    caplog.set_level(logging.INFO)
    second = run(resume=True, save_model=True)
    assert second.folder.path == first.folder.path
    assert "plate: finished before, skipped" in caplog.text
    assert list(second.rows) == ["mpdd_plate", "mpdd_lamp"]
    assert read_model(second.folder.models / "mpdd_lamp", {METHOD.name: METHOD}).training.run == begun["id"]


def test_resume_refuses_other_settings_but_not_where_they_are_computed(run):
    run(categories=("plate",))
    run(categories=("plate",), config=BrightnessConfig(threads=3), resume=True)
    with pytest.raises(PatchCoreError, match=r"was begun with settings factor 1\.0, now it is 2\.0"):
        run(categories=("plate",), config=BrightnessConfig(factor=2), resume=True)


def test_stored_models_are_evaluated_with_what_was_chosen_anew(run):
    trained = run(save_model=True, categories=("plate",))
    model = read_model(trained.folder.models / "mpdd_plate", {METHOD.name: METHOD}).with_settings({"factor": 2.0})
    summary = run(models={"plate": model}, config=model.config, categories=("plate",), save_anomaly_scores=True)
    config = yaml.safe_load(summary.folder.config.read_text())
    assert config["overrides"] == {"factor": 2.0}
    assert config["models"]["plate"]["run"] == yaml.safe_load(trained.folder.config.read_text())["id"]
    assert config["method"]["short_name"].endswith(", stored")
    assert "fit_seconds" not in summary.rows["mpdd_plate"]
    assert not (summary.folder.path / "models").exists()


def test_models_of_different_configurations_have_no_name(run, tmp_path):
    trained = run(save_model=True)
    models = {
        category: read_model(trained.folder.models / f"mpdd_{category}", {METHOD.name: METHOD}) for category in BRIGHT
    }
    models["lamp"] = models["lamp"].with_settings({"factor": 3.0})
    job_configs = {category: model.config for category, model in models.items()}
    job = Job(method=METHOD, configs=job_configs, models=models, workspace=Workspace([torch.device("cpu")]))
    dataset = DatasetConfig(name="mpdd", path=tmp_path / "data", categories=tuple(BRIGHT), resize=SIDE, imagesize=SIDE)
    summary = run_experiment(RunConfig(results_path=tmp_path / "out"), dataset, job, command="by hand")
    config = yaml.safe_load(summary.folder.config.read_text())
    assert config["method"]["short_name"] == ""
    assert config["settings_by_category"] == {"plate": {"factor": 1.0}, "lamp": {"factor": 3.0}}


EVERYTHING = {"save_model": True, "save_segmentation_images": True, "save_anomaly_scores": True}


def test_a_category_without_test_images_is_trained_and_stored(run, data, caplog):
    shutil.rmtree(data / "plate" / "test")
    caplog.set_level(logging.INFO)
    summary = run(**EVERYTHING)
    assert not summary.failures
    assert [text for text in caplog.messages if "nothing to measure" in text] == [
        "plate: no test images: nothing to measure"
    ]
    folder, rows = summary.folder, read_results(summary.folder.results)
    assert (folder.models / "mpdd_plate" / "model.json").is_file()
    assert all(math.isnan(rows["mpdd_plate"][metric]) for metric in METRICS)
    assert all(rows["mpdd_lamp"][metric] == rows["Mean"][metric] for metric in METRICS)
    assert (rows["mpdd_plate"]["test_images"], rows["mpdd_plate"]["train_images"]) == (0, 4)
    assert list(read_defect_types(folder.defect_types)) == ["mpdd_lamp"]
    assert {path.stem for path in folder.overlays.iterdir()} == {"mpdd_lamp"}
    assert {path.name for path in (folder.path / "anomaly_scores").iterdir()} == {
        *("mpdd_lamp.csv", "mpdd_lamp.png", "mpdd_lamp_pixels.npz"),
    }
    assert list(summary.highest) == ["mpdd_lamp"]


@pytest.mark.parametrize("missing", ["good", "spot"])
def test_test_images_of_one_kind_only_are_scored_and_compared(run, data, missing):
    shutil.rmtree(data / "plate" / "test" / missing)
    summary = run(**EVERYTHING, categories=("plate",))
    assert not summary.failures
    row = summary.rows["mpdd_plate"]
    assert math.isnan(row["instance_auroc"])
    assert math.isnan(row["full_pixel_auroc"]) == (missing == "spot")
    assert row["test_images"] == 3
    (read,), problems = find_runs(summary.folder.path)
    assert problems == {}
    assert read.scores["mpdd_plate"].labels.tolist() == [missing == "good"] * 3
    assert read.pixel_pairs["mpdd_plate"].won.shape == (3 if missing == "good" else 0, 3)


def test_unlabelled_test_images_are_counted_but_not_measured(run, data, caplog):
    labelled = run(categories=("plate",), log_group="labelled")
    for name in ("0.png", "1.png"):
        shutil.copy(data / "plate" / "test" / "spot" / name, data / "plate" / "test" / name)
    summary = run(categories=("plate",))
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        "plate: images directly in the folder test (2) have no label: not measured, but predict judges them"
    )
    rows = [one.rows["mpdd_plate"] for one in (labelled, summary)]
    assert all(rows[0][metric] == rows[1][metric] for metric in (*METRICS, "test_images"))
    configs = [yaml.safe_load(one.folder.config.read_text()) for one in (labelled, summary)]
    assert configs[0]["test_set"] == configs[1]["test_set"]


def test_memory_is_said_before_the_training(run, monkeypatch, caplog):
    monkeypatch.setattr(Brightness, "expected_bytes", lambda self, count: {torch.device("cpu"): count * 2**60})
    caplog.set_level(logging.INFO)
    run()
    [record] = [record for record in caplog.records if "training images take about" in record.message]
    assert record.levelno == logging.WARNING
    assert record.message.startswith("4 training images take about 4294967296.0 GiB of host memory")


def test_held_out_images_take_no_part_in_training(data, tmp_path):
    job = Job(method=METHOD, configs={"plate": BrightnessConfig()}, workspace=Workspace([torch.device("cpu")]))
    dataset = DatasetConfig(
        name="mpdd", path=data, categories=("plate",), resize=SIDE, imagesize=SIDE, train_val_split=0.5
    )
    run = RunConfig(results_path=tmp_path / "out", save_model=True)
    summary = run_experiment(run, dataset, job, command="by hand")
    row = summary.rows["mpdd_plate"]
    assert row["train_images"] == 2
    assert row["defects_caught"] == 1.0
    stored = read_model(summary.folder.models / "mpdd_plate", {METHOD.name: METHOD})
    assert stored.training.train_val_split == 0.5
    assert dataclasses.asdict(stored.geometry) == {"resize": SIDE, "imagesize": SIDE, "reduced_decoding": False}


def test_a_resumed_folder_is_never_removed(run):
    folder = run(categories=("plate",), save_model=True).folder
    folder.results.unlink()
    (folder.path / "notes.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Brightness, "prepare", lambda self: (_ for _ in ()).throw(PatchCoreError("no network")))
        with pytest.raises(PatchCoreError, match="no network"):
            run(categories=("plate",), save_model=True, resume=True)
    assert (folder.path / "notes.txt").read_text() == "mine"
    assert (folder.models / "mpdd_plate" / "model.json").is_file()


def test_a_method_cannot_replace_columns_of_the_results(run, monkeypatch):
    monkeypatch.setattr(Brightness, "costs", lambda self: {"instance_auroc": 5.0})
    assert "a name that the results have already" in run().failures["plate"]


def test_a_model_of_another_category_makes_a_column_of_its_own(run):
    trained = run(save_model=True)
    lamp = read_model(trained.folder.models / "mpdd_lamp", {METHOD.name: METHOD})
    summary = run(models={"plate": lamp}, categories=("plate",))
    config = yaml.safe_load(summary.folder.config.read_text())
    assert config["method"]["short_name"].endswith(", stored, models of other categories")
