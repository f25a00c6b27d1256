"""Folding batch normalisations into the convolutions before them, which saves a pass over memory for each."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

# Batch normalisations that can be folded: torch's own, and timm's with an activation behind it.
_FOLDABLE = ("BatchNorm2d", "BatchNormAct2d")


@contextmanager
def find_pairs(module: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Watch a forward pass in the body for convolutions whose output goes straight into a batch normalisation.

    The list that it yields holds (convolution, batch normalisation) by name when the body ends, those that ran once.
    """
    pairs: list[tuple[str, str]] = []
    runs: Counter[nn.Module] = Counter()
    convolutions: dict[nn.Module, nn.Module] = {}  # batch normalisation -> the convolution before it

    def after_convolution(convolution: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[convolution] += 1
        output.made_by = (convolution, output._version)  # an in-place change raises the version

    def before_norm(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        runs[norm] += 1
        convolution, version = getattr(inputs[0], "made_by", (None, None))
        if convolution is not None and version == inputs[0]._version:
            convolutions[norm] = convolution

    with ExitStack() as hooks:
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                hooks.callback(child.register_forward_hook(after_convolution).remove)
            elif type(child).__name__ in _FOLDABLE and child.running_mean is not None:
                hooks.callback(child.register_forward_pre_hook(before_norm).remove)
        yield pairs
    names = {child: name for name, child in module.named_modules()}
    once = [(before, norm) for norm, before in convolutions.items() if runs[norm] == runs[before] == 1]
    pairs.extend((names[convolution], names[norm]) for convolution, norm in once)


def fold(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """A copy of `module` with each (convolution, batch normalisation) of `pairs` as one convolution.

    With s = weight / sqrt(var + eps): s (w x + b - mean) + bias = (s w) x + (s (b - mean) + bias).
    Tensors that do not change are shared with `module`.
    """
    folded = copy_structure(module)
    for convolution_name, norm_name in pairs:
        convolution: Any = folded.get_submodule(convolution_name)
        norm: Any = folded.get_submodule(norm_name)
        convolution.weight, convolution.bias = nn.utils.fuse_conv_bn_weights(
            *(convolution.weight, convolution.bias),
            *(norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias),
        )
        rest = OrderedDict(drop=norm.drop, act=norm.act) if hasattr(norm, "act") else OrderedDict()
        folded.set_submodule(norm_name, nn.Sequential(rest) if rest else nn.Identity())
    return folded.eval().requires_grad_(False)


def copy_structure(module: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same tensors."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
