"""Devices, memory, timers, and files that appear whole or not at all."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

log = logging.getLogger(__name__)

_PROCESS_STATUS = Path("/proc/self/status")


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


class StageTimer:
    """Adds up the time of named stages, on the CPU by its clock and on CUDA by events, without waiting in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._device.type == "cuda":
            import torch

            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            start.record(stream)
            yield
            stop.record(stream)
            self._events.append((stage, start, stop))
        else:
            begin = time.perf_counter()
            yield
            self._add(stage, time.perf_counter() - begin)

    def seconds(self) -> dict[str, float]:
        """Seconds per stage so far; on CUDA this waits for the device."""
        for stage, start, stop in self._events:
            stop.synchronize()
            self._add(stage, start.elapsed_time(stop) / 1e3)
        self._events.clear()
        return dict(self._seconds)

    def waiting(self, stage: str, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass the items on and count the time spent waiting for them."""
        while True:
            begin = time.perf_counter()
            try:
                item = next(batches)
            except StopIteration:
                return
            finally:
                self._add(stage, time.perf_counter() - begin)
            yield item

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


def progress_bar(name: str, total: int, unit: str) -> tqdm:
    """A progress bar on standard error, silent where that is not a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit=unit, disable=None, leave=False, dynamic_ncols=True)


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


def in_words(size: float) -> str:
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


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or folder to, and move it there once it is whole.

    If the body fails, nothing remains. An existing file is replaced; an existing folder is not.

    Raises:
        PatchCoreError: the system refused to write (disk full, no permission ...); it names `path`.
    """
    aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)  # noqa: PTH105 - Path.replace says the same but names the wrong file in its error
    except OSError as error:
        raise PatchCoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with suppress(OSError):  # mostly that it is not there
                aside.unlink()


@contextmanager
def removed_unless(folders: Sequence[Path], wanted: Callable[[], bool]) -> Iterator[None]:
    """Delete the first of some folders at the end, also after an error, unless it turned out to be wanted.

    The others, its parents, go as well if that leaves them empty.
    """
    try:
        yield
    finally:
        if not wanted():
            shutil.rmtree(folders[0], ignore_errors=True)
            with suppress(OSError):  # not empty: somebody else's
                for parent in folders[1:]:
                    parent.rmdir()
