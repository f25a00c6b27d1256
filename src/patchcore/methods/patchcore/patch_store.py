"""Where the patches of the training images wait for the coreset, and how much memory that takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchcore.methods.patchcore.coreset import PROJECTION_DIMENSION
from patchcore.methods.patchcore.sampler import NUM_STARTING_POINTS
from patchcore.system.devices import available_bytes
from patchcore.system.memory import format_bytes

log = logging.getLogger(__name__)

HOST = torch.device("cpu")

_FLOAT = 4
# What a coreset holds besides its points: distances of candidates, and of a part of the points to a batch of picks.
_CORESET_BUFFERS = {"cpu": 2**25, "cuda": 2**30}
# A bank and its search: the kept patches, FAISS's copy, the centred ones and their principal directions.
_BANK_COPIES = 4
# Share of a GPU's free memory that is counted on; the backbone and its activations take of the rest.
_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class BankSize:
    """How many patches one member gathers, how many of them it keeps, and how long they are."""

    patches: int
    kept: int
    dimension: int

    @property
    def store_bytes(self) -> int:
        """All patches."""
        return self.patches * self.dimension * _FLOAT

    def coreset_bytes(self, device: torch.device) -> int:
        """What choosing the kept ones takes on the device that does it."""
        # The points and a copy of the active ones; first distances; distances, norms, indices of both.
        per_patch = 2 * PROJECTION_DIMENSION + NUM_STARTING_POINTS + 8
        return self.patches * per_patch * _FLOAT + _CORESET_BUFFERS[device.type]

    @property
    def bank_bytes(self) -> int:
        """The finished bank while its search is prepared."""
        return self.kept * self.dimension * _FLOAT * _BANK_COPIES


class PatchStore:
    """Collects a known number of patches without ever holding them twice.

    Args:
        size: how many of them will come.
        device: where they are kept; they may come from another.
    """

    def __init__(self, size: BankSize, device: torch.device) -> None:
        self._features = torch.empty(size.patches, size.dimension, device=device)
        self._filled = 0

    def add(self, patches: Tensor) -> None:
        """Append (B, h, w, D) patches."""
        rows = patches.flatten(0, 2)
        self._features[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def features(self) -> Tensor:
        """All patches, (N, D)."""
        if self._filled != len(self._features):
            raise ValueError(f"expected {len(self._features)} patches, got {self._filled}")
        return self._features


def choose_places(sizes: Sequence[BankSize], devices: Sequence[torch.device]) -> list[torch.device]:
    """Where each member's patches are kept: on its own device if there is room for them, else in host memory."""
    free = {device: _SHARE * available_bytes(device) for device in set(devices)}
    chosen = []
    for size, device in zip(sizes, devices, strict=True):
        room = device == HOST or size.store_bytes + size.coreset_bytes(device) <= free[device]
        chosen.append(device if room else HOST)
        free[device] -= size.store_bytes if room else 0
    return chosen


def make_stores(sizes: Sequence[BankSize], devices: Sequence[torch.device]) -> list[PatchStore]:
    """Room for the patches of every member, on its device where there is some."""
    places = choose_places(sizes, devices)
    for size, device, place in zip(sizes, devices, places, strict=True):
        if place != device:
            need = format_bytes(size.store_bytes)
            log.info("%s has no room for %s of patches: the host keeps them", device, need)
    return [PatchStore(size, place) for size, place in zip(sizes, places, strict=True)]


def expected_bytes(sizes: Sequence[BankSize], devices: Sequence[torch.device]) -> dict[torch.device, int]:
    """What training holds at most on every device, above what the process and the backbones take.

    All members gather patches at once; then their banks are built one after the other.

    Args:
        sizes: of the members.
        devices: where each member computes.
    """
    stores = choose_places(sizes, devices)
    expected = dict.fromkeys([HOST, *devices], 0)
    for size, place in zip(sizes, stores, strict=True):
        expected[place] += size.store_bytes
    for device in expected:
        members = [size for size, of_member in zip(sizes, devices, strict=True) if of_member == device]
        work = [size.coreset_bytes(device) for size in members]
        if device == HOST:
            work += [size.bank_bytes for size in sizes]
        expected[device] += max(work, default=0)
    return {device: size for device, size in expected.items() if size}
