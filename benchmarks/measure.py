"""Taking times and memory of two ways to the same result."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

LONG = 5.0  # seconds from which on the first run counts as the measurement, and is not repeated
BUDGET = 10.0  # seconds after which a side is not repeated any more
MIB = 2**20

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage has to do at least: operations, and bytes between processor and memory.

    `precision` names the measured floor that the operations are held against: float32 or bfloat16.
    """

    operations: float
    nbytes: float
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A stage on one input, both ways. Seconds are medians; peaks are MiB above what was held before."""

    stage: str
    case: str
    reference_seconds: float
    our_seconds: float
    reference_peak: float
    our_peak: float
    difference: str
    work: Work | None = None

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.reference_seconds / self.our_seconds

    @property
    def memory_ratio(self) -> float:
        """How many times less memory ours takes; nan where that is not known."""
        return self.reference_peak / self.our_peak if self.our_peak > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures that are no comparison with a reference."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What was asked for, what was measured, and whether it holds (None: not measured here)."""

    name: str
    required: str
    measured: str
    holds: bool | None


@dataclass
class Report:
    """What a stage found."""

    comparisons: list[Comparison] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Append another stage's findings."""
        self.comparisons += other.comparisons
        self.tables += other.tables
        self.targets += other.targets


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """The result of a call and the seconds until the device has finished it."""
    synchronise(device)
    begin = time.perf_counter()
    result = call()
    synchronise(device)
    return result, time.perf_counter() - begin


def with_peak(call: Callable[[], Result], device: torch.device) -> tuple[Result, float, float]:
    """The result of a call, its seconds, and the MiB that it held at its peak above what was held before.

    On the CPU that is the growth of the process's resident memory, whoever allocates: torch, numpy, FAISS or an
    image library. Its high-water mark is set back before the call, and what the C library keeps for later is returned
    to the system first, so that nothing hides. nan where the system cannot do this (it takes Linux). On CUDA
    it is what torch allocates there.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result, seconds = timed(call, device)
        return result, seconds, (torch.cuda.max_memory_allocated(device) - before) / MIB
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        before = float("nan")
    result, seconds = timed(call, device)
    peak = _status("VmHWM") if before == before else float("nan")
    return result, seconds, max(0.0, peak - before) if peak == peak else peak


def _status(name: str) -> float:
    """A line of this process's status, in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


@dataclass
class _Side:
    """One of the two ways, and what has been measured of it."""

    call: Callable[[], Any]
    device: torch.device
    result: Any = None
    peak: float = float("nan")
    seconds: list[float] = field(default_factory=list)

    def first(self) -> None:
        """Warm up and take the memory; a long run is the measurement already."""
        self.result, seconds, self.peak = with_peak(self.call, self.device)
        if seconds >= LONG:
            self.seconds.append(seconds)
            return
        self.result = None  # or its memory would be there already
        self.result, _, self.peak = with_peak(self.call, self.device)

    def again(self, repeats: int) -> bool:
        """Run once more, unless it has been enough; whether it did."""
        enough = len(self.seconds) >= repeats or (self.seconds and (sum(self.seconds) >= BUDGET / 2))
        if enough or (self.seconds and self.seconds[0] >= LONG):
            return False
        self.result = None
        self.result, seconds = timed(self.call, self.device)
        self.seconds.append(seconds)
        return True


def compare(
    stage: str,
    case: str,
    *,
    reference: Callable[[], Any],
    ours: Callable[[], Any],
    difference: Callable[[Any, Any], str],
    device: torch.device,
    repeats: int,
    work: Work | None = None,
    extrapolate: float = 1.0,
) -> Comparison:
    """Measure both ways to a result in this process, run by run in turn, so that a disturbance hits both.

    Args:
        stage: name for the table.
        case: the input's size, for the table.
        reference: the plain way.
        ours: the package's way.
        difference: says of the reference's and our result how far they are apart.
        device: what the calls run on.
        repeats: runs of each, after a first that warms up; long runs are not repeated.
        work: what has to be done at least.
        extrapolate: factor from the time of `reference` to that of the whole, where it does a stated part only.
    """
    sides = _Side(reference, device), _Side(ours, device)
    for side in sides:
        side.first()
    running = list(sides)
    while running:
        running = [side for side in running if side.again(repeats)]
    return Comparison(
        stage=stage,
        case=case,
        reference_seconds=statistics.median(sides[0].seconds) * extrapolate,
        our_seconds=statistics.median(sides[1].seconds),
        reference_peak=sides[0].peak,
        our_peak=sides[1].peak,
        difference=difference(sides[0].result, sides[1].result),
        work=work,
    )


def at_least(name: str, required: float, measured: float, unit: str = "x") -> Target:
    """A target that is met from `required` upwards."""
    return Target(
        name=name, required=f"at least {required:g}{unit}", measured=f"{measured:.3g}{unit}", holds=measured >= required
    )


def at_most(name: str, required: float, measured: float, unit: str) -> Target:
    """A target that is met up to `required`."""
    return Target(
        name=name, required=f"at most {required:g}{unit}", measured=f"{measured:.3g}{unit}", holds=measured <= required
    )
