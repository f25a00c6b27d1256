"""Exact nearest-neighbour search over the memory bank: pruned or flat on the CPU, FAISS or torch on the GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

TORCH_DISTANCES = 2**25  # distances that the torch search holds at once
TORCH_CANDIDATES = 4  # further neighbours whose distances torch recomputes, in case rounding swapped some


@dataclass(frozen=True)
class Apart:
    """The groups, such as images, that queries and rows of a bank belong to.

    Attributes:
        queries: (Q,) int32, on any device.
        rows: (K,) int32, on any device.
    """

    queries: Tensor
    rows: Tensor

    @property
    def left(self) -> int:
        """How many rows are at least in other groups than that of a query."""
        queries = self.queries.to(self.rows.device)
        sizes = torch.bincount(self.rows, minlength=int(queries.max()) + 1)
        return len(self.rows) - int(sizes[queries].max())

    def split(self, size: int) -> list[Apart]:
        """The groups of every `size` queries."""
        return [Apart(part, self.rows) for part in self.queries.split(size)]

    def own(self) -> Tensor:
        """(Q, K) bool, True where query and row are of one group."""
        return self.queries[:, None] == self.rows.to(self.queries.device)


class Search(Protocol):
    """Finds the nearest rows of a bank. Distances are squared L2, ascending."""

    name: str

    def __call__(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        """(Q, D) float32 queries -> (Q, k) float32 squared distances on the device of the queries.

        With `apart` a query has no neighbour in its own group; in the other groups there are at least k rows.
        """
        ...


class FaissSearch:
    """FAISS's exact flat index in host memory."""

    name = "faiss-cpu"

    def __init__(self, bank: Tensor, num_workers: int | None) -> None:
        import faiss

        if num_workers is not None:
            faiss.omp_set_num_threads(num_workers)
        self._bank = bank
        self._index = faiss.IndexFlatL2(bank.shape[1])
        self._index.add(bank.cpu().numpy())

    def __call__(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        if apart is not None:  # FAISS leaves rows out as well, but only one query at a time
            return TorchSearch(self._bank)(queries, k, apart)
        distances, _ = self._index.search(queries.cpu().numpy(), k)
        return torch.from_numpy(distances).to(queries.device)


class FaissGpuSearch:
    """FAISS's exact flat index in GPU memory; it reads the queries where they are, without a copy."""

    name = "faiss-gpu"

    def __init__(self, bank: Tensor) -> None:
        import faiss
        import faiss.contrib.torch_utils

        self._bank = bank
        self._resources = faiss.StandardGpuResources()
        config = faiss.GpuIndexFlatConfig()
        config.device = bank.device.index or 0
        self._index = faiss.GpuIndexFlatL2(self._resources, bank.shape[1], config)
        self._index.add(bank)

    def __call__(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        if apart is not None:  # FAISS cannot leave rows out on a GPU
            return TorchSearch(self._bank)(queries, k, apart)
        with torch.cuda.device(queries.device):  # FAISS waits on the stream of the current device
            distances, _ = self._index.search(queries.contiguous(), k)
        return distances


class TorchSearch:
    """Exact search by matrix products on whichever device the bank is on."""

    name = "torch"

    def __init__(self, bank: Tensor) -> None:
        self._bank = bank
        self._norms = bank.square().sum(dim=1)

    def __call__(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        size = max(1, TORCH_DISTANCES // len(self._bank))
        groups = itertools.repeat(None) if apart is None else apart.split(size)
        parts = queries.to(self._bank.device).split(size)
        found = [
            nearest_distances(part, self._bank, self._norms, k, apart)
            for part, apart in zip(parts, groups, strict=False)
        ]
        return torch.cat(found).to(queries.device)


def nearest_distances(queries: Tensor, bank: Tensor, norms: Tensor, k: int, apart: Apart | None = None) -> Tensor:
    """Squared distances to the k nearest rows of a bank, by one matrix product.

    The product form loses digits where a distance is small beside the norms: it preselects, no more.

    Args:
        queries: (Q, D) float32.
        bank: (K, D) float32.
        norms: (K,) squared norms of its rows.
        k: at most K.
        apart: the groups in which a query has no neighbour, see `Search`.

    Returns:
        (Q, k) float32, ascending; infinite where too few rows are left.
    """
    candidates = min(k + TORCH_CANDIDATES, len(bank))
    product = torch.addmm(norms[None], queries, bank.T, alpha=-2)  # (Q, K), less the queries' norms
    if apart is not None:
        product.masked_fill_(apart.own().to(product.device), torch.inf)
    nearest = product.topk(candidates, dim=1, largest=False).indices  # (Q, candidates)
    exact = torch.stack([(queries - bank[column]).square().sum(dim=1) for column in nearest.T], dim=1)
    if apart is not None:
        exact.masked_fill_(product.gather(1, nearest).isinf(), torch.inf)
    return exact.sort(dim=1).values[:, :k]


class ShardedSearch:
    """A bank cut into parts, each searched on a device of its own; the nearest among all parts' are the nearest."""

    def __init__(self, shards: Sequence[tuple[torch.device, int, Search]]) -> None:
        self._shards = shards
        self.name = f"{len(shards)} x {shards[0][2].name}"

    def __call__(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        found, first = [], 0
        for device, rows, search in self._shards:
            here = None if apart is None else Apart(apart.queries, apart.rows[first : first + rows])
            first += rows
            found.append(search(queries.to(device), min(k, rows), here))
        nearest = torch.cat([distances.to(queries.device) for distances in found], dim=1)
        return nearest.sort(dim=1).values[:, :k]


def faiss_installed() -> bool:
    """Whether FAISS can be imported here; one that was built for other libraries than are here cannot."""
    try:
        import faiss  # noqa: F401
    except (ImportError, RuntimeError):  # the latter where its shared libraries do not load
        return False
    return True


def faiss_reaches_gpu() -> bool:
    """Whether FAISS is installed, was built for CUDA, and sees a device."""
    if not faiss_installed():
        return False
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def spread(bank: Tensor, devices: Sequence[torch.device], make: Callable[[Tensor], Search]) -> Search:
    """The search over a bank on one device, or over its parts on several."""
    parts = bank.tensor_split(min(len(devices), len(bank)))
    shards = [
        (device, len(part), make(part.to(device).contiguous()))
        for device, part in zip(devices, parts, strict=False)  # fewer rows than devices leave some without work
    ]
    return shards[0][2] if len(shards) == 1 else ShardedSearch(shards)
