"""Which devices a run computes on, what they can do, and their memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)


def choose_devices(gpus: Sequence[int]) -> tuple[list[torch.device], str | None]:
    """Return the devices for the GPU numbers in `gpus`, and a notice where the CPU has to replace them.

    Raises:
        PatchCoreError: CUDA is there, but not that device.
    """
    if not gpus:
        return [torch.device("cpu")], None
    if not torch.cuda.is_available():
        asked = " ".join(f"--gpu {gpu}" for gpu in gpus)
        return [torch.device("cpu")], f"{asked}: no CUDA device here, running on the CPU"
    count = torch.cuda.device_count()
    for gpu in gpus:
        if not 0 <= gpu < count:
            raise PatchCoreError(f"--gpu {gpu}: expected a CUDA device in 0..{count - 1}")
    return [torch.device("cuda", gpu) for gpu in gpus], None


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware, as far as torch tells (2.10 does, 2.6 does not)."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return native and torch.backends.mkldnn.is_available()


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Warn if bfloat16 was asked for on a processor that has to emulate it."""
    if precision == "bfloat16" and device.type == "cpu" and not native_bfloat16():
        log.warning("--precision bfloat16: this processor has no such arithmetic, float32 is likely faster")


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: on CUDA with what torch has reserved, on the host without swapping."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 4 * 2**30


def peak_gpu_mib(device: torch.device) -> float:
    """The most memory that torch has held on a CUDA device since the last reset, in MiB; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def reset_peak_gpu(device: torch.device) -> None:
    """Start a new count for `peak_gpu_mib`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
