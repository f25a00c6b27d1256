"""FastFlow models as version 0.1 stored them: `fastflow_params.json` beside the weights."""

from __future__ import annotations

from pathlib import Path

from patchcore.datasets.geometry import Geometry
from patchcore.methods.fastflow import METHOD
from patchcore.methods.fastflow.config import WEIGHTS_FILE, FastFlowConfig
from patchcore.methods.stored_model import StoredModel, Training, explain_damage, read_description
from patchcore.settings import from_plain
from patchcore.types import PatchCoreError

PARAMS_FILE = "fastflow_params.json"
FORMAT = 1


def read_older(folder: Path, resize: int | None = None) -> StoredModel | None:
    """Read the parameters of a model folder of version 0.1; None if there are none.

    Raises:
        PatchCoreError: they are damaged, or of another format.
    """
    path = folder / PARAMS_FILE
    if not path.is_file():
        return None
    if not (folder / WEIGHTS_FILE).is_file():
        raise PatchCoreError(f"{folder / WEIGHTS_FILE}: no such file, expected the weights that belong to {path.name}")
    content = read_description(path, FORMAT)
    with explain_damage(path, "the parameters of a FastFlow model"):
        settings, trained_on = dict(content["fastflow"]), dict(content["trained_on"])
        settings |= settings.pop("scoring")
        training = {name: trained_on.pop(name) for name in ("seed", "train_val_split")}
        return StoredModel(
            folder=folder,
            method=METHOD,
            config=from_plain(FastFlowConfig, settings),
            geometry=from_plain(Geometry, trained_on),
            training=from_plain(Training, training),
        )
