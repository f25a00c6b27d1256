"""Runs written by hand, as a run would leave them, for the tests of the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchcore.metrics import RankedPairs, auroc, image_metrics
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.overlay import save_overlay
from patchcore.results.columns import DEFECTIVE_PIXEL_AUROC, DEFECTS_CAUGHT, IMAGE_AUROC, IMAGES, METRICS
from patchcore.results.config_file import write_yaml
from patchcore.results.run_folder import RunFolder
from patchcore.results.scores import write_pixel_pairs
from patchcore.results.tables import write_csv, write_defect_types, write_results

BANK = "Bank net, 10 %"
BANK_SETTINGS = {"backbones": ["net"], "layers": [["blocks.2"]], "num_nn": 1, "fraction": 0.1}
FLOW = "Flow net"
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
    pictures: bool = False,
    costs: Mapping[str, float] | None = None,
) -> Path:
    """Write a finished run; `config` replaces whole sections of `config.yaml`, None removes one."""
    labels = np.arange(GOOD + DEFECTIVE) >= GOOD
    defects = ["good"] * GOOD + ["scratches"] * (DEFECTIVE // 2) + ["rust"] * (DEFECTIVE // 2)
    rows: dict[str, dict[str, float]] = {}
    types: dict[str, dict[str, dict[str, float]]] = {}
    run = RunFolder(folder)
    for number, category in enumerate(categories):
        row = f"mpdd_{category}"
        values = drawn_scores(quality, 100 * seed + number)
        metrics = image_metrics(values, labels)
        threshold = float(values[:GOOD].max())
        rows[row] = {
            **dict.fromkeys(METRICS, 0.5),
            "instance_auroc": metrics.auroc,
            "image_ap": metrics.ap,
            "image_f1max": metrics.f1max,
            "threshold": threshold,
            "defects_caught": float((values[labels] > threshold).mean()),
            "false_rejects": 0.0,
            "stated_false_rejects": 1 / (GOOD + 1),
            "defective_images": int(labels.sum()),
            "test_images": len(labels),
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
        types[row] = {}
        for defect in ("rust", "scratches"):
            chosen = np.array([one in ("good", defect) for one in defects])
            types[row][defect] = {
                IMAGES: DEFECTIVE // 2,
                IMAGE_AUROC: auroc(values[chosen], labels[chosen]),
                DEFECTIVE_PIXEL_AUROC: 0.5,
                DEFECTS_CAUGHT: math.nan,
            }
        if scores:
            _write_scores(run, row, _paths(category, defects), defects, values, labels)
        if pictures:
            _write_overlays(run, row, _paths(category, defects), values)
    content = {
        "id": f"id of {folder.name}",
        "command": "by hand",
        "method": {"name": "bank", "title": "Bank", "short_name": BANK},
        "run": {"seed": seed, "log_group": folder.name},
        "dataset": {
            "name": "mpdd",
            "path": data,
            "categories": list(categories),
            "resize": 256,
            "imagesize": 224,
            "train_val_split": 0.8,
            "augment": False,
            "reduced_decoding": False,
        },
        "settings": BANK_SETTINGS,
        "execution": {"on_gpu": False},
        "test_set": {row: {"images": len(labels), "fingerprint": f"{row}-{fingerprint}"} for row in rows},
        "environment": ENVIRONMENT,
        **(config or {}),
    }
    write_yaml(run.config, {name: section for name, section in content.items() if section is not None})
    write_defect_types(run.defect_types, types)
    write_results(run.results, rows)
    return folder


def _paths(category: str, defects: list[str]) -> list[str]:
    return [f"{category}/test/{defect}/{number:03}.png" for number, defect in enumerate(defects)]


def _write_scores(
    run: RunFolder, row: str, paths: list[str], defects: list[str], values: np.ndarray, labels: np.ndarray
) -> None:
    columns = ["path", "defect_type", "label", "raw_score", "normalised_score", "decision_value", "rejected", "p_value"]
    rejected = values > values[:GOOD].max()
    cells = zip(paths, defects, labels.astype(int), values, values, values, rejected.astype(int), values, strict=True)
    write_csv(run.scores(row), columns, cells)
    write_pixel_pairs(run.pixel_pairs(row), pixel_pairs_of(values, labels))


def _write_overlays(run: RunFolder, row: str, paths: list[str], values: np.ndarray) -> None:
    (run.overlays / row).mkdir(parents=True)
    picture, heat = Image.new("RGB", (64, 64), "grey"), np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    for path, value in zip(paths, values, strict=True):
        save_overlay(
            run.overlay(row, path, value),
            picture,
            heat > 0.9,
            heat,
            scale=HeatScale.of(heat[None]),
            title=path,
            score=value,
            raw_score=value,
        )


def pixel_pairs_of(values: np.ndarray, labels: np.ndarray) -> RankedPairs:
    """One defect pixel in every defective image and one normal one in every image, told apart as the scores are."""
    won = 1 / (1 + np.exp(values - values[labels][:, None]))  # (D, N)
    return RankedPairs(won=won, positives=np.ones(DEFECTIVE), negatives=np.ones(len(labels)))


FLOW_RUN = {
    "method": {"name": "flow", "title": "Flow", "short_name": FLOW},
    "settings": {"backbone": "net", "steps": 8, "hidden_ratio": 1.0, "tile": None},
}


def stored(run: str | None = None, folder: str = "elsewhere", **overrides: Any) -> dict[str, Any]:
    """The sections of `config.yaml` of an evaluation of models from a run, or from a folder of unknown origin."""
    return {
        "method": {"name": "bank", "title": "Bank", "short_name": f"{BANK}, stored"},
        "settings": {**BANK_SETTINGS, **overrides},
        "models": {name: {"folder": f"{folder}/{name}", "run": run, "category": name} for name in ("plate", "bracket")},
        "overrides": overrides,
    }
