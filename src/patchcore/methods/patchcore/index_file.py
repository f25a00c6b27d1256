"""Memory banks as FAISS's flat index files, byte for byte, with or without FAISS; and where their rows come from."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.types import PatchCoreError

# A flat index as FAISS stores it: type, dimension, rows, two unused numbers, trained, metric; then the vectors.
_HEADER = struct.Struct("<4siqqq?i")
_COUNT = struct.Struct("<Q")
_FLAT_L2 = b"IxF2"
_METRIC_L2 = 1
_UNUSED = 1 << 20


def write_flat_index(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write (K, D) float32 vectors as FAISS's IndexFlatL2 file."""
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


def read_origins(path: Path, rows: int) -> Tensor | None:
    """Read the (K,) int64 numbers of the training patches that are the rows of a bank; None if there is no such file.

    Raises:
        PatchCoreError: the file is damaged, or of another bank.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if shape != (rows,) or dtype != np.int64:
                raise ValueError(f"{dtype} of the shape {shape}, expected int64 of the shape {(rows,)}")
            origins = np.fromfile(file, np.int64, rows)
        if len(origins) != rows or (origins < 0).any():
            raise ValueError(f"expected {rows} numbers from 0 on")
    except (OSError, ValueError) as error:
        raise PatchCoreError(f"{path}: cannot read where the memory bank comes from: {error}") from error
    return torch.from_numpy(origins)
