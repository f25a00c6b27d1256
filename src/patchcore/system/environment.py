"""Versions and hardware that a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

_FAISS_PACKAGES = ("faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11", "faiss-cpu", "faiss")


def environment() -> dict[str, str]:
    """Name and value of each version and piece of hardware that a result depends on."""
    import numpy
    import PIL
    import torch

    from patchcore import __version__

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "patchcore": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which YAML does not know
        "faiss": faiss_version(),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
    }


def faiss_version() -> str:
    """The version and the package of FAISS, as in "1.15.1 (faiss-gpu)", or why there is none."""
    try:
        import faiss
    except ModuleNotFoundError:
        return "not installed"
    except Exception as error:  # without the CUDA libraries faiss-gpu raises ImportError or RuntimeError, among others
        return f"not usable: {type(error).__name__}: {' '.join(str(error).split())}"
    packages = [name for name in _FAISS_PACKAGES if any(metadata.distributions(name=name))]
    return f"{faiss.__version__} ({', '.join(packages) or 'of an unknown package'})"


def processor() -> str:
    """The processor's name, and how many threads it runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} threads)" if names else platform.machine()
