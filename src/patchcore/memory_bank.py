"""Exact nearest-neighbour search over the memory bank: pruned or flat on the CPU, FAISS or torch on the GPU."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patchcore.pruned_search import PrunedSearch
from patchcore.runtime import available_bytes, in_words
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

GPU_SEARCH_BYTES = 2**31  # what a search on the GPU takes besides its bank; FAISS alone sets 1.5 GiB aside
TORCH_DISTANCES = 2**25  # distances that the torch search holds at once
PRUNED_ROWS = 1000  # smaller banks, and narrower ones, are searched as fast without pruning
PRUNED_DIMENSION = 128
TORCH_CANDIDATES = 4  # further neighbours whose distances torch recomputes, in case rounding swapped some


class Search(Protocol):
    """Finds the nearest rows of a bank. Distances are squared L2, ascending."""

    name: str

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        """(Q, D) float32 queries -> (Q, k) float32 squared distances on the device of the queries."""
        ...


class FaissSearch:
    """FAISS's exact flat index in host memory."""

    name = "faiss-cpu"

    def __init__(self, bank: Tensor, num_workers: int | None) -> None:
        import faiss

        if num_workers is not None:
            faiss.omp_set_num_threads(num_workers)
        self._index = faiss.IndexFlatL2(bank.shape[1])
        self._index.add(bank.cpu().numpy())

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        distances, _ = self._index.search(queries.cpu().numpy(), k)
        return torch.from_numpy(distances).to(queries.device)


class FaissGpuSearch:
    """FAISS's exact flat index in GPU memory; it reads the queries where they are, without a copy."""

    name = "faiss-gpu"

    def __init__(self, bank: Tensor) -> None:
        import faiss
        import faiss.contrib.torch_utils

        self._resources = faiss.StandardGpuResources()
        config = faiss.GpuIndexFlatConfig()
        config.device = bank.device.index or 0
        self._index = faiss.GpuIndexFlatL2(self._resources, bank.shape[1], config)
        self._index.add(bank)

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        with torch.cuda.device(queries.device):  # FAISS waits on the stream of the current device
            distances, _ = self._index.search(queries.contiguous(), k)
        return distances


class TorchSearch:
    """Exact search by matrix products on whichever device the bank is on."""

    name = "torch"

    def __init__(self, bank: Tensor) -> None:
        self._bank = bank
        self._norms = bank.square().sum(dim=1)

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        # The product form loses digits where a distance is small beside the norms: it preselects, no more.
        candidates = min(k + TORCH_CANDIDATES, len(self._bank))
        parts = []
        for part in queries.to(self._bank.device).split(max(1, TORCH_DISTANCES // len(self._bank))):
            product = torch.addmm(self._norms[None], part, self._bank.T, alpha=-2)  # less the queries' norms
            nearest = product.topk(candidates, dim=1, largest=False).indices  # (q, candidates)
            exact = [(part - self._bank[column]).square().sum(dim=1) for column in nearest.T]
            parts.append(torch.stack(exact, dim=1).sort(dim=1).values[:, :k])
        return torch.cat(parts).to(queries.device)


class ShardedSearch:
    """A bank cut into parts, each searched on a device of its own; the nearest among all parts' are the nearest."""

    def __init__(self, shards: Sequence[tuple[torch.device, int, Search]]) -> None:
        self._shards = shards
        self.name = f"{len(shards)} x {shards[0][2].name}"

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        found = [search(queries.to(device), min(k, rows)) for device, rows, search in self._shards]
        nearest = torch.cat([distances.to(queries.device) for distances in found], dim=1)
        return nearest.sort(dim=1).values[:, :k]


def faiss_installed() -> bool:
    """Whether FAISS can be imported here."""
    try:
        import faiss  # noqa: F401
    except ImportError:
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
                in_words(bank.nbytes),
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


# A flat index as FAISS stores it: type, dimension, rows, two unused numbers, trained, metric; then the vectors.
_HEADER = struct.Struct("<4siqqq?i")
_COUNT = struct.Struct("<Q")
_FLAT_L2 = b"IxF2"
_METRIC_L2 = 1
_UNUSED = 1 << 20


def write_flat_index(path: Path, vectors: np.ndarray) -> None:
    """Write (K, D) float32 vectors as FAISS's IndexFlatL2 file, byte for byte, with or without FAISS."""
    vectors = np.ascontiguousarray(vectors, dtype="<f4")
    rows, dimension = vectors.shape
    with path.open("wb") as file:
        file.write(_HEADER.pack(_FLAT_L2, dimension, rows, _UNUSED, _UNUSED, True, _METRIC_L2))
        file.write(_COUNT.pack(vectors.size))
        vectors.tofile(file)


def read_flat_index(path: Path) -> Tensor:
    """Read the (K, D) float32 vectors of an IndexFlatL2 file; nothing but numbers is taken from it.

    Raises:
        PatchCoreError: the file is missing, of another kind, or shorter or longer than it says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_HEADER.size + _COUNT.size)
            if len(start) < _HEADER.size + _COUNT.size or start[:4] != _FLAT_L2:
                raise PatchCoreError(f"{path}: expected a FAISS flat L2 index (IxF2), found {start[:4]!r}")
            _, dimension, rows, _, _, _, metric = _HEADER.unpack(start[: _HEADER.size])
            (count,) = _COUNT.unpack(start[_HEADER.size :])
            fits = count == rows * dimension and rows > 0 and dimension > 0
            if not fits or metric != _METRIC_L2 or size != len(start) + 4 * count:
                raise PatchCoreError(
                    f"{path}: damaged index, {rows} x {dimension} vectors do not fit a file of {size} bytes"
                )
            vectors = np.fromfile(file, dtype="<f4", count=count)
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the memory bank: {error.strerror}") from error
    return torch.from_numpy(vectors.reshape(rows, dimension))
