"""Folding batch normalisations into the convolutions before them, which saves a pass over memory for each."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

# Batch normalisations that can be folded: torch's own, and timm's with an activation behind it.
_FOLDABLE = ("BatchNorm2d", "BatchNormAct2d")


class _Pairs:
    """Watches a forward pass for convolutions whose output goes straight into a batch normalisation."""

    def __init__(self, module: nn.Module) -> None:
        self.runs: dict[nn.Module, int] = {}
        self.pairs: dict[nn.Module, nn.Module] = {}
        self.handles = []
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                self.handles.append(child.register_forward_hook(self._after_convolution))
            elif type(child).__name__ in _FOLDABLE and child.running_mean is not None:
                self.handles.append(child.register_forward_pre_hook(self._before_norm))

    def _after_convolution(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.runs[module] = self.runs.get(module, 0) + 1
        output.made_by = (module, output._version)  # an in-place change raises the version

    def _before_norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.runs[module] = self.runs.get(module, 0) + 1
        convolution, version = getattr(inputs[0], "made_by", (None, None))
        if convolution is not None and version == inputs[0]._version:
            self.pairs[module] = convolution

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()

    def fold(self, module: nn.Module, keep: Sequence[str]) -> nn.Module | None:
        """A copy of `module` with the pairs fused; the layers `keep` give what they gave. None without pairs.

        With s = weight / sqrt(var + eps): s (w x + b - mean) + bias = (s w) x + (s (b - mean) + bias). That
        saves a pass over memory per pair.
        """
        names = {child: name for name, child in module.named_modules()}
        pairs = [
            (names[convolution], names[norm])
            for norm, convolution in self.pairs.items()
            if self.runs[norm] == self.runs[convolution] == 1 and names[convolution] not in keep
        ]
        if not pairs:
            return None
        folded = _copy_structure(module)
        for convolution_name, norm_name in pairs:
            convolution, norm = folded.get_submodule(convolution_name), folded.get_submodule(norm_name)
            convolution.weight, convolution.bias = nn.utils.fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            if hasattr(norm, "act"):
                rest: nn.Module = nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))
            else:
                rest = nn.Identity()
            folded.set_submodule(norm_name, rest)
        return folded.eval().requires_grad_(False)


def _copy_structure(module: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
