"""Patch embedding: unfold every neighbourhood and pool twice, against fixed convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.measure import Report, Work, at_least, compare
from patchcore.methods.patchcore.patches import PatchEmbedding

PRETRAIN = TARGET = 1024
# name, channels, grids of the layers, patch size, images
CASES = (
    ("WideResNet50, 224 px", (512, 1024), (28, 14), 3, 8),
    ("WideResNet50, 320 px", (512, 1024), (40, 20), 3, 8),
    ("WideResNet50, 320 px, 5 x 5 patches", (512, 1024), (40, 20), 5, 4),
    ("EfficientNet-Lite0, 224 px", (40, 112), (28, 14), 3, 8),
)
QUICK = (("WideResNet50, small grid", (512, 1024), (8, 4), 3, 1),)


def unfold_and_pool(maps: Sequence[Tensor], *, patchsize: int, pretrain: int, target: int) -> Tensor:
    """The definition (Roth et al. 2021, section 3.1), every neighbourhood of every layer in full.

    Args:
        maps: per layer (B, C, H, W) float32.
        patchsize: side of the neighbourhood, odd.
        pretrain: values of a layer's neighbourhood after pooling.
        target: values of a patch after pooling over the layers.

    Returns:
        (B * H * W, target) float32, H and W of the first layer.
    """
    height, width = maps[0].shape[-2:]
    shares = []
    for layer in maps:
        batch = len(layer)
        values = F.unfold(layer, patchsize, padding=(patchsize - 1) // 2)  # (B, C*k*k, h*w)
        values = values.reshape(batch, -1, *layer.shape[-2:])  # (B, C*k*k, h, w)
        if layer.shape[-2:] != (height, width):
            values = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)
        values = values.permute(0, 2, 3, 1).reshape(batch * height * width, 1, -1)  # (P, 1, C*k*k)
        shares.append(F.adaptive_avg_pool1d(values, pretrain))
    return F.adaptive_avg_pool1d(torch.cat(shares, dim=-1), target)[:, 0]  # (P, target)


def work(channels: Sequence[int], grids: Sequence[int], images: int, module: PatchEmbedding) -> Work:
    """Multiplications and additions of the convolutions; maps are read once and embeddings written once."""
    weights = [getattr(module, f"weight{index}") for index in range(len(channels))]
    operations = sum(2 * images * grid**2 * weight.numel() for grid, weight in zip(grids, weights, strict=True))
    read = sum(images * grid**2 * count for grid, count in zip(grids, channels, strict=True))
    return Work(operations=operations, nbytes=4 * (read + images * grids[0] ** 2 * TARGET))


@torch.inference_mode()
def run(inputs: Inputs) -> Report:
    """Compare on random maps of the networks' shapes; what is in them does not change the cost."""
    settings = inputs.settings
    device = settings.device
    memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    report = Report()
    for name, channels, grids, patchsize, images in QUICK if settings.quick else CASES:
        generator = torch.Generator().manual_seed(0)
        maps = [
            # As they come from the backbone: the extractor's networks run with channels last on the CPU.
            torch.randn(images, count, grid, grid, generator=generator).to(device, memory_format=memory_format)
            for count, grid in zip(channels, grids, strict=True)
        ]
        module = PatchEmbedding(channels, patchsize=patchsize, pretrain_dimension=PRETRAIN, target_dimension=TARGET).to(
            device
        )
        pooled = partial(unfold_and_pool, maps, patchsize=patchsize, pretrain=PRETRAIN, target=TARGET)
        report.comparisons.append(
            compare(
                "embedding",
                f"{name}, {images} images",
                reference=pooled,
                ours=lambda module=module, maps=maps: module(maps).flatten(0, 2),
                difference=lambda a, b: f"{(a - b).abs().max().item():.1e} absolute",
                device=device,
                repeats=settings.repeats,
                work=work(channels, grids, images, module),
            )
        )
    first = report.comparisons[0]
    if not settings.quick:
        report.targets += [
            at_least(f"embedding, {first.case}: time", 8, first.ratio),
            at_least(f"embedding, {first.case}: memory", 9, first.memory_ratio),
        ]
    return report
