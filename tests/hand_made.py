"""Runs written by hand, as a run would leave them, for the tests of the comparison."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchcore.metrics import RankedPairs, auroc, image_metrics
from patchcore.results import run_folder

PATCH_CORE = {"backbones": ["efficientnet_lite0"], "layers": [["blocks.2"]], "num_nn": 1, "faiss_on_gpu": False}
FASTFLOW = {"backbone": "resnet18", "steps": 8, "hidden_ratio": 1.0, "class_specific": False, "tile": None}
ENVIRONMENT = {"processor": "test processor", "threads": "1", "gpus": "none"}
GOOD, DEFECTIVE = 8, 12


def drawn_scores(quality: float, seed: int) -> np.ndarray:
    """Scores of 8 good and 12 defective images; the defective ones lie `quality` standard deviations higher."""
    scores = np.random.default_rng(seed).normal(size=GOOD + DEFECTIVE)
    scores[GOOD:] += quality
    return scores


def write_run(
    folder: Path,
    *,
    quality: float = 2.0,
    seed: int = 0,
    categories: tuple[str, ...] = ("plate", "bracket"),
    config: Mapping[str, Any] | None = None,
    fingerprint: str = "a1",
    data: str = "data",
    scores: bool = True,
    costs: Mapping[str, float] | None = None,
) -> Path:
    """Write a finished run; `config` replaces whole sections of `config.yaml`, None removes one."""
    labels = np.arange(GOOD + DEFECTIVE) >= GOOD
    defects = ["good"] * GOOD + ["scratches"] * (DEFECTIVE // 2) + ["rust"] * (DEFECTIVE // 2)
    rows, types = {}, []
    for number, category in enumerate(categories):
        row = f"mpdd_{category}"
        values = drawn_scores(quality, 100 * seed + number)
        metrics = image_metrics(values, labels)
        threshold = float(values[:GOOD].max())
        rows[row] = {
            **{name: 0.5 for name, _ in run_folder.METRICS},
            "instance_auroc": metrics.auroc,
            "image_ap": metrics.ap,
            "image_f1max": metrics.f1max,
            "threshold": threshold,
            "defects_caught": float((values[labels] > threshold).mean()),
            "false_rejects": 0.0,
            "fit_seconds": 1.0,
            "ms_per_image": 10.0,
            "backbone_ms_per_image": 6.0,
            "search_ms_per_image": 4.0,
            "peak_host_mib": 500.0,
            "peak_gpu_mib": 0.0,
            "bank_mib": 2.0,
            "model_mib": 2.0,
            **(costs or {}),
        }
        for defect in ("rust", "scratches"):
            chosen = np.array([one in ("good", defect) for one in defects])
            types.append(
                {
                    run_folder.ROW_NAMES: row,
                    "defect_type": defect,
                    "images": DEFECTIVE // 2,
                    "instance_auroc": auroc(values[chosen], labels[chosen]),
                    "anomaly_pixel_auroc": 0.5,
                    "defects_caught": math.nan,
                }
            )
        if scores:
            _write_scores(folder / "anomaly_scores", row, category, defects, values, labels)
    content = {
        "command": "by hand",
        "run": {"seed": seed, "log_group": folder.name},
        "dataset": {
            "name": "mpdd",
            "path": data,
            "categories": list(categories),
            "resize": 256,
            "imagesize": 224,
            "train_val_split": 0.8,
            "augment": False,
        },
        "patch_core": PATCH_CORE,
        "sampler": {"name": "approx_greedy_coreset", "fraction": 0.1},
        "test_set": {row: {"images": len(labels), "fingerprint": f"{row}-{fingerprint}"} for row in rows},
        "environment": ENVIRONMENT,
        **(config or {}),
    }
    run_folder.write_yaml(folder / "config.yaml", {name: section for name, section in content.items() if section})
    run_folder.write_rows(folder / "defect_types.csv", types)
    run_folder.write_results(folder / "results.csv", rows)
    return folder


def _write_scores(
    folder: Path, row: str, category: str, defects: list[str], values: np.ndarray, labels: np.ndarray
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "defect_type", "label", "raw_score", "normalised_score", "decision_value", "rejected"])
        for number, (defect, value, label) in enumerate(zip(defects, values, labels, strict=True)):
            path = f"{category}/test/{defect}/{number:03}.png"
            writer.writerow([path, defect, int(label), value, value, value, int(value > values[:GOOD].max())])
    run_folder.write_pixel_pairs(folder / f"{row}_pixels.npz", pixel_pairs_of(values, labels))


def pixel_pairs_of(values: np.ndarray, labels: np.ndarray) -> RankedPairs:
    """One defect pixel in every defective image and one normal one in every image, told apart as the scores are."""
    won = 1 / (1 + np.exp(values - values[labels][:, None]))  # (D, N)
    return RankedPairs(won=won, positives=np.ones(DEFECTIVE), negatives=np.ones(len(labels)))


FASTFLOW_RUN = {"patch_core": None, "sampler": None, "fastflow": FASTFLOW}


def stored(folder: str) -> dict[str, Any]:
    """The sections of `config.yaml` of an evaluation of models in a folder."""
    model = {"config": PATCH_CORE, "sampler": {"name": "approx_greedy_coreset", "fraction": 0.1}}
    return {
        "patch_core": None,
        "sampler": None,
        "patch_core_loader": {"paths": [folder], "num_nn": None, "weights_dir": "w"},
        "models": {
            "plate": {"folder": f"{folder}/plate", **model},
            "bracket": {"folder": f"{folder}/bracket", **model},
        },
    }
