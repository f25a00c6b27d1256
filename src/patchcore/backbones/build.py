"""Name -> frozen network with its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.backbones.registry import Entry, near_misses, resolve_backbone
from patchcore.backbones.weights import (
    WeightFinder,
    current_names,
    explain_damage,
    read_weights,
    registry_source,
    timm_source,
)
from patchcore.config import WEIGHTS
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen network in evaluation mode, and what feature extraction has to know about it.

    Attributes:
        name: as asked for, a `.seed-N` included.
        module: the network; takes (B, 3, H, W) float32 images.
        weights: what was loaded: "ResNet50_Weights.IMAGENET1K_V1", "resnet18.a1_in1k", "random seed 3".
        prefix_tokens: class, distillation and register tokens that a transformer puts before its patches.
        image_size: the one (H, W) that the network accepts, None where it takes any size.
        layers: those at reductions 4, 8 and 16 where a table knows them.
    """

    name: str
    module: nn.Module
    weights: str
    prefix_tokens: int = 0
    image_size: tuple[int, int] | None = None
    layers: tuple[str, ...] = ()


def checksum(module: nn.Module) -> str:
    """SHA-256 of a network's weights, as 64 hexadecimal digits.

    It covers shape, dtype and bytes of every parameter and stored buffer in the network's order, not their names: the
    same weights have the same checksum whichever file they came from. Batch normalisation's count of training batches
    is left out, as files of old lack it and no output depends on it. Device and memory format make no difference.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
        backbone = load(name, entry, None if weights == "random" else WeightFinder(weights_dir))
    backbone.module.eval().requires_grad_(False)
    label = f"random seed {seed or 0}" if weights == "random" else backbone.weights
    return replace(backbone, weights=label)


def _load_module(name: str, entry: Entry, finder: WeightFinder | None) -> Backbone:
    """A torchvision network or EfficientNet-Lite0; random weights without a `finder`."""
    import torch

    if entry.library == "torchvision":
        from torchvision.models import get_model

        build: Any = partial(get_model, entry.model, weights=None)
    else:
        from patchcore.backbones.efficientnet_lite0 import EfficientNetLite0 as build

    if finder is None:
        module = build() if entry.library == "torchvision" else build().randomise()
        return Backbone(name=name, module=module, weights="random", layers=entry.layers)
    source = registry_source(entry)
    path = finder.find(name, source)
    with torch.device("meta"):  # no random numbers for weights that are replaced: 1.5 s for WideResNet50
        module = build()
    with explain_damage(path, entry.model):
        module.load_state_dict(current_names(read_weights(path)), assign=True)
    label = path.name if path == source.packaged else source.label
    return Backbone(name=name, module=module.float(), weights=label, layers=entry.layers)


def _load_timm(name: str, entry: Entry, finder: WeightFinder | None) -> Backbone:
    """A timm network; random weights without a `finder`."""
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

    if finder is None:
        label = "random"
        module, any_size = _create_timm(full_name, config.fixed_input_size, pretrained=False)
    else:
        label = f"{entry.model}.{config.tag}" if config.tag and config.has_weights else entry.model
        path = finder.find(name, timm_source(label, config))
        with explain_damage(path, label):
            # timm reads a path itself, but only safetensors surely without unpickling; the rest is read here.
            file = {"file": str(path)} if path.suffix == ".safetensors" else {"state_dict": read_weights(path)}
            overlay = {**file, "custom_load": False}
            module, any_size = _create_timm(
                full_name, config.fixed_input_size, pretrained=True, pretrained_cfg_overlay=overlay
            )
        module.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights
    _, height, width = config.input_size
    return Backbone(
        name=name,
        module=module,
        weights=label,
        prefix_tokens=getattr(module, "num_prefix_tokens", 0),
        image_size=(height, width) if config.fixed_input_size and not any_size else None,
    )


def _create_timm(full_name: str, fixed_size: bool, **arguments: Any) -> tuple[Any, bool]:
    """The network, and whether one of a fixed image size could be told to accept others."""
    import timm

    if fixed_size:
        # ViT and its kin interpolate their position embedding, Swin redraws its windows, others do neither.
        for option, value in (("dynamic_img_size", True), ("strict_img_size", False)):
            try:
                network = timm.create_model(full_name, **arguments, **{option: value})
            except TypeError as error:
                if option not in str(error):
                    raise
            else:
                # Swin of timm before 1.0.31 takes the first option and does nothing with it.
                if not getattr(getattr(network, "patch_embed", None), "strict_img_size", False):
                    return network, True
    return timm.create_model(full_name, **arguments), False
