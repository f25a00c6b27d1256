"""Which devices a run computes on, and what they can do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch


def choose_devices(gpus: Sequence[int]) -> tuple[list[torch.device], str | None]:
    """Return the devices for the GPU numbers asked for, and a notice where they are not what was asked for.

    Raises:
        PatchCoreError: there is CUDA, but not that device.
    """
    import torch

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
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return native and torch.backends.mkldnn.is_available()


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Tell who asked for bfloat16 on a processor that has to emulate it."""
    if precision == "bfloat16" and device.type == "cpu" and not native_bfloat16():
        log.warning("--precision bfloat16: this processor has no such arithmetic, float32 is likely faster")
