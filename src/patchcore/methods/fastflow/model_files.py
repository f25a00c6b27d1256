"""A stored FastFlow model: its weights as safetensors and its settings as JSON. Nothing in them is executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.config import TrainedOn, to_plain
from patchcore.methods.fastflow.config import FastFlowConfig, FastFlowLoaderConfig, FastFlowScoring
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "fastflow.safetensors"
PARAMS_FILE = "fastflow_params.json"
FORMAT = 1  # of both


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model folder whose parameters were read and hold."""

    folder: Path
    config: FastFlowConfig
    trained_on: TrainedOn


def write_model(folder: Path, config: FastFlowConfig, trained_on: TrainedOn, state: dict[str, Tensor]) -> None:
    """Write weights and parameters into an existing folder."""
    from safetensors.torch import save

    # Not by safetensors' save_file, whose errors are not the system's own.
    (folder / WEIGHTS_FILE).write_bytes(save({name: value.cpu().contiguous() for name, value in state.items()}))
    settings = to_plain(config)
    del settings["weights_dir"]  # where this machine has its weights is nothing that belongs to the model
    params = {"format": FORMAT, "fastflow": settings, "trained_on": to_plain(trained_on)}
    (folder / PARAMS_FILE).write_text(json.dumps(params, indent=2) + "\n")


def read_model(folder: Path, loader: FastFlowLoaderConfig | None = None) -> StoredModel:
    """Read the parameters of a model folder.

    Args:
        loader: what replaces stored settings.

    Raises:
        PatchCoreError: a file is missing or damaged, or of another format.
    """
    loader = loader or FastFlowLoaderConfig(paths=(folder,))
    path = folder / PARAMS_FILE
    if not path.is_file():
        raise PatchCoreError(_missing(folder))
    if not (folder / WEIGHTS_FILE).is_file():
        raise PatchCoreError(f"{folder / WEIGHTS_FILE}: no such file, expected the weights that belong to {path.name}")
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise PatchCoreError(
                f"{path}: format {stored['format']!r:.20}, this version reads format {FORMAT}; train and store the"
                " model again"
            )
        settings = stored["fastflow"]
        scoring = FastFlowScoring(**{**settings.pop("scoring"), **loader.scoring})
        if "top_share" in loader.scoring and scoring.image_score != "top":
            raise PatchCoreError(f"--top_share has no effect with --image_score {scoring.image_score} ({path})")
        layers = tuple(map(str, settings.pop("layers")))
        config = FastFlowConfig(**settings, layers=layers, scoring=scoring, weights_dir=loader.weights_dir)
        return StoredModel(folder=folder, config=config, trained_on=TrainedOn(**stored["trained_on"]))
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the model: {error.strerror}") from error
    except KeyError as error:
        raise PatchCoreError(f"{path}: expected the parameters of a FastFlow model, but {error} is missing") from error
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise PatchCoreError(f"{path}: expected the parameters of a FastFlow model: {error}") from error


def read_state(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a model folder.

    Raises:
        PatchCoreError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise PatchCoreError(f"{path}: cannot read the weights: {error}") from error


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder {folder}: expected a stored FastFlow model there"
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if inside:
        return f"no FastFlow model in {folder} for this category: there is {', '.join(inside)}"
    return f"no FastFlow model in {folder}: expected {PARAMS_FILE} and {WEIGHTS_FILE}"
