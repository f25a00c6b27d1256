"""Feature maps -> patch embeddings, as fixed convolutions.

PatchCore (Roth et al. 2021, section 3.1) describes a patch by its k x k neighbourhood in the maps of several
layers: the neighbourhood's C*k*k values of a layer are adaptively average-pooled to `pretrain_dimension`
values, the layers are laid end to end, and the whole is pooled again to `target_dimension` values. Coarser
layers are resized to the grid of the first one.

Unfolding the neighbourhoods costs k*k times the memory of the maps. But every step is linear, resizing acts on
positions and pooling on channels, so the two commute, and the bins of the poolings repeat after every
C / gcd(C, pretrain_dimension, share) channels. A layer's share of the embedding is therefore one grouped
convolution with fixed weights at the layer's own resolution, followed by resizing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pooling_matrix(size: int, bins: int) -> Tensor:
    """The matrix of one-dimensional adaptive average pooling.

    Args:
        size: number of values that are pooled.
        bins: number of values that come out; more than `size` repeats values.

    Returns:
        (bins, size) float64, rows sum to one: bin i is the mean of [floor(i*size/bins), ceil((i+1)*size/bins)).
    """
    edges = torch.arange(bins + 1) * size
    start = edges[:-1] // bins
    stop = -(-edges[1:] // bins)
    column = torch.arange(size)
    inside = (column >= start[:, None]) & (column < stop[:, None])  # (bins, size)
    return inside / inside.sum(dim=1, keepdim=True, dtype=torch.float64)


class PatchEmbedding(nn.Module):
    """Turns the feature maps of an image batch into one embedding per position of the first layer's grid.

    Args:
        channels: channels of each layer's map, the layer that sets the grid first.
        patchsize: side of the neighbourhood, stride 1, zero padding (patchsize - 1) // 2.
        pretrain_dimension: values that each layer's neighbourhood is pooled to.
        target_dimension: values that the layers together are pooled to.

    The weights are fixed and follow from the arguments, so they are not part of a model's state.
    """

    def __init__(
        self, channels: Sequence[int], *, patchsize: int, pretrain_dimension: int, target_dimension: int
    ) -> None:
        super().__init__()
        for name, value in (
            ("patchsize", patchsize),
            ("pretrain_dimension", pretrain_dimension),
            ("target_dimension", target_dimension),
            ("number of layers", len(channels)),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.patchsize = patchsize
        self.target_dimension = target_dimension
        # Where no target bin straddles two layers, the second pooling folds into each layer's convolution.
        folds = target_dimension % len(channels) == 0
        share = target_dimension // len(channels) if folds else pretrain_dimension
        self._groups: list[int] = []
        for index, count in enumerate(channels):
            groups = math.gcd(count, pretrain_dimension, share)
            first = pooling_matrix(count // groups * patchsize**2, pretrain_dimension // groups)
            weight = pooling_matrix(pretrain_dimension // groups, share // groups) @ first if folds else first
            weight = weight.reshape(-1, count // groups, patchsize, patchsize).repeat(groups, 1, 1, 1)
            self.register_buffer(f"weight{index}", weight.float(), persistent=False)
            self._groups.append(groups)
        self._join: Tensor | None
        join = None if folds else pooling_matrix(len(channels) * pretrain_dimension, target_dimension).float()
        self.register_buffer("_join", join, persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Embed the patches of a batch.

        Args:
            maps: per layer (B, C, H, W) float, in the order of `channels`.

        Returns:
            (B, H, W, target_dimension) float32 on the maps' device, H and W those of the first layer's grid.
        """
        shares: list[Tensor] = []
        for index, (layer, groups) in enumerate(zip(maps, self._groups, strict=True)):
            weight = getattr(self, f"weight{index}")
            share = F.conv2d(layer.float(), weight, padding=(self.patchsize - 1) // 2, groups=groups)
            if shares and share.shape[-2:] != shares[0].shape[-2:]:
                share = F.interpolate(share, size=shares[0].shape[-2:], mode="bilinear", align_corners=False)
            shares.append(share)
        embedding = torch.cat([share.permute(0, 2, 3, 1) for share in shares], dim=-1)  # (B, H, W, D)
        return embedding if self._join is None else embedding @ self._join.T
