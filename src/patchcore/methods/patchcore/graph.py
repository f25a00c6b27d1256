"""PatchCore as one graph of tensors, its bank inside, for export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from patchcore.features.encoder import PixelsToMaps
from patchcore.methods.patchcore.patches import PatchEmbedding
from patchcore.methods.patchcore.search import nearest_distances
from patchcore.scoring import anomaly_maps, image_scores, patch_scores


class MemberGraph(nn.Module):
    """One network with its bank.

    Args:
        network: from pixels to maps.
        embedding: of their patches.
        bank: (K, D) float32.
        num_nn: neighbours whose mean distance is the score, at most K.
        size: (H, W) of the images.
    """

    bank: Tensor
    norms: Tensor

    def __init__(
        self, network: PixelsToMaps, embedding: PatchEmbedding, bank: Tensor, num_nn: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.network = network
        self.embedding = embedding
        self.num_nn = num_nn
        self.size = size
        self.register_buffer("bank", bank)
        self.register_buffer("norms", bank.square().sum(dim=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 -> (B,) scores and (B, H, W) maps."""
        patches = self.embedding(self.network(images))  # (B, h, w, D)
        distances = nearest_distances(patches.flatten(0, 2), self.bank, self.norms, self.num_nn)
        grid = patch_scores(distances).reshape(patches.shape[:3])  # (B, h, w)
        return image_scores(grid), anomaly_maps(grid, self.size)


class PatchCoreGraph(nn.Module):
    """All members; see `Detector.graph`."""

    def __init__(self, members: Sequence[MemberGraph]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores, maps = zip(*[member(images) for member in self.members], strict=True)
        return torch.stack(scores), torch.stack(maps)
