"""Metrics: one scikit-learn call after the other, against one sort."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.inputs import Inputs
from benchmarks.measure import Report, Work, at_least, compare
from patchcore.metrics import MAX_FPR, image_metrics, pixel_metrics
from patchcore.scoring import anomaly_maps

# images, side of the maps, side of the patch grid
CASES = ((97, 224, 28), (97, 320, 40))
QUICK = ((6, 64, 8),)


def with_sklearn(maps: NDArray, masks: NDArray, labels: NDArray) -> dict[str, float]:
    """Every metric of the results by scikit-learn; AUPRO from its ROC curve with weights that make regions equal."""
    from scipy.ndimage import label
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    scores = maps.max(axis=(1, 2))
    flat, truth = maps.ravel(), masks.ravel()
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        regions, count = label(mask, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            weight[regions == region] = 1 / (regions == region).sum()
    fpr, overlap, _ = roc_curve(truth, flat, sample_weight=weights.ravel())
    end = np.interp(MAX_FPR, fpr, overlap)
    inside = fpr < MAX_FPR

    def f1max(truth: NDArray, values: NDArray) -> float:
        precision, recall, _ = precision_recall_curve(truth, values)
        return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())

    return {
        "image AUROC": roc_auc_score(labels, scores),
        "image AP": average_precision_score(labels, scores),
        "image F1max": f1max(labels, scores),
        "pixel AUROC": roc_auc_score(truth, flat),
        "anomaly pixel AUROC": roc_auc_score(masks[labels].ravel(), maps[labels].ravel()),
        "pixel AP": average_precision_score(truth, flat),
        "pixel F1max": f1max(truth, flat),
        "AUPRO": auc(np.append(fpr[inside], MAX_FPR), np.append(overlap[inside], end)) / MAX_FPR,
    }


def ours(maps: NDArray, masks: NDArray, labels: NDArray) -> dict[str, float]:
    """The same by the package."""
    images = image_metrics(maps.max(axis=(1, 2)), labels)
    pixels = pixel_metrics(maps, masks, labels)
    return {
        "image AUROC": images.auroc,
        "image AP": images.ap,
        "image F1max": images.f1max,
        "pixel AUROC": pixels.auroc,
        "anomaly pixel AUROC": pixels.anomaly_auroc,
        "pixel AP": pixels.ap,
        "pixel F1max": pixels.f1max,
        "AUPRO": pixels.aupro,
    }


def difference(reference: dict[str, float], values: dict[str, float]) -> str:
    """The largest difference of a metric, and which it is."""
    name = max(reference, key=lambda name: abs(reference[name] - values[name]))
    return f"{abs(reference[name] - values[name]):.1e} ({name})"


def drawn_maps(images: int, side: int, grid: int) -> tuple[NDArray, NDArray, NDArray]:
    """Smooth maps (N, H, W), masks with up to three defects in three of four images, and the images' labels."""
    rng = np.random.default_rng(0)
    scores = rng.gamma(4.0, size=(images, grid, grid)).astype(np.float32)
    masks = np.zeros((images, side, side), dtype=bool)
    rows, columns = np.mgrid[:side, :side]
    for index in range(images):
        for _ in range(rng.integers(1, 4) if index % 4 else 0):
            y, x, radius = *rng.uniform(0.1, 0.9, 2) * side, rng.uniform(0.01, 0.08) * side
            masks[index] |= (rows - y) ** 2 + (columns - x) ** 2 <= max(radius, 1) ** 2
    seen = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(masks).float(), grid).numpy()
    scores += seen * rng.gamma(2.0, 2.0, size=(images, 1, 1)).astype(np.float32)
    return anomaly_maps(torch.from_numpy(scores), (side, side)).numpy(), masks, masks.any(axis=(1, 2))


def run(inputs: Inputs) -> Report:
    """Compare on maps as many and as large as those of metal_plate."""
    settings = inputs.settings
    report = Report()
    for images, side, grid in QUICK if settings.quick else CASES:
        drawn = drawn_maps(images, side, grid)
        pixels = drawn[0].size
        report.comparisons.append(
            compare(
                "metrics",
                f"{images} maps of {side} x {side}, 8 metrics",
                reference=lambda drawn=drawn: with_sklearn(*drawn),
                ours=lambda drawn=drawn: ours(*drawn),
                difference=difference,
                device=torch.device("cpu"),
                repeats=settings.repeats,
                work=Work(operations=pixels * np.log2(pixels), nbytes=drawn[0].nbytes + drawn[1].nbytes),
            )
        )
    if not settings.quick:
        report.targets.append(at_least(f"metrics, {report.comparisons[0].case}", 8, report.comparisons[0].ratio))
    return report
