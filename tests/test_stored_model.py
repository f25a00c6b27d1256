"""Stored models: what they say comes back, what is damaged is named in one line, older formats still load."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import patchcore
from patchcore import FastFlow, PatchCore
from patchcore.methods import METHODS
from patchcore.methods.detector import Detector, TrainingImages
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.patchcore.config import PatchCoreConfig
from patchcore.methods.patchcore.index_file import write_flat_index
from patchcore.methods.stored_model import MODEL_FILE, StoredModel, Training, read_model, sha256_of
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
LITE0, OTHER = "efficientnet_lite0", "efficientnet_lite0.seed-1"
INDEX = "nnscorer_search_index.faiss"
ONE = PatchCoreConfig(
    backbones=(LITE0,),
    layers=(("blocks.2", "blocks.4"),),
    pretrain_embed_dimension=64,
    target_embed_dimension=48,
    weights="random",
    fraction=0.2,
)
THREE = replace(ONE, backbones=(LITE0, OTHER, LITE0), layers=(("blocks.2", "blocks.4"), ("blocks.1",), ("blocks.3",)))
FLOW = FastFlowConfig(
    backbone=LITE0, layers=("blocks.2", "blocks.4"), steps=2, epochs=1, weights="random", match_brightness=True
)
CONFIGS = {"patchcore": ONE, "ensemble": THREE, "fastflow": FLOW}
KINDS = sorted(CONFIGS)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def fitted(config: Any, **geometry: Any) -> Detector:
    make = PatchCore if isinstance(config, PatchCoreConfig) else FastFlow
    detector = make(config, device="cpu", **{"resize": 80, "imagesize": SIZE, **geometry})
    return detector.fit_batches(TrainingImages(batches=images(6).split(4), count=6), Training(seed=5))


def load(folder: Path, **settings: Any) -> Detector:
    return patchcore.load(folder, device="cpu", **settings)


def read(folder: Path, resize: int | None = None) -> StoredModel:
    return read_model(folder, METHODS, resize)


def assert_equal_to_the_bit(detector: Detector, other: Detector) -> None:
    first, second = (one.predict_batches(images(5, seed=1).split(2)) for one in (detector, other))
    assert (first.scores == second.scores).all()
    assert (first.maps == second.maps).all()
    assert first.columns.keys() == second.columns.keys()
    for name, values in first.columns.items():
        assert (values == second.columns[name]).all()


@pytest.fixture(scope="module")
def detectors() -> dict[str, Detector]:
    return {kind: fitted(config) for kind, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def originals(detectors, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for kind, detector in detectors.items():
        folders[kind] = tmp_path_factory.mktemp("stored") / kind
        detector.save(folders[kind])
    return folders


@pytest.fixture
def stored(originals, tmp_path) -> Callable[[str], Path]:
    """A copy of a stored model that may be damaged."""
    return lambda kind: Path(shutil.copytree(originals[kind], tmp_path / kind))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON of a file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put(*place: Any) -> Callable[[dict[str, Any]], None]:
    """A change of JSON: the last argument goes where the others lead."""
    *way, key, value = place

    def change(content: Any) -> None:
        for step in way:
            content = content[step]
        content[key] = value

    return change


def take(*place: Any) -> Callable[[dict[str, Any]], None]:
    """A change of JSON: what the arguments lead to is gone."""
    *way, key = place

    def change(content: Any) -> None:
        for step in way:
            content = content[step]
        del content[key]

    return change


def refusal(path: Path, action: Callable[[], Any]) -> str:
    """The error of an action, which is one line and names the file."""
    with pytest.raises(PatchCoreError) as error:
        action()
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


# The present format


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_detector_gives_the_same_to_the_last_bit(kind, detectors, originals):
    again = load(originals[kind])
    assert_equal_to_the_bit(detectors[kind], again)
    for name in ("config", "geometry", "training", "calibration"):
        assert getattr(again, name) == getattr(detectors[kind], name)
    assert again.costs() == detectors[kind].costs()


@pytest.mark.parametrize(
    "config",
    [
        replace(ONE, num_nn=3, patchsize=5),
        replace(ONE, precision="bfloat16"),
        replace(ONE, sampler="identity"),
        replace(THREE, num_nn=2),
        replace(FLOW, tile=32, tile_stride=16, match_brightness=False),
        replace(FLOW, feature_norm="layer_norm", image_score="max", density="full", class_specific=True),
        replace(FLOW, precision="bfloat16", kernels="3x3-1x1", hidden_ratio=0.5),
    ],
    ids=lambda config: None,
)
def test_every_kind_of_settings_comes_back(config, tmp_path):
    detector = fitted(config, reduced_decoding=True)
    detector.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert_equal_to_the_bit(detector, again)
    assert (again.config, again.geometry) == (config, detector.geometry)


@pytest.mark.parametrize("kind", KINDS)
def test_what_model_json_says(kind, detectors, originals):
    content = json.loads((originals[kind] / MODEL_FILE).read_text())
    assert list(content) == [
        *("format", "method", "settings", "geometry", "training", "weights", "photos", "calibration", "arrays")
    ]
    assert content["format"] == 2
    assert content["method"] == ("fastflow" if kind == "fastflow" else "patchcore")
    assert content["geometry"] == {"resize": 80, "imagesize": SIZE, "reduced_decoding": False}
    assert content["calibration"] is None
    assert content["training"] == {
        "images": 6,
        "fingerprint": detectors[kind].training.fingerprint,
        "seed": 5,
        "train_val_split": 1.0,
        "category": None,
        "run": None,
    }
    files = {path.name for path in originals[kind].iterdir()} - {MODEL_FILE}
    assert content["arrays"] == {name: sha256_of(originals[kind] / name) for name in files}
    prefixes = ["", "", ""] if kind != "ensemble" else [f"Ensemble-{number}-3_" for number in (1, 2, 3)]
    arrays = {prefix + name for prefix in prefixes for name in (INDEX, "origins.npy")}
    assert files == {"training_images.zip", *({"fastflow.safetensors"} if kind == "fastflow" else arrays)}
    assert content["photos"] == [[photo.name, photo.pixels] for photo in detectors[kind].album.photos]
    names = ["random seed 0", "random seed 1", "random seed 0"][: len(content["weights"])]
    assert [entry["name"] for entry in content["weights"]] == names
    assert [entry["backbone"] for entry in content["weights"]] == [LITE0, OTHER, LITE0][: len(names)]
    assert len({entry["checksum"] for entry in content["weights"]}) == len(set(names))


def test_settings_that_only_say_where_and_how_fast_are_not_stored(originals):
    patch_core, flow = (
        json.loads((originals[kind] / MODEL_FILE).read_text())["settings"] for kind in ("patchcore", "fastflow")
    )
    assert not {"faiss_on_gpu", "faiss_num_workers", "weights_dir"} & patch_core.keys()
    assert not {"checkpoint_seconds", "weights_dir"} & flow.keys()
    assert patch_core["layers"] == [["blocks.2", "blocks.4"]]
    assert (patch_core["sampler"], patch_core["fraction"], patch_core["num_nn"]) == ("approx_greedy_coreset", 0.2, 1)
    assert (flow["steps"], flow["image_score"], flow["match_brightness"]) == (2, "top", True)


def test_training_and_calibration_come_back(tmp_path):
    detector = fitted(ONE)
    detector.training = replace(detector.training, train_val_split=0.75, category="plate", run="id of a run")
    detector.calibrate([image.permute(1, 2, 0).numpy() for image in images(3, seed=9)])
    detector.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.training == detector.training
    assert again.calibration.to_plain() == detector.calibration.to_plain()
    again.fit_batches(TrainingImages(batches=[images(2)], count=2))
    assert again.calibration is None  # it belonged to another bank
    assert again.training == Training(images=2, fingerprint=again.training.fingerprint)


def test_a_stored_model_may_be_stored_again(stored, detectors, tmp_path):
    first = stored("ensemble")
    load(first).save(tmp_path / "second")
    assert_equal_to_the_bit(detectors["ensemble"], load(tmp_path / "second"))
    contents = [{path.name: path.read_bytes() for path in one.iterdir()} for one in (first, tmp_path / "second")]
    assert contents[0] == contents[1]


# Settings chosen anew


def test_a_stored_model_may_be_searched_and_scored_otherwise(originals, stored, tmp_path):
    folder = stored("ensemble")
    edit(folder / MODEL_FILE, put("settings", "weights", "pretrained"))
    chosen = {"num_nn": 7, "faiss_on_gpu": True, "faiss_num_workers": 2, "weights_dir": tmp_path}
    model = read(folder).with_settings(chosen)
    assert model.config == replace(THREE, weights="pretrained", **chosen)
    assert model.overrides == {"num_nn": 7}  # what results do not depend on is none
    flow = read(originals["fastflow"]).with_settings({"density": "full"}).with_settings({"image_score": "max"})
    assert flow.config == replace(FLOW, density="full", image_score="max")
    assert flow.overrides == {"density": "full", "image_score": "max"}


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        (
            "patchcore",
            {"patchsize": 5},
            "patchsize cannot be chosen anew .*; there are num_nn, faiss_on_gpu, faiss_num",
        ),
        ("patchcore", {"num_n": 5}, "num_n cannot be chosen anew"),
        ("patchcore", {"num_nn": 0}, "num_nn must be at least 1, got 0"),
        ("patchcore", {"num_nn": "3"}, "num_nn must be int, got '3'"),
        ("patchcore", {"weights_dir": "."}, "--weights_dir has no effect with --weights random"),
        (
            "fastflow",
            {"steps": 5},
            "steps cannot be chosen anew .*; there are density, position_score, scale_weighting",
        ),
        ("fastflow", {"image_score": "median"}, "image_score must be one of top, max, mean, got 'median'"),
        ("fastflow", {"top_share": 2.0}, "top_share must be above 0 and at most 1, got 2.0"),
        ("fastflow", {"image_score": "max", "top_share": 0.5}, "--top_share has no effect with --image_score max"),
    ],
)
def test_what_cannot_be_chosen_anew_is_refused(kind, chosen, message, originals):
    with pytest.raises(ValueError, match=message):
        read(originals[kind]).with_settings(chosen)
    if "weights_dir" not in chosen:
        with pytest.raises(PatchCoreError, match=message) as error:
            load(originals[kind], **chosen)
        assert str(error.value).startswith(f"{originals[kind]}: ")


# Damaged arrays, other weights


ARRAYS = {"patchcore": INDEX, "ensemble": f"Ensemble-2-3_{INDEX}", "fastflow": "fastflow.safetensors"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_in_an_array_is_noticed(kind, stored):
    folder = stored(kind)
    path = folder / ARRAYS[kind]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "damaged: its checksum is not the one in model.json" in refusal(path, lambda: load(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_array_is_named_before_a_network_is_loaded(kind, stored):
    folder = stored(kind)
    (folder / ARRAYS[kind]).unlink()
    assert "no such file" in refusal(folder / ARRAYS[kind], lambda: read(folder))


def resealed(folder: Path, name: str) -> Path:
    """Let the description agree with an array that was replaced."""
    edit(folder / MODEL_FILE, lambda content: content["arrays"].update({name: sha256_of(folder / name)}))
    return folder / name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, 999), "damaged index"),
        (lambda path: path.write_bytes(b""), "expected a FAISS flat L2 index"),
        (
            lambda path: write_flat_index(path, np.zeros((9, 47), dtype=np.float32)),
            "expected patches of 48 values, the model's target_embed_dimension, found 47",
        ),
    ],
)
def test_a_bank_that_is_none_is_refused(damage, message, stored):
    folder = stored("ensemble")
    damage(folder / ARRAYS["ensemble"])
    assert message in refusal(resealed(folder, ARRAYS["ensemble"]), lambda: load(folder))


def test_flows_that_are_none_are_refused(stored):
    folder = stored("fastflow")
    path = folder / ARRAYS["fastflow"]
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot read the weights" in refusal(resealed(folder, path.name), lambda: load(folder))


def test_flows_of_other_settings_are_refused(stored):
    folder = stored("fastflow")
    edit(folder / MODEL_FILE, lambda content: content["settings"].update(steps=3))
    path = folder / ARRAYS["fastflow"]
    assert "do not belong to the settings beside them" in refusal(path, lambda: load(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_than_those_trained_with_are_refused(kind, stored):
    folder = stored(kind)

    def other_seed(content):
        settings = content["settings"]
        if kind == "fastflow":
            settings["backbone"] = OTHER
        else:
            settings["backbones"] = [OTHER] * len(settings["backbones"])

    edit(folder / MODEL_FILE, other_seed)
    message = refusal(folder, lambda: load(folder))
    assert f"other weights of {LITE0} (random seed 0) than those here (random seed 1)" in message
    assert "--weights_dir" in message


def test_a_model_that_does_not_say_its_weights_loads(stored, detectors):
    folder = stored("patchcore")
    edit(folder / MODEL_FILE, lambda content: content["weights"][0].update(checksum=None))
    assert_equal_to_the_bit(load(folder), detectors["patchcore"])
    edit(folder / MODEL_FILE, lambda content: content.update(weights=[]))
    assert_equal_to_the_bit(load(folder), detectors["patchcore"])


# Damaged descriptions


BROKEN = {
    "empty": b"",
    "cut short": b'{"format": 2, "method": "patch',
    "no text": b"\x80\x04}.",
    "a list": b"[]",
    "a number": b"2",
    "deep": b"[" * 10**5,
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_json_is_named_in_one_line(name, stored):
    path = stored("patchcore") / MODEL_FILE
    path.write_bytes(BROKEN[name])
    assert "damaged: " in refusal(path, lambda: load(path.parent))


NAN = float("nan")
WRONG = {
    "no format": ("patchcore", take("format"), "format None, this version reads format 2"),
    "later format": ("patchcore", put("format", 3), "format 3, this version reads format 2; train and store the model"),
    "format as text": ("patchcore", put("format", "2"), "format '2', this version reads format 2"),
    "no method": ("patchcore", take("method"), "'method' is missing"),
    "unknown method": ("patchcore", put("method", "padim"), "method 'padim', expected one of patchcore, fastflow"),
    "method as list": ("patchcore", put("method", ["patchcore"]), "expected the description of a stored model: "),
    "other method": ("patchcore", put("method", "fastflow"), "no setting is called 'backbones'|is missing in settings"),
    "no settings": ("patchcore", take("settings"), "'settings' is missing"),
    "settings as list": ("patchcore", put("settings", []), r"settings must be an object, got \[\]"),
    "unknown setting": ("patchcore", put("settings", "patchsiz", 3), "no setting is called 'patchsiz'; there are back"),
    "setting gone": ("patchcore", take("settings", "patchsize"), "patchsize is missing in settings"),
    "backbones gone": ("patchcore", take("settings", "backbones"), "backbones is missing in settings"),
    "text for a number": ("patchcore", put("settings", "patchsize", "3"), "patchsize must be int, got '3'"),
    "truth for a number": ("patchcore", put("settings", "num_nn", True), "num_nn must be int, got True"),
    "fraction for a number": ("patchcore", put("settings", "num_nn", 1.0), "num_nn must be int, got 1.0"),
    "null for a number": ("patchcore", put("settings", "num_nn", None), "num_nn must be int, got None"),
    "number for text": ("patchcore", put("settings", "backbones", [3]), "backbones must be str, got 3"),
    "text for a list": ("patchcore", put("settings", "backbones", LITE0), "backbones must be a list, got 'eff"),
    "layers of texts": ("patchcore", put("settings", "layers", ["blocks.2"]), "layers must be a list, got 'blocks.2'"),
    "no layers": ("patchcore", put("settings", "layers", [[]]), "every backbone needs a layer"),
    "no neighbour": ("patchcore", put("settings", "num_nn", 0), "num_nn must be at least 1, got 0"),
    "no patch": ("patchcore", put("settings", "patchsize", 0), "patchsize must be at least 1, got 0"),
    "weights": (
        "patchcore",
        put("settings", "weights", "mine"),
        "weights must be one of pretrained, random, got 'mine'",
    ),
    "sampler": ("patchcore", put("settings", "sampler", "mine"), "sampler must be one of"),
    "no sampler": ("patchcore", put("settings", "sampler", None), "sampler None with fraction 0.2"),
    "fraction": ("patchcore", put("settings", "fraction", 2), "fraction must be above 0 and at most 1, got 2.0"),
    "nan": ("patchcore", put("settings", "fraction", NAN), "fraction must be finite, got nan"),
    "infinity": ("patchcore", put("settings", "fraction", float("inf")), "fraction must be finite, got inf"),
    "beyond floats": ("patchcore", put("settings", "fraction", 10**400), r"fraction must be below 2\*\*63, got 1000"),
    "ensemble of one": ("ensemble", put("settings", "backbones", [LITE0]), "every backbone needs a layer"),
    "no for false": ("fastflow", put("settings", "match_brightness", "no"), "match_brightness must be bool, got 'no'"),
    "0 for false": ("fastflow", put("settings", "match_brightness", 0), "match_brightness must be bool, got 0"),
    "truth for epochs": ("fastflow", put("settings", "epochs", True), "epochs must be int, got True"),
    "nan for a rate": ("fastflow", put("settings", "learning_rate", NAN), "learning_rate must be finite, got nan"),
    "text for a rate": (
        "fastflow",
        put("settings", "learning_rate", "1e-3"),
        "learning_rate must be float, got '1e-3'",
    ),
    "kernels": ("fastflow", put("settings", "kernels", "5x5"), "kernels must be one of 3x3, 3x3-1x1, got '5x5'"),
    "stride alone": ("fastflow", put("settings", "tile_stride", 8), "tile_stride 8 needs a tile size"),
    "unknown flow": ("fastflow", put("settings", "scoring", {}), "no setting is called 'scoring'"),
    "geometry gone": ("patchcore", take("geometry"), "'geometry' is missing"),
    "geometry": ("patchcore", put("geometry", "imagesize", 81), "imagesize 81 is larger than resize 80"),
    "geometry text": ("patchcore", put("geometry", "resize", "80"), "resize must be int, got '80'"),
    "geometry half": ("patchcore", put("geometry", "resize", 80.5), "resize must be int, got 80.5"),
    "geometry truth": (
        "fastflow",
        put("geometry", "reduced_decoding", "no"),
        "reduced_decoding must be bool, got 'no'",
    ),
    "geometry key": ("fastflow", put("geometry", "crop", 3), "no setting is called 'crop'"),
    "half a geometry": ("fastflow", take("geometry", "reduced_decoding"), "reduced_decoding is missing in geometry"),
    "split": ("patchcore", put("training", "train_val_split", 0), "train_val_split must be above 0 and at most 1"),
    "seed": ("patchcore", put("training", "seed", -1), "seed must be at least 0, got -1"),
    "seed text": ("patchcore", put("training", "seed", "5"), "seed must be int, got '5'"),
    "seed gone": ("patchcore", take("training", "seed"), "seed is missing in training"),
    "training key": ("patchcore", put("training", "images_per_second", 5), "no setting is called 'images_per_second'"),
    "no weights": ("patchcore", take("weights"), "'weights' is missing"),
    "null weights": ("patchcore", put("weights", None), "expected the description of a stored model: "),
    "weights of texts": ("patchcore", put("weights", ["a"]), "weights must be an object, got 'a'"),
    "half a weight": ("patchcore", take("weights", 0, "name"), "name is missing in weights"),
    "weights' checksum": ("patchcore", put("weights", 0, "checksum", 5), "checksum must be str, got 5"),
    "calibration": ("patchcore", put("calibration", 1.5), "calibration must be an object or null, got 1.5"),
    "arrays": ("patchcore", put("arrays", [INDEX]), "arrays must be checksums by file name"),
    "array elsewhere": ("patchcore", put("arrays", "../x", "00"), "arrays must be checksums by file name"),
    "array's checksum": ("patchcore", put("arrays", INDEX, None), "arrays must be checksums by file name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_description_is_named_in_one_line(name, stored):
    kind, change, message = WRONG[name]
    path = stored(kind) / MODEL_FILE
    edit(path, change)
    with pytest.raises(PatchCoreError, match=message):
        load(path.parent)
    refusal(path, lambda: load(path.parent))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("backbones", ["efficientnet_lit0"], "did you mean efficientnet_lite0"),
        ("layers", [["block.2"]], "has no layer 'block.2'"),
    ],
)
def test_networks_that_there_are_not_are_named(setting, value, message, stored):
    folder = stored("patchcore")
    edit(folder / MODEL_FILE, put("settings", setting, value))
    with pytest.raises(PatchCoreError, match=message):
        load(folder)


@pytest.mark.parametrize("setting", ["backbones", "layers", "weights", "sampler"])
def test_nothing_in_a_description_is_executed(setting, stored, tmp_path):
    folder, trace = stored("patchcore"), tmp_path / "was run"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    value = {"backbones": [code], "layers": [[code]]}.get(setting, code)
    edit(folder / MODEL_FILE, put("settings", setting, value))
    with pytest.raises(PatchCoreError):
        load(folder)
    assert not trace.exists()


def test_where_there_is_no_model_it_is_said_what_was_expected(tmp_path):
    with pytest.raises(PatchCoreError, match=r"no folder .*: expected a stored PatchCore or FastFlow model there"):
        read(tmp_path / "nowhere")
    with pytest.raises(PatchCoreError, match=r"no PatchCore or FastFlow model in .*: expected model.json and the arr"):
        read(tmp_path)
    (tmp_path / "mpdd_tubes").mkdir()
    with pytest.raises(PatchCoreError, match="for this category: there is mpdd_tubes"):
        read(tmp_path)
    with pytest.raises(PatchCoreError, match="expected a stored PatchCore model there"):
        read_model(tmp_path / "nowhere", {"patchcore": METHODS["patchcore"]})


# Version 0.1: parameters as written by its commit 32a945c, arrays as today's


MEMBER = {
    "backbone": LITE0,
    "weights": "random",
    "layers": ["blocks.2", "blocks.4"],
    "pretrain_embed_dimension": 64,
    "target_embed_dimension": 48,
    "patchsize": 3,
    "num_nn": 1,
    "resize": 80,
    "imagesize": SIZE,
    "train_val_split": 0.75,
    "seed": 5,
    "sampler": "approx_greedy_coreset",
    "fraction": 0.2,
    "reduced_decoding": False,
    "precision": "float32",
    "format": 1,
}
FLOW_PARAMS = {
    "format": 1,
    "fastflow": {
        "backbone": LITE0,
        "layers": ["blocks.2", "blocks.4"],
        "steps": 2,
        "kernels": "3x3",
        "hidden_ratio": 1.0,
        "clamp": 2.0,
        "feature_norm": "standardise",
        "noise": 0.3,
        "match_brightness": True,
        "brightness_jitter": 0.0,
        "epochs": 1,
        "train_batch_size": 8,
        "learning_rate": 0.001,
        "weight_decay": 1e-05,
        "warmup": 0.1,
        "gradient_clip": 1.0,
        "tile": None,
        "tile_stride": None,
        "precision": "auto",
        "checkpoint_seconds": 30.0,
        "weights": "random",
        "class_specific": False,
        "scoring": {
            "density": "latent",
            "position_score": "likelihood",
            "scale_weighting": "standardised",
            "image_score": "top",
            "top_share": 0.01,
        },
    },
    "trained_on": {
        "resize": 80,
        "imagesize": SIZE,
        "train_val_split": 0.75,
        "seed": 5,
        "reduced_decoding": False,
    },
}
PARAMS = {
    "patchcore": ["patchcore_params.json"],
    "ensemble": [f"Ensemble-{number}-3_patchcore_params.json" for number in (1, 2, 3)],
    "fastflow": ["fastflow_params.json"],
}
FIRST, SECOND, THIRD = PARAMS["ensemble"]


@pytest.fixture
def old(stored) -> Callable[[str], Path]:
    """A model as version 0.1 stored it."""

    def write(kind: str) -> Path:
        folder = stored(kind)
        (folder / MODEL_FILE).unlink()
        if kind == "fastflow":
            contents = [FLOW_PARAMS]
        elif kind == "patchcore":
            contents = [MEMBER]
        else:
            pairs = zip(THREE.backbones, THREE.layers, strict=True)
            contents = [{**MEMBER, "backbone": name, "layers": list(layers)} for name, layers in pairs]
        for name, content in zip(PARAMS[kind], contents, strict=True):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        return folder

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_version_0_1_load_to_the_last_bit(kind, old, detectors, tmp_path):
    again = load(old(kind))
    assert_equal_to_the_bit(again, detectors[kind])
    assert (again.config, again.geometry) == (CONFIGS[kind], detectors[kind].geometry)
    assert again.training == Training(seed=5, train_val_split=0.75)
    again.save(tmp_path / "new")
    assert_equal_to_the_bit(load(tmp_path / "new"), again)


def test_models_from_before_a_setting_of_version_0_1_load(old):
    folder = old("patchcore")
    for name in ("reduced_decoding", "precision"):
        edit(folder / PARAMS["patchcore"][0], take(name))
    model = read(folder)
    assert (model.geometry.reduced_decoding, model.config.precision) == (False, "float32")


def edited(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, change)


# Each row: what happens to a stored ensemble of version 0.1, the file that the error names, and what it says.
OLD_DAMAGE = {
    "member gone": (lambda folder: (folder / FIRST).unlink(), "", f"missing {FIRST}"),
    "last member gone": (lambda folder: (folder / THIRD).unlink(), "", "missing Ensemble-3-3"),
    "member too many": (
        lambda folder: (folder / "Ensemble-4-4_patchcore_params.json").write_text("{}"),
        "",
        "Ensemble-4-4",
    ),
    "many members": (
        lambda folder: (folder / FIRST).rename(folder / "Ensemble-1-99999999999_patchcore_params.json"),
        "",
        "incomplete ensemble",
    ),
    "bank gone": (lambda folder: (folder / ARRAYS["ensemble"]).unlink(), ARRAYS["ensemble"], f"belongs to {SECOND}"),
    "bank cut short": (
        lambda folder: os.truncate(folder / ARRAYS["ensemble"], 999),
        ARRAYS["ensemble"],
        "damaged index",
    ),
    "other dimension": (
        lambda folder: write_flat_index(folder / ARRAYS["ensemble"], np.zeros((9, 47), dtype=np.float32)),
        ARRAYS["ensemble"],
        "expected patches of 48 values, .* found 47",
    ),
    "empty": (lambda folder: (folder / FIRST).write_text(""), FIRST, "damaged"),
    "no JSON": (lambda folder: (folder / FIRST).write_bytes(b"\x80\x04}."), FIRST, "damaged"),
    "deep JSON": (lambda folder: (folder / FIRST).write_text("[" * 10**5), FIRST, "damaged"),
    "a list": (lambda folder: (folder / FIRST).write_text("[]"), FIRST, "damaged: expected an object"),
    "unknown field": (edited(FIRST, put("patchsiz", 3)), FIRST, "'patchsiz'"),
    "field missing": (edited(FIRST, take("patchsize")), FIRST, "'patchsize' is missing"),
    "backbone missing": (edited(SECOND, take("backbone")), SECOND, "'backbone' is missing"),
    "geometry missing": (edited(SECOND, take("resize")), SECOND, "resize is missing"),
    "other format": (edited(FIRST, put("format", 2)), FIRST, "format 2, this version reads format 1"),
    "no format": (edited(FIRST, take("format")), FIRST, "format None, this version reads format 1"),
    "text for a number": (edited(FIRST, put("patchsize", "3")), FIRST, "patchsize must be int, got '3'"),
    "number for text": (edited(SECOND, put("backbone", 3)), SECOND, "backbones must be str, got 3"),
    "text for layers": (edited(SECOND, put("layers", "blocks.2")), SECOND, "layers must be a list, got 'blocks.2'"),
    "layers of numbers": (edited(SECOND, put("layers", [2])), SECOND, "layers must be str, got 2"),
    "no layers": (edited(SECOND, put("layers", [])), SECOND, "every backbone needs a layer"),
    "truth for a number": (edited(FIRST, put("num_nn", True)), FIRST, "num_nn must be int, got True"),
    "no neighbour": (edited(FIRST, put("num_nn", 0)), FIRST, "num_nn must be at least 1, got 0"),
    "no patch": (edited(FIRST, put("patchsize", 0)), FIRST, "patchsize must be at least 1, got 0"),
    "weights": (edited(FIRST, put("weights", "mine")), FIRST, "weights must be one of pretrained, random, got 'mine'"),
    "image size": (edited(FIRST, put("imagesize", 81)), FIRST, "imagesize 81 is larger than resize 80"),
    "split": (edited(FIRST, put("train_val_split", 0)), FIRST, "train_val_split must be above 0 and at most 1"),
    "seed": (edited(FIRST, put("seed", -1)), FIRST, "seed must be at least 0, got -1"),
    "fraction": (edited(FIRST, put("fraction", 2)), FIRST, "fraction must be above 0 and at most 1"),
    "no fraction": (edited(FIRST, put("fraction", None)), FIRST, "sampler approx_greedy_coreset with fraction None"),
    "sampler": (edited(FIRST, put("sampler", "mine")), FIRST, "sampler must be one of"),
    "members differ": (
        edited(FIRST, put("patchsize", 5)),
        SECOND,
        f"patchsize is 3, in {FIRST} it is 5: not of one ensemble",
    ),
    "neighbours differ": (
        edited(FIRST, put("num_nn", 2)),
        SECOND,
        f"num_nn is 1, in {FIRST} it is 2: not of one ensemble",
    ),
    "no such backbone": (edited(FIRST, put("backbone", "efficientnet_lit0")), "", "did you mean efficientnet_lite0"),
    "no such layer": (edited(FIRST, put("layers", ["block.2"])), "", "has no layer 'block.2'"),
}


@pytest.mark.parametrize("name", OLD_DAMAGE)
def test_damage_to_a_model_of_version_0_1_is_named_in_one_line(name, old):
    damage, file, message = OLD_DAMAGE[name]
    folder = old("ensemble")
    damage(folder)
    with pytest.raises(PatchCoreError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)
    if file:
        assert str(error.value).startswith(f"{folder / file}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (take("format"), "format None, this version reads format 1"),
        (put("format", 2), "format 2, this version reads format 1"),
        (take("fastflow"), "'fastflow' is missing"),
        (take("fastflow", "scoring"), "'scoring' is missing"),
        (put("fastflow", "scoring", 3), "expected the parameters of a FastFlow model"),
        (put("fastflow", "step", 3), "no setting is called 'step'"),
        (put("fastflow", "match_brightness", "no"), "match_brightness must be bool, got 'no'"),
        (put("fastflow", "noise", NAN), "noise must be finite, got nan"),
        (put("fastflow", "scoring", "top_share", 0), "top_share must be above 0 and at most 1, got 0.0"),
        (take("trained_on"), "'trained_on' is missing"),
        (take("trained_on", "seed"), "'seed' is missing"),
        (take("trained_on", "resize"), "resize is missing"),
        (put("trained_on", "imagesize", 81), "imagesize 81 is larger than resize 80"),
        (put("trained_on", []), "expected the parameters of a FastFlow model"),
    ],
)
def test_damage_to_a_fastflow_model_of_version_0_1_is_named_in_one_line(change, message, old):
    folder = old("fastflow")
    path = folder / PARAMS["fastflow"][0]
    edit(path, change)
    assert message in refusal(path, lambda: load(folder))


def test_missing_or_damaged_weights_of_version_0_1_are_named(old):
    folder = old("fastflow")
    path = folder / "fastflow.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot read the weights" in refusal(path, lambda: load(folder))
    path.unlink()
    assert "belong to fastflow_params.json" in refusal(path, lambda: read(folder))


# The original's folders


ORIGINAL = {
    "backbone.name": "wideresnet50",
    "layers_to_extract_from": ["layer2", "layer3"],
    "input_shape": (3, 224, 224),
    "pretrain_embed_dimension": 1024,
    "target_embed_dimension": 384,
    "patchsize": 5,
    "patchstride": 1,
    "anomaly_scorer_num_nn": 1,
}


def write_original(folder: Path, prefix: str = "", **changes: Any) -> Path:
    (folder / f"{prefix}{INDEX}").write_bytes(b"")
    (folder / f"{prefix}patchcore_params.pkl").write_bytes(pickle.dumps({**ORIGINAL, **changes}))
    return folder


def test_a_folder_of_the_original_is_read(tmp_path):
    model = read(write_original(tmp_path))
    assert model.config == PatchCoreConfig(
        backbones=("wideresnet50",),
        layers=(("layer2", "layer3"),),
        target_embed_dimension=384,
        patchsize=5,
        sampler=None,
        fraction=None,
    )
    assert (model.geometry.resize, model.geometry.imagesize) == (256, 224)
    assert model.training == Training()
    assert (model.weights, list(model.checksums), model.calibration) == ((), [INDEX], None)


def test_an_ensemble_of_the_original_is_read(tmp_path):
    write_original(tmp_path, "Ensemble-1-2_")
    write_original(tmp_path, "Ensemble-2-2_", **{"backbone.name": "resnext101"}, layers_to_extract_from=["layer3"])
    config = read(tmp_path).config
    assert (config.backbones, config.layers) == (("wideresnet50", "resnext101"), (("layer2", "layer3"), ("layer3",)))
    write_original(tmp_path, "Ensemble-2-2_", anomaly_scorer_num_nn=3)
    message = refusal(tmp_path / "Ensemble-2-2_patchcore_params.pkl", lambda: read(tmp_path))
    assert "num_nn is 3, in Ensemble-1-2_patchcore_params.pkl it is 1: not of one ensemble" in message


def test_the_original_scored_with_one_neighbour_and_it_is_said_once(tmp_path, caplog):
    for prefix in ("Ensemble-1-2_", "Ensemble-2-2_"):
        write_original(tmp_path, prefix, anomaly_scorer_num_nn=3)
    model = read(tmp_path)
    assert model.config.num_nn == 1
    [record] = caplog.records
    assert f"{tmp_path}: stored with --anomaly_scorer_num_nn 3, but the original scored with 1" in record.message
    assert model.with_settings({"num_nn": 3}).config.num_nn == 3


def test_the_resize_of_the_original_is_paired_or_asked_for(tmp_path):
    write_original(tmp_path, input_shape=(3, 320, 320))
    assert read(tmp_path).geometry.resize == 366
    assert read(tmp_path, resize=400).geometry.resize == 400
    write_original(tmp_path, input_shape=(3, 64, 64))
    path = tmp_path / "patchcore_params.pkl"
    assert "images of 64 pixels, but it does not say what they were cut from" in refusal(path, lambda: read(tmp_path))
    assert read(tmp_path, resize=72).geometry.resize == 72
    assert "imagesize 64 is larger than resize 60" in refusal(path, lambda: read(tmp_path, resize=60))


def test_a_folder_of_the_original_gives_the_scores_of_its_bank(stored, detectors):
    folder = stored("patchcore")
    content = {
        "backbone.name": LITE0,
        "layers_to_extract_from": ["blocks.2", "blocks.4"],
        "input_shape": (3, SIZE, SIZE),
        "pretrain_embed_dimension": 64,
        "target_embed_dimension": 48,
        "patchsize": 3,
    }
    (folder / MODEL_FILE).unlink()
    write = folder / "patchcore_params.pkl"
    write.write_bytes(pickle.dumps({**ORIGINAL, **content}))
    model = read(folder, resize=80)
    model = replace(model, config=replace(model.config, weights="random"))  # the original had none
    detector = PatchCore.from_stored(model, detectors["patchcore"].workspace)
    assert_equal_to_the_bit(detector, detectors["patchcore"])
    with pytest.raises(ValueError, match="does not name a sampler"):
        detector.fit_batches(TrainingImages(batches=[images(2)], count=2))


def test_a_malicious_pickle_is_refused_and_not_run(stored, tmp_path):
    folder, trace = stored("patchcore"), tmp_path / "was run"
    (folder / MODEL_FILE).unlink()
    path = folder / "patchcore_params.pkl"
    path.write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    assert "it holds an object" in refusal(path, lambda: load(folder))
    assert not trace.exists()
