"""Stage timers add up what they measure."""

from __future__ import annotations

import time

import pytest
import torch

from patchcore.system.timing import StageTimer


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_times_of_a_stage_add_up(clock):
    timer = StageTimer(torch.device("cpu"))
    for seconds in (1.0, 2.0):
        with timer("search"):
            clock[0] += seconds
        clock[0] += 10
    with timer("maps"):
        clock[0] += 0.5
    assert timer.seconds() == {"search": 3.0, "maps": 0.5}


def test_waiting_counts_the_time_of_the_source_and_not_of_its_user(clock):
    def slow():
        for item in range(3):
            clock[0] += 1
            yield item

    timer = StageTimer(torch.device("cpu"))
    for _ in timer.waiting("decode", slow()):
        clock[0] += 5
    assert timer.seconds() == {"decode": 3.0}


def test_an_error_of_the_source_passes_through(clock):
    def broken():
        yield 0
        raise OSError("gone")

    timer = StageTimer(torch.device("cpu"))
    with pytest.raises(OSError, match="gone"):
        list(timer.waiting("decode", broken()))
    assert timer.seconds() == {"decode": 0.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_stages_on_cuda_take_as_long_as_the_device_works():
    timer = StageTimer(torch.device("cuda"))
    side = torch.randn(4096, 4096, device="cuda")
    with timer("product"):
        side @ side
    assert timer.seconds()["product"] > 0
