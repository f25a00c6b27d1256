"""How much memory there is, and how much was used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PROCESS_STATUS = Path("/proc/self/status")


def available_bytes(device: torch.device) -> int:
    """The free memory of a CUDA device, with what torch holds in reserve, or of the host without swapping."""
    if device.type == "cuda":
        import torch

        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 4 * 2**30


def format_bytes(size: float) -> str:
    """Bytes for people, such as "320 MiB" or "1.3 GiB"."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def peak_host_mib() -> float:
    """The most memory that this process has held so far, in MiB; nan where the system does not tell."""
    try:  # Linux: unlike ru_maxrss this starts anew with a program, and leaves out what the one held that started it
        lines = _PROCESS_STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):  # another system
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def peak_gpu_mib(device: torch.device) -> float:
    """The most memory that torch has held on a CUDA device since the last reset, in MiB; 0 on the CPU."""
    if device.type != "cuda":
        return 0.0
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20


def reset_peak_gpu(device: torch.device) -> None:
    """Start a new count for `peak_gpu_mib`."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
