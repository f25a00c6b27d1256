"""From a model folder to a detector."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patchcore.features.workspace import Workspace
from patchcore.methods import METHODS
from patchcore.methods.detector import Detector
from patchcore.methods.method import Method
from patchcore.methods.stored_model import StoredModel, read_model
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)


def load(
    folder: str | Path, *, device: str | torch.device | None = None, resize: int | None = None, **settings: Any
) -> Detector:
    """Load a stored detector: of any method, an ensemble, of this version or an older one, or the original's.

    >>> import tempfile, numpy as np, patchcore
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    >>> detector = patchcore.PatchCore(
    ...     backbones=["efficientnet_lite0"], layers=[["blocks.2"]], weights="random", resize=64, imagesize=64
    ... ).fit(list(images))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detector.save(f"{folder}/model")
    ...     loaded = patchcore.load(f"{folder}/model", device="cpu", num_nn=2)
    >>> loaded.config.num_nn, loaded.predict(images[:2].copy()[0]).score > 0
    (2, True)

    Args:
        folder: holds `model.json` and its arrays, or the files of an older format.
        device: such as "cuda" or "cpu"; None takes CUDA where it is there.
        resize: shorter side of the images before cropping, for the original's folders, which do not say it; any other
            model must have been stored with it.
        settings: that replace stored ones, such as `num_nn`, `image_score` or `weights_dir`.

    Raises:
        PatchCoreError: there is no model, it is damaged, its backbone cannot be had, or a setting cannot be chosen
            anew or has a wrong value.
    """
    model = read_with_settings(Path(folder), METHODS, resize, settings)
    return model.method.detector_class.from_stored(model, Workspace.on(device))


def read_with_settings(
    folder: Path, methods: Mapping[str, Method], resize: int | None, settings: Mapping[str, Any]
) -> StoredModel:
    """Read what a model folder says of itself, with some settings chosen anew; see `load`."""
    model = read_model(folder, methods, resize)
    try:
        chosen = model.with_settings(settings)
    except ValueError as error:
        raise PatchCoreError(f"{folder}: {error}") from error
    if model.calibration is not None and chosen.calibration is None:
        log.warning("%s: no verdicts, since it was calibrated with other settings than %s", folder, settings)
    model = chosen
    if resize not in (None, model.geometry.resize):
        raise PatchCoreError(f"{folder}: stored with resize {model.geometry.resize}, got {resize}: leave it out")
    return model
