"""The patches that PatchCore remembers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from patchcore.methods.patchcore.index_file import write_flat_index
from patchcore.methods.patchcore.pruned_search import PrunedSearch
from patchcore.methods.patchcore.search import (
    FaissGpuSearch,
    FaissSearch,
    Search,
    TorchSearch,
    faiss_installed,
    faiss_reaches_gpu,
    spread,
)
from patchcore.system.memory import available_bytes, format_bytes
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

GPU_SEARCH_BYTES = 2**31  # what a search on the GPU takes besides its bank; FAISS alone sets 1.5 GiB aside


PRUNED_ROWS = 1000  # smaller banks, and narrower ones, are searched as fast without pruning


PRUNED_DIMENSION = 128


class MemoryBank:
    """The patches that PatchCore remembers, and the search over them.

    Args:
        features: (K, D) float32.
        on_gpu: search on CUDA; needs a CUDA device.
        num_workers: threads of the CPU search; None leaves FAISS's and torch's own choice, all cores.
        devices: the CUDA devices that the bank is spread over; none means the one of `features`.
    """

    def __init__(
        self,
        features: Tensor,
        *,
        on_gpu: bool = False,
        num_workers: int | None = None,
        devices: Sequence[torch.device] = (),
    ) -> None:
        if features.ndim != 2 or not len(features):
            raise ValueError(f"a memory bank needs (K, D) features, K > 0, got {tuple(features.shape)}")
        self.features = features.float().contiguous()
        self.search = self._choose_search(on_gpu, num_workers, devices or [features.device])

    def _choose_search(self, on_gpu: bool, num_workers: int | None, devices: Sequence[torch.device]) -> Search:
        if on_gpu and self.features.is_cuda:
            bank, self.features = self.features, self.features.cpu()  # the one on the host is for saving
            share = bank.nbytes // len(devices) + GPU_SEARCH_BYTES
            if all(share <= available_bytes(device) for device in devices):
                if not faiss_reaches_gpu():
                    log.warning("FAISS cannot use the GPU here (not installed or without CUDA): torch searches there")
                return spread(bank, devices, FaissGpuSearch if faiss_reaches_gpu() else TorchSearch)
            log.warning(
                "--faiss_on_gpu: no room there for a bank of %s and its search, searching on the CPU",
                format_bytes(bank.nbytes),
            )
        elif on_gpu:
            log.warning("--faiss_on_gpu: the features are not on a CUDA device, searching on the CPU")
        self.features = self.features.cpu()
        if faiss_installed():
            flat = FaissSearch(self.features, num_workers)
            rows, dimension = self.features.shape
            if rows < PRUNED_ROWS or dimension < PRUNED_DIMENSION:
                return flat
            return PrunedSearch(self.features, flat, num_workers)
        log.warning("FAISS is not installed: torch searches, with the same distances")
        return TorchSearch(self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features.nbytes

    def distances(self, queries: Tensor, k: int) -> Tensor:
        """Squared L2 distances to the k nearest patches.

        Args:
            queries: (Q, D) float32.
            k: number of neighbours, at most the size of the bank.

        Returns:
            (Q, k) float32, ascending, at least 0, on the device of the queries.
        """
        if k > len(self):
            raise PatchCoreError(
                f"--anomaly_scorer_num_nn {k} asks for more neighbours than the memory bank has patches"
                f" ({len(self)}): lower it or keep more (sampler -p)"
            )
        return self.search(queries, k).clamp_(min=0)

    def save(self, path: Path) -> None:
        """Write the bank as a FAISS flat L2 index."""
        write_flat_index(path, self.features.cpu().numpy())
