"""run_fastflow.py and load_and_evaluate_fastflow.py, as a user runs them, on a very small synthetic set."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import older_formats
from commands import load_and_evaluate_fastflow, run_fastflow, score_lines
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import load_image
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.presets import PRESETS, preset_of
from patchcore.results.tables import read_results
from patchcore.system.files import shipped

pytestmark = pytest.mark.usefixtures("one_thread")

LITE0 = ("--backbone", "efficientnet_lite0")
QUICK = (*LITE0, "--epochs", 2, "--steps", 2)
SMALL = ("--resize", 72, "--imagesize", 64, "-d", "metal_plate")
SCRIPT = Path(__file__).resolve().parents[1] / "bin" / "run_fastflow.py"


def args(results: Path, data: Path, *, run=("--save_anomaly_scores",), fastflow=QUICK, dataset=SMALL) -> list[object]:
    return [*run, results, "fastflow", *fastflow, "dataset", *dataset, "mpdd", data]


def scores_of(folder: Path, row: str = "mpdd_metal_plate") -> list[dict[str, str]]:
    with (folder / "anomaly_scores" / f"{row}.csv").open() as file:
        return list(csv.DictReader(file))


def raw_scores(folder: Path) -> list[float]:
    return [float(row["raw_score"]) for row in scores_of(folder)]


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory) -> Path:
    """The folder of a run with everything stored, two categories, and held-out images."""
    results = tmp_path_factory.mktemp("results of fastflow")
    dataset = (*SMALL, "-d", "bracket_white", "--train_val_split", 0.6)
    run = ("--save_model", "--save_segmentation_images", "--save_anomaly_scores")
    with pytest.raises(SystemExit) as stop:
        run_fastflow.main([str(arg) for arg in args(results, parts, run=run, dataset=dataset)])
    assert stop.value.code == 0
    return results / "project" / "group"


def test_a_run_leaves_what_is_promised(trained):
    rows = read_results(trained / "results.csv")
    assert list(rows) == ["mpdd_metal_plate", "mpdd_bracket_white", "Mean"]
    row = rows["mpdd_metal_plate"]
    assert list(row)[:3] == ["instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc"]
    assert {"fit_flow_seconds", "flow_ms_per_image", "backbone_ms_per_image", "flow_mib", "model_mib"} <= set(row)
    assert len(list((trained / "segmentation_images" / "mpdd_metal_plate").glob("*.png"))) == row["test_images"]
    with (trained / "training" / "mpdd_metal_plate" / "training.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert [line["epoch"] for line in epochs] == ["1", "2"]
    assert float(epochs[1]["loss"]) < float(epochs[0]["loss"])
    assert list(epochs[0]) == ["epoch", "loss", "learning_rate", "images_per_second", "seconds_left"]
    assert not list(trained.rglob("checkpoint.pt"))
    assert yaml.safe_load((trained / "config.yaml").read_text())["settings"]["steps"] == 2
    model = trained / "models" / "mpdd_metal_plate"
    assert {path.name for path in model.iterdir()} == {"fastflow.safetensors", "model.json", "training_images.zip"}


def test_scores_come_with_likelihood_and_p_value(trained):
    lines = scores_of(trained)
    held_out = 2  # of 6
    for line in lines:
        above = float(line["p_value"]) * (held_out + 1)  # 1 and the held-out images that score at least so high
        assert round(above, 6) in (1, 2, 3)
        assert (round(above, 6) == 1) == (line["rejected"] == "1")
    assert len({line["log_likelihood"] for line in lines}) == len(lines)


def test_evaluation_gives_the_same_numbers(trained, parts, tmp_path, shell):
    dataset = ("-d", "metal_plate", "-d", "bracket_white")
    ended = shell(
        load_and_evaluate_fastflow,
        *("--save_anomaly_scores", tmp_path, "fastflow_loader", "-p", trained / "models"),
        *("dataset", *dataset, "mpdd", parts),
    )
    assert ended.code == 0, ended.err
    assert_same_scores(tmp_path / "project" / "group", trained)


def assert_same_scores(one: Path, other: Path, *, verdicts: bool = True) -> None:
    for row in ("mpdd_metal_plate", "mpdd_bracket_white"):
        name = f"anomaly_scores/{row}.csv"
        assert score_lines(one / name, verdicts=verdicts) == score_lines(other / name, verdicts=verdicts)


@pytest.mark.parametrize("option", [(), ("--image_score", "max")], ids=["as stored", "scored anew"])
def test_models_of_version_0_1_give_the_same_numbers(option, trained, parts, tmp_path, shell):
    older = tmp_path / "older"
    for model in (trained / "models").iterdir():
        older_formats.fastflow_format_1(model, older / model.name)
    for models, group in ((older, "older"), (trained / "models", "newer")):
        ended = shell(
            load_and_evaluate_fastflow,
            *("--save_anomaly_scores", "--log_group", group, tmp_path, "fastflow_loader", "-p", models, *option),
            *("dataset", "-d", "metal_plate", "-d", "bracket_white", "mpdd", parts),
        )
        assert ended.code == 0, ended.err
    folders = [tmp_path / "project" / group for group in ("older", "newer")]
    assert_same_scores(*folders, verdicts=False)
    if not option:
        assert_same_scores(folders[0], trained, verdicts=False)
    of_older, of_newer = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders)
    for section in ("settings", "method", "overrides", "dataset"):
        assert of_older[section] == of_newer[section]


SCORING = [
    ("--density", "full"),
    ("--position_score", "log_likelihood"),
    ("--scale_weighting", "equal"),
    ("--image_score", "max"),
    ("--image_score", "mean"),
    ("--top_share", 0.2),
]


@pytest.mark.parametrize("option", SCORING, ids=lambda option: "=".join(map(str, option)))
def test_stored_models_may_be_scored_anew(option, trained, parts, tmp_path, shell):
    ended = shell(
        load_and_evaluate_fastflow,
        *("--save_anomaly_scores", tmp_path, "fastflow_loader", "-p", trained / "models", *option),
        *("dataset", "-d", "metal_plate", "mpdd", parts),
    )
    assert ended.code == 0, ended.err
    assert raw_scores(tmp_path / "project" / "group") != raw_scores(trained)


@pytest.fixture(scope="module")
def plain(parts, tmp_path_factory) -> list[float]:
    """The scores of a run without further options."""
    results = tmp_path_factory.mktemp("plain")
    with pytest.raises(SystemExit) as stop:
        run_fastflow.main([str(arg) for arg in args(results, parts)])
    assert stop.value.code == 0
    return raw_scores(results / "project" / "group")


OPTIONS = [
    ("-le", "blocks.2", "-le", "blocks.4"),
    ("--steps", 3),
    ("--kernels", "3x3-1x1"),
    ("--hidden_ratio", 0.5),
    ("--clamp", 0.01),
    ("--feature_norm", "layer_norm"),
    ("--noise", 0),
    ("--match_brightness",),
    ("--brightness_jitter", 0.3),
    ("--epochs", 1),
    ("--train_batch_size", 3),
    ("--learning_rate", 1e-4),
    ("--weight_decay", 1.0),
    ("--warmup", 0),
    ("--gradient_clip", 1e-9),
    ("--tile", 32),
    ("--tile", 32, "--tile_stride", 16),
    ("--precision", "bfloat16"),
    ("--use_class_specific",),
    ("--backbone", "efficientnet_lite0.seed-1", "--weights", "random"),
    *SCORING,
]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: "=".join(map(str, option)))
def test_every_option_acts(option, plain, parts, tmp_path, shell):
    fastflow = (*QUICK, *option)
    if option == ("--use_class_specific",):
        path = tmp_path / "by category.yaml"
        path.write_text("metal_plate: {noise: 0.7, image_score: max}\n")
        fastflow += ("--class_config", path)
    ended = shell(run_fastflow, *args(tmp_path, parts, fastflow=fastflow))
    assert ended.code == 0, ended.err
    assert raw_scores(tmp_path / "project" / "group") != plain


@pytest.mark.parametrize("run", [("--seed", 1), ("--augment",)], ids=["seed", "augment"])
def test_seed_and_augment_act(run, plain, parts, tmp_path, shell):
    run, dataset = ((), (*SMALL, *run)) if run == ("--augment",) else (run, SMALL)
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--save_anomaly_scores", *run), dataset=dataset))
    assert ended.code == 0, ended.err
    assert raw_scores(tmp_path / "project" / "group") != plain


def test_the_same_seed_gives_the_same_scores(plain, parts, tmp_path, shell):
    assert shell(run_fastflow, *args(tmp_path, parts)).code == 0
    assert raw_scores(tmp_path / "project" / "group") == plain


@pytest.mark.parametrize("more", [(), ("--tile", 48, "--tile_stride", 16), ("--match_brightness",)])
def test_features_that_do_not_fit_are_computed_anew_and_change_nothing(more, parts, tmp_path, shell, monkeypatch):
    assert shell(run_fastflow, *args(tmp_path, parts, fastflow=(*QUICK, *more))).code == 0
    monkeypatch.setattr("patchcore.methods.fastflow.samples.available_bytes", lambda device: 1000)
    ended = shell(run_fastflow, *args(tmp_path, parts, fastflow=(*QUICK, *more)))
    assert ended.code == 0
    assert "computed anew in every epoch" in ended.err
    once, anew = (raw_scores(tmp_path / "project" / group) for group in ("group", "group_0"))
    assert anew == pytest.approx(once, rel=1e-3)


def test_matched_brightness_undoes_a_darker_lamp(parts, tmp_path):
    from patchcore.methods.fastflow.brightness import brightness, match_brightness

    path = next((parts / "metal_plate" / "test" / "good").iterdir())
    image = Geometry(resize=72, imagesize=64).image(load_image(path))[None]
    dark = (image.float() * 0.9).round().to(torch.uint8)
    target = float(brightness(image))
    assert torch.equal(match_brightness(image, target), image)
    assert (match_brightness(dark, target).float() - image).abs().max() <= 2
    assert (dark.float() - image).abs().max() > 10


# Resuming


def test_a_killed_training_resumes_to_the_same_weights(parts, tmp_path):
    """SIGKILL at a moment that no code chose; then --resume."""
    fastflow = ("fastflow", *LITE0, "--epochs", "12", "--steps", "2", "--checkpoint_seconds", "0")
    options = [*fastflow, "dataset", *map(str, SMALL), "mpdd", str(parts)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(results: Path, *more: str) -> list[str]:
        return [sys.executable, str(SCRIPT), "--save_model", *more, str(results), *options]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    folder = killed / "project" / "group"
    record = folder / "training" / "mpdd_metal_plate" / "training.csv"
    deadline = time.monotonic() + 120
    while not (record.exists() and len(record.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (record.parent / "checkpoint.pt").exists()
    assert not (folder / "results.csv").exists()
    resumed = subprocess.run(command(killed, "--resume"), check=True, capture_output=True, text=True, env=environment)
    assert "going on after epoch" in resumed.stderr
    weights = Path("models") / "mpdd_metal_plate" / "fastflow.safetensors"
    assert (folder / weights).read_bytes() == (whole / "project" / "group" / weights).read_bytes()
    assert len(record.read_text().splitlines()) == 13
    assert not (record.parent / "checkpoint.pt").exists()


def test_resume_keeps_finished_categories(parts, tmp_path, shell):
    both = (*SMALL, "-d", "bracket_white")
    assert shell(run_fastflow, *args(tmp_path, parts, dataset=both)).code == 0
    folder = tmp_path / "project" / "group"
    rows = (folder / "results.csv").read_text().splitlines()
    (folder / "results.csv").write_text("\n".join(rows[:2]) + "\n")
    before = read_results(folder / "results.csv")
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--save_anomaly_scores", "--resume"), dataset=both))
    assert ended.code == 0, ended.err
    assert "metal_plate: finished before, skipped" in ended.err
    after = read_results(folder / "results.csv")
    assert list(after) == ["mpdd_metal_plate", "mpdd_bracket_white", "Mean"]
    assert after["mpdd_metal_plate"] == before["mpdd_metal_plate"]  # its time of training among it
    assert [path.name for path in folder.parent.iterdir()] == ["group"]


def test_resume_refuses_other_settings(parts, tmp_path, shell):
    assert shell(run_fastflow, *args(tmp_path, parts)).code == 0
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--resume",), fastflow=(*QUICK, "--noise", 0.1)))
    assert ended.code == 1
    assert "was begun with" in ended.err
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--resume", "--seed", 5, "--save_anomaly_scores")))
    assert ended.code == 1
    assert "run seed 0, now it is 5" in ended.err


def test_resume_without_a_run_starts_one(parts, tmp_path, shell):
    assert shell(run_fastflow, *args(tmp_path, parts, run=("--resume",))).code == 0
    assert (tmp_path / "project" / "group" / "results.csv").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_bad_checkpoint_is_named(content, parts, tmp_path, shell):
    folder = tmp_path / "project" / "group" / "training" / "mpdd_metal_plate"
    assert shell(run_fastflow, *args(tmp_path, parts)).code == 0
    (tmp_path / "project" / "group" / "results.csv").unlink()
    if content is None:
        torch.save({"settings": "others", "model": {}, "optimizer": {}, "rows": []}, folder / "checkpoint.pt")
    else:
        (folder / "checkpoint.pt").write_bytes(content)
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--save_anomaly_scores", "--resume")))
    assert ended.code == 1
    assert str(folder / "checkpoint.pt") in ended.err


# Settings by category, and presets


def test_an_option_beats_the_file_and_the_file_the_preset(parts, tmp_path, shell):
    path = tmp_path / "by category.yaml"
    path.write_text("metal_plate: {steps: 3, noise: 0.5}\nbracket_white: {steps: 4}\n")
    dataset = (*SMALL, "-d", "bracket_white")
    fastflow = (*LITE0, "--epochs", 1, "--noise", 0.1, "--use_class_specific", "--class_config", path)
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--save_model",), fastflow=fastflow, dataset=dataset))
    assert ended.code == 0, ended.err
    folder = tmp_path / "project" / "group"
    stored = {
        name: json.loads((folder / "models" / f"mpdd_{name}" / "model.json").read_text())["settings"]
        for name in ("metal_plate", "bracket_white")
    }
    assert [stored[name]["steps"] for name in stored] == [3, 4]
    assert [stored[name]["noise"] for name in stored] == [0.1, 0.1]
    content = yaml.safe_load((folder / "config.yaml").read_text())
    assert content["settings"]["class_specific"] is True
    assert content["settings"]["kernels"] == preset_of("efficientnet_lite0").kernels
    assert "steps" not in content["settings"]
    assert content["settings_by_category"] == {"metal_plate": {"steps": 3}, "bracket_white": {"steps": 4}}
    assert content["method"]["short_name"] == "FastFlow efficientnet_lite0, 64 px, class-specific"


def test_the_file_that_ships_is_taken_where_no_other_is_given(parts, tmp_path, shell):
    fastflow = (*LITE0, "--steps", 1, "--use_class_specific")
    dataset = (*SMALL[:4], "-d", "bracket_white")
    ended = shell(run_fastflow, *args(tmp_path, parts, run=(), fastflow=fastflow, dataset=dataset))
    assert ended.code == 0, ended.err
    settings = yaml.safe_load((tmp_path / "project" / "group" / "config.yaml").read_text())["settings"]
    shipping = yaml.safe_load(shipped("fastflow_mpdd.yaml").read_text())["bracket_white"]
    assert shipping != {}
    assert {name: settings[name] for name in shipping} == shipping


def test_the_file_that_ships_covers_mpdd():
    content = yaml.safe_load(shipped("fastflow_mpdd.yaml").read_text())
    assert set(content) == {"bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"}
    for settings in content.values():
        FastFlowConfig(backbone="any", **settings)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("bracket_white: {epochs: 3}", "no settings for metal_plate; there are some for bracket_white"),
        ("metal_plate: {backbone: resnet18}", "metal_plate sets 'backbone'; by category there are"),
        ("metal_plate: 3", "expected settings by name for metal_plate"),
        ("metal_plate: {epochs: 0}", "epochs must be at least 1, got 0"),
        ("metal_plate: {epochs: many}", "settings of metal_plate"),
        ("- 1", "expected settings by name"),
        ("{", "cannot read the settings"),
    ],
)
def test_a_bad_class_file_is_named(content, expected, parts, tmp_path, shell):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    fastflow = (*LITE0, "--use_class_specific", "--class_config", path)
    ended = shell(run_fastflow, *args(tmp_path / "out", parts, fastflow=fastflow))
    assert ended.code == 1
    assert expected in ended.err
    assert str(path) in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2"])
def test_presets_set_image_size_and_flow(backbone, parts, tmp_path, shell):
    fastflow = ("--backbone", backbone, "--weights", "random", "--epochs", 1)
    if backbone == "wide_resnet50_2":
        fastflow = (*fastflow, "--hidden_ratio", 0.05, "--steps", 2)  # a test need not wait for 50 million weights
    ended = shell(run_fastflow, *args(tmp_path, parts, run=(), fastflow=fastflow, dataset=("-d", "metal_plate")))
    assert ended.code == 0, ended.err
    settings = yaml.safe_load((tmp_path / "project" / "group" / "config.yaml").read_text())
    assert settings["dataset"]["resize"] == settings["dataset"]["imagesize"] == 256
    assert settings["settings"]["kernels"] == PRESETS[backbone].kernels


def test_an_image_size_given_beats_the_preset(parts, tmp_path, shell):
    dataset = ("--imagesize", 64, "-d", "metal_plate")
    assert shell(run_fastflow, *args(tmp_path, parts, dataset=dataset)).code == 0
    settings = yaml.safe_load((tmp_path / "project" / "group" / "config.yaml").read_text())["dataset"]
    assert (settings["resize"], settings["imagesize"]) == (256, 64)


# Failures


@pytest.mark.parametrize(
    ("fastflow", "code", "expected"),
    [
        (("--tile_stride", 16), 2, "needs a tile size"),
        (("--tile", 16, "--tile_stride", 17), 2, "tile_stride must be in [1, 16]"),
        (("--tile", 65), 1, "tiles of 65 pixels do not fit into images of 64 x 64"),
        (("--backbone", "resnet19"), 1, "unknown backbone 'resnet19'"),
        (("-le", "layer9"), 1, "no layer 'layer9'"),
        (("--class_config", "x.yaml"), 2, "no effect without --use_class_specific"),
        (("--top_share", 0.1, "--image_score", "max"), 2, "--top_share has no effect with --image_score max"),
        (("--weights", "random", "--weights_dir", "x"), 2, "--weights_dir has no effect with --weights random"),
        (("--learning_rate", 1e30), 1, "the training diverged in epoch"),
        (("--epochs", 0), 2, "--epochs"),
    ],
)
def test_wrong_settings_end_in_one_line(fastflow, code, expected, parts, tmp_path, shell):
    ended = shell(run_fastflow, *args(tmp_path / "out", parts, fastflow=(*QUICK, *fastflow)))
    assert ended.code == code
    assert expected in ended.err
    assert "Traceback" not in ended.err


def test_one_training_image_is_enough(parts, tmp_path, shell):
    data = tmp_path / "one image"
    source = parts / "metal_plate"
    for folder in ("train/good", "test/good", "test/scratches"):
        (data / "metal_plate" / folder).mkdir(parents=True)
        image = Image.open(next(iter(sorted((source / folder).iterdir())))).convert("L")
        image.save(data / "metal_plate" / folder / "grey 1.png")
    ended = shell(run_fastflow, *args(tmp_path / "out", data))
    assert ended.code == 0, ended.err
    row = read_results(tmp_path / "out" / "project" / "group" / "results.csv")["mpdd_metal_plate"]
    assert np.isfinite(row["instance_auroc"])
    assert np.isnan(row["full_pixel_auroc"])  # no masks


def copied(trained: Path, target: Path) -> Path:
    target.mkdir()
    for path in (trained / "models" / "mpdd_metal_plate").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def evaluate(shell, model: Path, parts: Path, results: Path, *dataset: object, loader: tuple[object, ...] = ()):
    loader = ("fastflow_loader", "-p", model, *loader)
    return shell(load_and_evaluate_fastflow, results, *loader, "dataset", *dataset, "-d", "metal_plate", "mpdd", parts)


@pytest.fixture
def ends_with(parts, tmp_path, shell):
    """Evaluate a model, and see that it ends in one line that names the model, and leaves nothing."""

    def check(model: Path, expected: str) -> None:
        ended = evaluate(shell, model, parts, tmp_path / "out")
        assert ended.code == 1
        assert expected in ended.err
        assert str(model) in ended.err
        assert "Traceback" not in ended.err
        assert not (tmp_path / "out").exists()

    return check


def test_damaged_models_are_named(trained, tmp_path, ends_with):
    model = copied(trained, tmp_path / "model")
    content = json.loads((model / "model.json").read_text())

    def write(**changes: object) -> None:
        (model / "model.json").write_text(json.dumps(content | changes))

    write(format=99)
    ends_with(model, "format 99, this version reads format 2")
    write(settings=content["settings"] | {"surprise": 1})
    ends_with(model, "surprise")
    write(settings=content["settings"] | {"steps": 3})
    ends_with(model, "do not belong to the settings")
    write(geometry=3)
    ends_with(model, "geometry must be an object, got 3")
    write()
    weights = (model / "fastflow.safetensors").read_bytes()
    (model / "fastflow.safetensors").write_bytes(weights[: len(weights) // 2])
    ends_with(model, "damaged: its checksum is not the one in model.json")
    (model / "fastflow.safetensors").unlink()
    ends_with(model, "no such file, expected the array that model.json names")
    (model / "model.json").unlink()
    ends_with(model, "no FastFlow model in")


def test_damaged_models_of_version_0_1_are_named(trained, tmp_path, ends_with):
    model = older_formats.fastflow_format_1(trained / "models" / "mpdd_metal_plate", tmp_path / "model")
    params = json.loads((model / "fastflow_params.json").read_text())

    def write(**changes: object) -> None:
        (model / "fastflow_params.json").write_text(json.dumps(params | changes))

    write(format=99)
    ends_with(model, "format 99, this version reads format 1")
    write(fastflow=params["fastflow"] | {"surprise": 1})
    ends_with(model, "surprise")
    write(fastflow=params["fastflow"] | {"steps": 3})
    ends_with(model, "do not belong to the settings")
    write(trained_on=3)
    ends_with(model, "expected the parameters of a FastFlow model")
    write()
    weights = (model / "fastflow.safetensors").read_bytes()
    (model / "fastflow.safetensors").write_bytes(weights[: len(weights) // 2])
    ends_with(model, "cannot read the weights")
    (model / "fastflow.safetensors").unlink()
    ends_with(model, "no such file, expected the weights that belong to fastflow_params.json")
    (model / "fastflow_params.json").unlink()
    ends_with(model, "no FastFlow model in")


def test_contradictions_with_the_model_are_refused(trained, parts, tmp_path, shell):
    model = trained / "models" / "mpdd_metal_plate"
    ended = evaluate(shell, model, parts, tmp_path / "out", "--imagesize", 96)
    assert ended.code == 2
    assert "--imagesize 96 contradicts the model" in ended.err


def test_a_share_for_another_image_score_is_refused(trained, parts, tmp_path, shell):
    model = trained / "models" / "mpdd_metal_plate"
    ended = evaluate(shell, model, parts, tmp_path / "out", loader=("--top_share", 0.1, "--image_score", "mean"))
    assert ended.code == 2
    assert "--top_share has no effect with --image_score mean" in ended.err
    assert str(model) in ended.err


@pytest.mark.parametrize("stage", ["run", "loader", "dataset"])
def test_what_a_stored_model_settles_is_no_option(stage, trained, parts, tmp_path, shell):
    option = {"run": ("--save_model",), "loader": ("--tile", 32), "dataset": ("--augment",)}[stage]
    given = {name: option if name == stage else () for name in ("run", "loader", "dataset")}
    ended = shell(
        load_and_evaluate_fastflow,
        *(*given["run"], tmp_path / "out", "fastflow_loader", "-p", trained / "models", *given["loader"]),
        *("dataset", *given["dataset"], "-d", "metal_plate", "mpdd", parts),
    )
    assert ended.code == 2
    assert option[0] in ended.err
    assert not (tmp_path / "out").exists()


def test_transformers_have_one_scale(parts, tmp_path, shell):
    """A small stand-in for DeiT and CaiT, whose own sizes would take a test too long."""
    fastflow = ("--backbone", "timm/deit_tiny_distilled_patch16_224", "--weights", "random", "--epochs", 1)
    ended = shell(run_fastflow, *args(tmp_path, parts, run=("--save_model",), fastflow=fastflow, dataset=SMALL[4:]))
    assert ended.code == 0, ended.err
    stored = json.loads(next((tmp_path / "project").rglob("model.json")).read_text())
    assert stored["settings"]["layers"] == ["blocks.7"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(trained, parts):
    import patchcore

    paths = sorted((parts / "metal_plate" / "test").rglob("*.png"))
    images = torch.stack([Geometry(resize=72, imagesize=64).image(load_image(path)) for path in paths])
    scores = []
    for device in ("cpu", "cuda"):
        detector = patchcore.load(trained / "models" / "mpdd_metal_plate", device=device)
        detector.model.precision = "float32"
        scores.append(detector.predict_batches([images]).scores[0])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3)
