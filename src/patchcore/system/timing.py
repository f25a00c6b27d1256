"""Stage timers and progress bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm


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
