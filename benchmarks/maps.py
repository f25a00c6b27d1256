"""Anomaly maps: upsampling, then a Gaussian filter image by image, against one matrix from each side."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.measure import Report, Work, compare
from patchcore.scoring import MAP_SIGMA, anomaly_maps

# images, side of the maps, side of the patch grid
CASES = ((97, 224, 28), (97, 320, 40))
QUICK = ((4, 64, 8),)


def upsample_and_filter(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) patch scores -> (N, H, W) maps: bilinear upsampling, then SciPy's Gaussian filter."""
    from scipy.ndimage import gaussian_filter

    upsampled = F.interpolate(scores[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    smooth = [gaussian_filter(image, sigma=MAP_SIGMA) for image in upsampled.cpu().numpy()]
    return torch.from_numpy(np.stack(smooth)).to(scores.device)


@torch.inference_mode()
def run(inputs: Inputs) -> Report:
    """Compare on random scores; on CUDA the reference copies to the host and back, as SciPy asks for."""
    settings = inputs.settings
    report = Report()
    for images, side, grid in QUICK if settings.quick else CASES:
        scores = torch.rand(images, grid, grid, generator=torch.Generator().manual_seed(0)).to(settings.device)
        size = side, side
        report.comparisons.append(
            compare(
                "maps",
                f"{images} maps of {grid} x {grid} to {side} x {side}",
                reference=lambda scores=scores, size=size: upsample_and_filter(scores, size),
                ours=lambda scores=scores, size=size: anomaly_maps(scores, size),
                difference=lambda a, b: f"{(a - b).abs().max().item():.1e} absolute",
                device=settings.device,
                repeats=settings.repeats,
                work=Work(
                    operations=2 * images * (side * grid * grid + side * side * grid),
                    nbytes=4 * images * (grid**2 + side**2),
                ),
            )
        )
    return report
