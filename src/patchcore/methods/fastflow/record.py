"""What a training leaves while it runs: a table of its epochs, and the state from which it can go on."""

from __future__ import annotations

import csv
import json
import logging
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

LOG_FILE = "training.csv"
CHECKPOINT_FILE = "checkpoint.pt"
COLUMNS = ("epoch", "loss", "learning_rate", "images_per_second", "seconds_left")


class TrainingRecord:
    """Writes `training.csv` after every epoch, and `checkpoint.pt` from time to time.

    Args:
        folder: where they lie; made when the first epoch is done. None keeps no record.
        settings: plain values that make one training differ from another; a checkpoint of others is refused.
        every: seconds between checkpoints.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], every: float) -> None:
        self._folder = folder
        self._settings = json.dumps(settings, sort_keys=True)
        self._every = every
        self._rows: list[dict[str, float]] = []
        self._written = time.monotonic()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
        """Bring model and optimizer to the state of the checkpoint, if there is one; returns the epochs done by then.

        Raises:
            PatchCoreError: the checkpoint is damaged, or of a training with other settings.
        """
        if self._folder is None or not (path := self._folder / CHECKPOINT_FILE).exists():
            return 0
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            if state["settings"] != self._settings:
                raise PatchCoreError(
                    f"{path}: the state of a training with other settings: resume with those, or start a new run"
                )
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self._rows = list(state["rows"])
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise PatchCoreError(f"{path}: not a checkpoint of this toolkit, or damaged; delete it") from error
        log.info("going on after epoch %d", len(self._rows))
        return len(self._rows)

    def epoch(self, row: dict[str, float], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Note a finished epoch, the numbers of `COLUMNS`."""
        if self._folder is None:
            return
        self._rows.append(row)
        with atomic_write(self._folder / LOG_FILE) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self._rows)
        if time.monotonic() - self._written >= self._every:
            with atomic_write(self._folder / CHECKPOINT_FILE) as aside:
                torch.save(
                    {
                        "settings": self._settings,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "rows": self._rows,
                    },
                    aside,
                )
            self._written = time.monotonic()

    def finish(self) -> None:
        """The training is over: drop the checkpoint."""
        if self._folder is not None:
            (self._folder / CHECKPOINT_FILE).unlink(missing_ok=True)
