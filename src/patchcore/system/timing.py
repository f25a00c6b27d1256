"""Stage timers and progress bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm


class StageTimer:
    """Sums the time of named stages: by the clock on the CPU, by events on CUDA, so that no stage waits for the device.

    Enter a stage with `with timer("name"):`; its times add up.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._device.type == "cuda":
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
        """Seconds by stage so far; on CUDA this waits for the device."""
        for stage, start, stop in self._events:
            stop.synchronize()
            self._add(stage, start.elapsed_time(stop) / 1e3)
        self._events.clear()
        return dict(self._seconds)

    def waiting(self, stage: str, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the items of `batches`, and add the time spent waiting for each to `stage`."""
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
    """A progress bar on standard error, silent if that is not a terminal."""
    return tqdm(total=total, desc=name, unit=unit, disable=None, leave=False, dynamic_ncols=True)
