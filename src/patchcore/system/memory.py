"""The memory that a process has used, and sizes for people."""

from __future__ import annotations

import sys
from pathlib import Path

_PROCESS_STATUS = Path("/proc/self/status")


def format_bytes(size: float) -> str:
    """Write a size in bytes for people, such as "320 MiB" or "1.3 GiB"."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def peak_host_mib() -> float:
    """The most memory that this process has held so far, in MiB; nan where the system does not say."""
    try:  # Linux; unlike ru_maxrss, VmHWM does not count what the parent process held
        lines = _PROCESS_STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):  # not Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
