"""The exported graph gives what the detector gives, or there is none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brightness_method import Brightness
from patchcore.cli.export import export_onnx as command
from patchcore.methods import export
from patchcore.methods.detector import Detector
from patchcore.methods.export import check_images, export_onnx
from patchcore.methods.fastflow.detector import FastFlow
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.methods.patchcore.graph import MemberGraph, PatchCoreGraph
from patchcore.types import Output, PatchCoreError

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
pytest.importorskip("onnx", reason="pip install '.[export]'")
pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
DOCS = Path(__file__).parents[1] / "docs" / "export.md"


def parts(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth images with some noise, (SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (count, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return list((coarse + rng.integers(0, 40, coarse.shape)).astype(np.uint8))


def patchcore(backbones: int = 1, **settings) -> Detector:
    layers = [["blocks.2", "blocks.4"], ["blocks.1"]][:backbones]
    names = [f"efficientnet_lite0.seed-{seed}" for seed in range(backbones)]
    settings = {"pretrain_embed_dimension": 64, "target_embed_dimension": 96, "fraction": 0.2, **settings}
    detector = PatchCore(
        backbones=names, layers=layers, weights="random", resize=80, imagesize=SIDE, device="cpu", **settings
    )
    return detector.fit(parts(6))


def fastflow(**settings) -> Detector:
    detector = FastFlow(
        backbone="efficientnet_lite0", weights="random", epochs=1, steps=2, imagesize=SIDE, device="cpu", **settings
    )
    return detector.fit(parts(6))


@pytest.fixture(scope="module")
def single(one_thread) -> Detector:
    return patchcore()


def pixels(images: list[np.ndarray]) -> np.ndarray:
    return np.stack(images).transpose(0, 3, 1, 2)


def run(path: Path, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": pixels(images)}), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        patchcore,
        lambda: patchcore(num_nn=3, patchsize=5, target_embed_dimension=95),  # a second pooling across the layers
        lambda: patchcore(sampler="identity"),
        lambda: patchcore(backbones=2),
        fastflow,
        lambda: fastflow(match_brightness=True, density="full", position_score="log_likelihood", image_score="max"),
        lambda: fastflow(feature_norm="layer_norm", scale_weighting="equal", image_score="mean", kernels="3x3-1x1"),
        lambda: fastflow(tile=40, tile_stride=16),
    ],
)
def test_graph_gives_scores_and_maps_of_the_detector_for_any_number_of_images(make, tmp_path):
    detector, out = make(), tmp_path / "graph.onnx"
    assert export_onnx(detector, out, check_images(detector)) < 1e-4
    images = parts(5, seed=1)
    expected = detector.predict_batches([torch.from_numpy(pixels(images))])
    found = run(out, images)
    assert {name: (value.shape, value.dtype) for name, value in found.items() if name != "member_scores"} == {
        "scores": ((5,), np.float32),
        "maps": ((5, SIDE, SIDE), np.float32),
    }
    np.testing.assert_allclose(found["scores"], expected.scores.mean(axis=0), rtol=1e-4)
    maps = expected.maps.mean(axis=0)
    np.testing.assert_allclose(found["maps"], maps, atol=1e-4 * np.abs(maps).max())
    if len(expected.scores) > 1:
        np.testing.assert_allclose(found["member_scores"], expected.scores.T, rtol=1e-4)
    else:
        assert "member_scores" not in found
    for index, image in enumerate(images):
        alone = run(out, [image])
        np.testing.assert_allclose(alone["scores"][0], found["scores"][index], rtol=1e-5)
        np.testing.assert_allclose(alone["maps"][0], found["maps"][index], atol=1e-5 * np.abs(maps).max())


class Shifted(nn.Module):
    """Every pixel as a patch of three values, far from zero."""

    def forward(self, images):
        return images.permute(0, 2, 3, 1).float() + 1e4


def test_small_distances_keep_their_digits_beside_large_norms(tmp_path):
    # Squared norms of 3e8, of which float32 keeps no digit below 16.
    bank = torch.tensor([[10.0, 10.0, 10.5], [200.0, 0.0, 0.0], [0.0, 200.0, 0.0]]) + 1e4
    member = MemberGraph(nn.Identity(), Shifted(), bank, num_nn=1, size=(2, 2))
    graph = export._Outputs(PatchCoreGraph([member]), members=1)
    images = torch.full((2, 3, 2, 2), 10, dtype=torch.uint8)
    export._trace(graph, images, tmp_path / "graph.onnx")
    found = run(tmp_path / "graph.onnx", [np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 11, np.uint8)])
    assert found["scores"].tolist() == [0.25, 1 + 1 + 0.25]


def test_metadata_say_how_images_are_read_and_judged(single, tmp_path):
    out = tmp_path / "graph.onnx"
    export_onnx(single, out, check_images(single))
    facts = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert facts == {
        "format": "1",
        "method": "patchcore",
        "resize": "80",
        "imagesize": "64",
        "calibration": json.dumps(single.calibration.to_plain()),
        "threshold": repr(single.calibration.threshold()),
    }


@pytest.mark.parametrize("size", [(131, 90), (90, 131), (80, 80)])
def test_consumer_of_the_docs_gives_the_score_of_the_detector(single, tmp_path, size):
    [script] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    packages = {name.split(".")[0] for name in re.findall(r"^(?:import|from) (\S+)", script, re.MULTILINE)}
    assert packages == {"sys", "numpy", "onnxruntime", "PIL"}
    image, out, consumer = tmp_path / "part.png", tmp_path / "graph.onnx", tmp_path / "consumer.py"
    Image.fromarray(parts(1, seed=2)[0]).resize(size, Image.Resampling.BICUBIC).save(image)
    consumer.write_text(script, encoding="utf-8")
    expected = single.predict(image).score
    export_onnx(single, out, check_images(single))
    for threshold, verdict in (("", "no threshold"), (f"{expected * 0.9}", "REJECT"), (f"{expected * 1.1}", "ACCEPT")):
        _set_threshold(out, threshold)
        call = [sys.executable, str(consumer), str(out), str(image)]
        score, said = subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip().split(" ", 1)
        assert float(score) == pytest.approx(expected, rel=1e-3)
        assert said == verdict


def _set_threshold(path: Path, value: str) -> None:
    import onnx

    model = onnx.load(path)
    [threshold] = [entry for entry in model.metadata_props if entry.key == "threshold"]
    threshold.value = value
    onnx.save(model, path)


class Off(nn.Module):
    """A graph that is a little off."""

    def __init__(self, graph: nn.Module, fault: str) -> None:
        super().__init__()
        self.graph = graph
        self.fault = fault

    def forward(self, images):
        scores, maps = self.graph(images)
        if self.fault == "scores":
            return scores * 1.002, maps
        if self.fault == "maps":
            return scores, maps + 0.002 * maps.amax()
        return scores + 0.1 * (scores - scores.mean(dim=1, keepdim=True)), maps  # right for one image alone


@pytest.mark.parametrize(("fault", "said"), [("scores", "scores by up to 0.002"), ("maps", "maps"), ("batch", "batch")])
def test_graph_that_gives_other_values_is_not_left_there(single, fault, said, tmp_path, monkeypatch):
    graph = single.graph()
    monkeypatch.setattr(single, "graph", lambda: Off(graph, fault))
    with pytest.raises(PatchCoreError, match=f"other values than the detector for .*{said}.*nothing was written"):
        export_onnx(single, tmp_path / "graph.onnx", check_images(single))
    assert not list(tmp_path.iterdir())


def test_members_are_compared_one_by_one():
    expected = Output(scores=np.array([[1.0], [100.0]]), maps=np.zeros((2, 1, 2, 2), np.float32))
    found = {"scores": np.array([50.5]), "maps": np.zeros((1, 2, 2)), "member_scores": np.array([[1.01, 99.99]])}
    with pytest.raises(PatchCoreError, match=r"member 0 by up to 0\.01, scores of member 1 by up to 0\.0001"):
        export._compare("images", found, expected)


def test_images_that_are_in_the_bank_are_held_to_a_share_of_the_others():
    expected = Output(scores=np.array([[0.0, 100.0]]), maps=np.zeros((1, 2, 2, 2), np.float32))
    found = {"scores": np.array([5e-4, 100.0]), "maps": np.zeros((2, 2, 2))}
    assert export._compare("images", found, expected) == pytest.approx(5e-4)  # of 1 % of 100
    for wrong in (5e-3, np.nan):
        with pytest.raises(PatchCoreError, match="other values"):
            export._compare("images", {**found, "scores": np.array([wrong, 100.0])}, expected)


def test_what_cannot_be_exported_is_refused(single, tmp_path, monkeypatch):
    out = tmp_path / "graph.onnx"
    with pytest.raises(PatchCoreError, match=r"ends in \.onnx"):
        export_onnx(single, tmp_path / "graph.pt", check_images(single))
    (tmp_path / "there.onnx").write_text("kept")
    with pytest.raises(PatchCoreError, match=r"there\.onnx: it is there already"):
        export_onnx(single, tmp_path / "there.onnx", check_images(single))
    for images in ([], [np.zeros((SIDE, SIDE + 1, 3), np.uint8)], [np.zeros((SIDE, SIDE, 3), np.float32)]):
        with pytest.raises(ValueError, match=r"one or more images \(64, 64, 3\) uint8"):
            export_onnx(single, out, images)
    half = patchcore(precision="bfloat16")
    with pytest.raises(PatchCoreError, match=r"computes in bfloat16.* --precision float32"):
        export_onnx(half, out, check_images(half))
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(PatchCoreError, match="an ONNX file holds 2"):
        export_onnx(single, out, check_images(single))
    assert (tmp_path / "there.onnx").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_method_without_a_graph_says_so(tmp_path):
    detector = Brightness(imagesize=SIDE, device="cpu").fit(parts(2))
    with pytest.raises(PatchCoreError, match="cannot be exported: it has no graph"):
        export_onnx(detector, tmp_path / "graph.onnx", check_images(detector))


def test_command_exports_a_stored_model(single, tmp_path, shell, monkeypatch):
    single.save(tmp_path / "model")
    out = tmp_path / "graph.onnx"
    ended = shell(command, tmp_path / "model", out)
    assert ended.code == 0, ended.err
    assert re.fullmatch(
        rf"{re.escape(str(out))}: \d+\.\d MiB; on 10 images .* within \de-\d+ of the model's\n", ended.out
    )
    image = parts(1, seed=3)
    assert run(out, image)["scores"][0] == pytest.approx(
        single.predict_batches([torch.from_numpy(pixels(image))]).scores[0, 0], rel=1e-4
    )
    ended = shell(command, tmp_path / "no model", out)  # OUT is looked at first
    assert (ended.code, ended.err) == (
        1,
        f"error: cannot write {out}: it is there already; remove it, or give another name\n",
    )
    ended = shell(command, tmp_path / "no model", tmp_path / "new.onnx")
    assert ended.code == 1
    assert ended.err.startswith("error: no folder ")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ended = shell(command, tmp_path / "model", tmp_path / "new.onnx")
    assert ended.code == 1
    assert re.fullmatch(r"error: onnx and onnxruntime are needed \(.*\): pip install '\.\[export\]'\n", ended.err)


def test_weights_dir_is_where_weights_are_looked_for(single, tmp_path, shell):
    single.save(tmp_path / "model")
    ended = shell(command, "--weights_dir", tmp_path, tmp_path / "model", tmp_path / "graph.onnx")
    assert ended.code == 1
    assert "--weights_dir has no effect with --weights random" in ended.err


def test_operation_that_is_unknown_to_onnx_is_named_in_one_line(single, tmp_path, capfd, monkeypatch):
    single.save(tmp_path / "model")
    forward = PatchCoreGraph.forward

    def odd(self, images):
        scores, maps = forward(self, images)
        return torch.special.bessel_j0(scores), maps

    monkeypatch.setattr(PatchCoreGraph, "forward", odd)
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "model"), str(tmp_path / "graph.onnx")], prog_name="script")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: this detector cannot be exported: .*bessel_j0.*\n", printed.err)
    assert not (tmp_path / "graph.onnx").exists()
