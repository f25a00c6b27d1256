"""A method from outside goes through every command and the Python API without a line of the package being touched."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import padim
import patchcore
from patchcore import methods
from patchcore.cli.commands import evaluation_command, training_command
from patchcore.cli.compare import compare_results
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = ("padim", "-b", "efficientnet_lite0", "-le", "blocks.2", "-le", "blocks.4", "--channels", 40)
IMAGES = ("dataset", "--resize", 96, "--imagesize", 96, "-d", "metal_plate", "mpdd")
ROW = "mpdd_metal_plate"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr("patchcore.methods.loading.METHODS", methods.METHODS)
    methods.register(padim.METHOD)


@pytest.fixture
def results(shell, parts, tmp_path):
    """The results of two runs that differ in their seed."""
    for seed in (0, 1):
        run = ("--seed", seed, "--log_group", f"s{seed}", "--save_model", "--save_anomaly_scores")
        ended = shell(
            training_command(padim.METHOD), *run, "--save_segmentation_images", tmp_path, *STAGES, *IMAGES, parts
        )
        assert ended.code == 0, ended.err
    return tmp_path / "project"


def raw_scores(run: Path) -> list[str]:
    with (run / "anomaly_scores" / f"{ROW}.csv").open() as file:
        return [row["raw_score"] for row in csv.DictReader(file)]


def test_runs_stores_evaluates_and_compares(results, shell, parts, tmp_path):
    run = ("--save_anomaly_scores", "--log_group", "again", tmp_path)
    stages = ("padim_loader", "-p", results / "s0/models", "dataset", "-d", "metal_plate", "mpdd", parts)
    ended = shell(evaluation_command(padim.METHOD), *run, *stages)
    assert ended.code == 0, ended.err
    assert raw_scores(results / "again") == raw_scores(results / "s0")
    ended = shell(compare_results, results, "--output", tmp_path / "report")
    assert ended.code == 0, ended.err
    assert "PaDiM efficientnet_lite0, 96 px, 40 channels" in ended.out
    assert "again: an evaluation of stored models" in ended.out


def test_a_stored_detector_gives_the_scores_of_its_run(results, parts):
    detector = patchcore.load(results / "s0" / "models" / ROW)
    assert detector.training.category == "metal_plate"
    assert detector.training.images == 6
    with (results / "s0" / "anomaly_scores" / f"{ROW}.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in (rows[0], rows[-1]):
        assert detector.predict(parts / row["path"]).score == pytest.approx(float(row["raw_score"]), rel=1e-4)


def test_the_python_api_fits_saves_and_loads(parts, tmp_path):
    detector = padim.Padim(backbone="efficientnet_lite0", layers=["blocks.2"], channels=20, resize=96, imagesize=96)
    with pytest.raises(PatchCoreError, match="learnt nothing yet"):
        detector.predict(np.zeros((96, 96, 3), np.uint8))
    detector.fit(parts / "metal_plate" / "train" / "good").save(tmp_path / "model")
    with Image.open(parts / "metal_plate" / "test" / "scratches" / "000.png") as image:
        image.load()
    result = detector.predict(image)
    again = patchcore.load(tmp_path / "model").predict(np.asarray(image))
    assert again.score == result.score
    np.testing.assert_array_equal(again.map, result.map)


def test_a_method_of_the_same_name_is_refused():
    with pytest.raises(ValueError, match="a method 'padim' already"):
        methods.register(methods.METHODS["patchcore"].__class__(**{**vars(padim.METHOD)}))


def test_it_takes_less_than_150_lines():
    assert len(Path(padim.__file__).read_text().splitlines()) < 150
