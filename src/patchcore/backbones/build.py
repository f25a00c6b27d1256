"""Name -> frozen network with its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.backbones.registry import WEIGHTS, Backbone, Entry, near_misses, resolve_backbone
from patchcore.backbones.weights import (
    _hub_source,
    _modern_names,
    _packaged_weights,
    _Places,
    _read,
    _reading,
    _Source,
    _timm_source,
)
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from torch import nn


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
        from patchcore.backbones.efficientnet_lite0 import EfficientNetLite0 as build

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
