"""Images -> {layer: feature map}, by a frozen backbone that stops at the last layer needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from patchcore.backbones.build import Backbone
from patchcore.backbones.registry import near_misses
from patchcore.features.folding import copy_structure, find_pairs, fold
from patchcore.types import PatchCoreError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# How far folded batch normalisation may move a map, relative to the map's largest value.
_FOLD_TOLERANCE = 1e-4

# Image size for looking at a network that takes any: a multiple of every usual patch size.
_PROBE_SIZE = (224, 224)


def normalise(images: Tensor) -> Tensor:
    """Bring pixels to the range that ImageNet networks are trained on.

    Args:
        images: (B, 3, H, W) uint8 RGB.

    Returns:
        (B, 3, H, W) float32 on the same device: scaled to [0, 1], less ImageNet's mean, over its standard deviation.
    """
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return images.float().div_(255).sub_(mean).div_(std)


class FeatureExtractor(nn.Module):
    """The named layers of a backbone as feature maps.

    Works on a copy of the network's structure that shares the backbone's tensors: the backbone itself gets no
    hooks and keeps its layers. Let go of the backbone afterwards to free what the extractor replaced.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[str], precision: str = "float32") -> None:
        """Find the layers and look at what they give for one image.

        Args:
            backbone: from `load_backbone`.
            layers: dotted names such as `layer2`, `blocks.2`, `features.denseblock2`.
            precision: of the network's products, float32 or bfloat16.

        Raises:
            PatchCoreError: a layer that is not there, is named twice, never runs, or gives no map.
        """
        super().__init__()
        if not layers or len(set(layers)) < len(layers):
            raise PatchCoreError(f"backbone {backbone.name} needs one or more different layers, got {list(layers)}")
        self.name = backbone.name
        self.layers = tuple(layers)
        self.precision = precision
        self.image_size = backbone.image_size
        self.prefix_tokens = backbone.prefix_tokens
        self._memory_format: torch.memory_format | None = None
        self._one_at_a_time = Lock()  # the hooks of a pass would see the layers of another thread's

        module = copy_structure(backbone.module)
        for layer in self.layers:
            _check_layer(module, layer, self.name)
        with torch.inference_mode(False):  # inference tensors do not count their changes
            size = self.image_size or _PROBE_SIZE
            probe = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
            probe = probe.to(next(module.parameters()).device)
            with find_pairs(module) as pairs:
                expected = self._run(module, probe)
            foldable = [pair for pair in pairs if pair[0] not in self.layers]  # these give what they gave
            self.module = self._faster(module, foldable, probe, expected)
        declared = "NHWC" in str(getattr(module, "output_fmt", ""))  # how timm's Swin and its kin say so
        self._channels_last = {layer: _channels_last(expected[layer], declared) for layer in self.layers}
        for layer, output in expected.items():
            self._to_map(layer, output, probe.shape)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps, without gradient.

        Args:
            images: (B, 3, H, W) float32, normalised.

        Returns:
            layer -> (B, C, H', W') float32, in the order asked for. The memory format is the network's.

        Raises:
            PatchCoreError: for an image size that the network does not take.
        """
        size = tuple(images.shape[-2:])
        if self.image_size is not None and size != self.image_size:
            raise PatchCoreError(
                f"backbone {self.name} takes {_size(self.image_size)} images only, got {_size(size)}; "
                f"set --imagesize {self.image_size[0]} or choose another backbone"
            )
        # oneDNN's convolutions are up to twice as fast with channels last.
        memory_format = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
        if memory_format != self._memory_format:
            with torch.inference_mode(False):
                self.module.to(memory_format=memory_format)
            self._memory_format = memory_format
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with self._one_at_a_time, autocast:
            outputs = self._run(self.module, images.contiguous(memory_format=memory_format))
        return {layer: self._to_map(layer, outputs[layer], images.shape).float() for layer in self.layers}

    def layer_shapes(self, input_size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
        """(C, H', W') of every layer for images of `input_size` (H, W).

        Raises:
            PatchCoreError: for an image size that the network does not take.
        """
        image = torch.zeros(1, 3, *input_size, device=next(self.module.parameters()).device)
        try:
            maps = self(image)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a pooling window larger than what is left of the image, and the like
            raise self._refused(input_size, error) from error
        return {layer: tuple(value.shape[1:]) for layer, value in maps.items()}

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(False)

    def _faster(
        self, module: nn.Module, pairs: Sequence[tuple[str, str]], probe: Tensor, expected: dict[str, Tensor]
    ) -> nn.Module:
        """The network with batch normalisation folded, or as it is where that would change a map."""
        if not pairs:
            return module
        folded = fold(module, pairs)
        try:
            outputs = self._run(folded, probe)
        except (AttributeError, RuntimeError, TypeError):  # a network that looks into the layers replaced
            return module
        same = (
            (outputs[layer] - value).abs().max() <= _FOLD_TOLERANCE * value.abs().max()
            for layer, value in expected.items()
        )
        return folded if all(same) else module

    def _run(self, module: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """What the layers give for `images`, by a forward pass that ends with the last of them."""
        outputs: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for layer in self.layers:
                hook = module.get_submodule(layer).register_forward_hook(self._capture(layer, outputs))
                stack.callback(hook.remove)
            # Not inference_mode: FastFlow trains on these maps, and autograd refuses inference tensors.
            stack.enter_context(torch.no_grad())
            try:
                module(images)
            except _AllCapturedError:
                pass
            except AssertionError as error:  # how timm refuses sizes that do not divide into patches
                raise self._refused(images.shape[-2:], error) from error
        missing = [layer for layer in self.layers if layer not in outputs]
        if missing:
            raise PatchCoreError(f"layer {missing[0]} of {self.name} is never run; choose another")
        return outputs

    def _refused(self, size: Sequence[int], error: Exception) -> PatchCoreError:
        reason = str(error).partition("\n")[0]
        return PatchCoreError(f"backbone {self.name} does not take {_size(size)} images: {reason}")

    def _capture(self, layer: str, outputs: dict[str, Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (3, 4):
                raise PatchCoreError(f"layer {layer} of {self.name} gives {_describe(output)}, not a feature map")
            outputs[layer] = output
            if len(outputs) == len(self.layers):
                raise _AllCapturedError
            # Networks go on to change what a layer gave: ReLU(inplace=True), x += shortcut.
            outputs[layer] = output.clone()

        return hook

    def _to_map(self, layer: str, output: Tensor, image_shape: torch.Size) -> Tensor:
        output = output.float()
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self._channels_last[layer] else output  # (B, C, H, W)
        batch, tokens, channels = output.shape
        embedding: Any = getattr(self.module, "patch_embed", None)
        if not hasattr(embedding, "dynamic_feat_size"):
            raise PatchCoreError(
                f"layer {layer} of {self.name} gives {_describe(output)}, but the network tells no patch grid"
            )
        height, width = embedding.dynamic_feat_size(tuple(image_shape[-2:]))
        prefix = tokens - height * width
        if prefix not in (0, self.prefix_tokens):
            raise PatchCoreError(
                f"layer {layer} of {self.name} gives {tokens} tokens for {_size(image_shape[-2:])} images, "
                f"expected {height} x {width} patches and {self.prefix_tokens} tokens before them"
            )
        grid = output[:, prefix:].reshape(batch, height, width, channels)  # (B, H, W, C)
        return grid.permute(0, 3, 1, 2)


def default_layers(backbone: Backbone) -> tuple[str, ...]:
    """The layers to model at several scales: those at reductions 4, 8 and 16, the finest first.

    A transformer with one resolution gives one layer, two thirds of the way up: `blocks.7` of 12, which
    FastFlow uses for DeiT (Yu et al. 2021).

    Raises:
        PatchCoreError: where neither a table nor timm's `feature_info` knows the network.
    """
    if backbone.layers:
        return backbone.layers
    info: Any = getattr(backbone.module, "feature_info", None)
    entries = [(item["module"], item["reduction"]) for item in info or []]
    if not entries:
        raise PatchCoreError(f"the scales of backbone {backbone.name} are not known; name the layers")
    if len({reduction for _, reduction in entries}) == 1:
        return (entries[len(entries) * 2 // 3 - 1][0],)
    return tuple(layer for layer, reduction in entries if reduction in (4, 8, 16))


class _AllCapturedError(Exception):
    """Ends a forward pass: what follows is not needed."""


def _check_layer(module: nn.Module, layer: str, backbone: str) -> None:
    names = [name for name, _ in module.named_modules() if name]
    if layer in names:
        return
    level, here = "", module
    for part in layer.split("."):
        child = dict(here.named_children()).get(part)
        if child is None:
            break
        level, here = f"{level}.{part}".strip("."), child
    there = ", ".join(f"{level}.{name}".strip(".") for name, _ in here.named_children()) or "nothing"
    where = f"in {level}" if level else "at the top"
    raise PatchCoreError(
        f"backbone {backbone} has no layer {layer!r}{near_misses(layer, names)}; {where} there is {there}"
    )


def _channels_last(output: Tensor, declared: bool) -> bool:
    """Whether a 4-d output of a square image is (B, H, W, C): a square image has square maps."""
    if output.ndim != 4:
        return False
    _, first, second, third = output.shape
    if (first == second) != (second == third):
        return first == second
    return declared  # the channels are as many as the rows, or the image was not square


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
