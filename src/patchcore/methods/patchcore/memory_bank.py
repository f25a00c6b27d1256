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
    Apart,
    FaissGpuSearch,
    FaissSearch,
    Search,
    TorchSearch,
    faiss_installed,
    faiss_reaches_gpu,
    spread,
)
from patchcore.system.devices import available_bytes
from patchcore.system.memory import format_bytes
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

GPU_SEARCH_BYTES = 2**31  # what a search on the GPU takes besides its bank; FAISS alone sets 1.5 GiB aside
PRUNED_ROWS = 1000  # smaller banks, and narrower ones, are searched as fast without pruning
PRUNED_DIMENSION = 128


class MemoryBank:
    """The patches that PatchCore remembers, and the search over them.

    Args:
        features: (K, D) float, K > 0.
        on_gpu: search on CUDA if the features are there and it has room, else on the CPU with a warning.
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
        bank = features.float().contiguous()
        self.features = bank.cpu()  # for saving, and for a search there
        on_gpu_search = self._search_on_gpu(bank, devices or [bank.device]) if on_gpu else None
        self.search: Search = on_gpu_search or self._search_on_cpu(num_workers)

    def _search_on_gpu(self, bank: Tensor, devices: Sequence[torch.device]) -> Search | None:
        """The search on CUDA devices; None, with a warning, where there are none or they have no room."""
        if not bank.is_cuda:
            log.warning("--faiss_on_gpu: the features are not on a CUDA device, searching on the CPU")
            return None
        share = bank.nbytes // len(devices) + GPU_SEARCH_BYTES
        if any(share > available_bytes(device) for device in devices):
            log.warning(
                "--faiss_on_gpu: no room there for a bank of %s and its search, searching on the CPU",
                format_bytes(bank.nbytes),
            )
            return None
        if faiss_reaches_gpu():
            return spread(bank, devices, FaissGpuSearch)
        log.warning("FAISS cannot use the GPU here (not installed or without CUDA): torch searches there")
        return spread(bank, devices, TorchSearch)

    def _search_on_cpu(self, num_workers: int | None) -> Search:
        if not faiss_installed():
            log.warning("FAISS is not installed: torch searches, with the same distances")
            return TorchSearch(self.features)
        flat = FaissSearch(self.features, num_workers)
        rows, dimension = self.features.shape
        if rows < PRUNED_ROWS or dimension < PRUNED_DIMENSION:
            return flat
        return PrunedSearch(self.features, flat, num_workers)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features.nbytes

    def distances(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        """Squared L2 distances to the k nearest patches.

        Args:
            queries: (Q, D) float32.
            k: number of neighbours, at most the size of the bank.
            apart: the groups in which a query has no neighbour.

        Returns:
            (Q, k) float32, ascending, at least 0, on the device of the queries.

        Raises:
            PatchCoreError: the bank has fewer than k patches left.
        """
        left = len(self) if apart is None else apart.left
        if k > left:
            raise PatchCoreError(
                f"--anomaly_scorer_num_nn {k} asks for more neighbours than the memory bank has patches"
                f" ({left}): lower it or keep more (sampler -p)"
            )
        return self.search(queries, k, apart).clamp_(min=0)

    def save(self, path: Path) -> None:
        """Write the bank as a FAISS flat L2 index."""
        write_flat_index(path, self.features.numpy())
