"""Versions and hardware that a result depends on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def environment() -> dict[str, str]:
    """Versions and hardware that a result depends on."""
    import numpy
    import PIL
    import torch

    from patchcore import __version__

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "patchcore": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which YAML does not know
        "faiss": _faiss_version(),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
    }


def _faiss_version() -> str:
    try:
        import faiss
    except ImportError:
        return "not installed"
    return faiss.__version__


def processor() -> str:
    """The processor's name, and how many threads it runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} threads)" if names else platform.machine()
