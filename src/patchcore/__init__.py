"""Industrial visual anomaly detection with PatchCore and FastFlow.

detector = patchcore.load("results/project/GROUP/models/mpdd_metal_plate")
result = detector.predict("part.png")
result.score, result.map
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchcore.methods.fastflow.detector import FastFlow
    from patchcore.methods.loading import load
    from patchcore.methods.patchcore.detector import PatchCore

__version__ = "0.2.0"
__all__ = ["FastFlow", "PatchCore", "__version__", "load"]

_HOMES = {
    "load": "patchcore.methods.loading",
    "PatchCore": "patchcore.methods.patchcore.detector",
    "FastFlow": "patchcore.methods.fastflow.detector",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'patchcore' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
