"""Devices: those asked for, or the CPU with a notice."""

from __future__ import annotations

import pytest
import torch

from patchcore.system import devices
from patchcore.types import PatchCoreError


def test_no_gpu_asked_for_is_the_cpu_without_a_notice():
    assert devices.choose_devices([]) == ([torch.device("cpu")], None)


def test_without_cuda_a_gpu_is_replaced_by_the_cpu_with_a_notice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen, notice = devices.choose_devices([0, 2])
    assert chosen == [torch.device("cpu")]
    assert notice == "--gpu 0 --gpu 2: no CUDA device here, running on the CPU"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_devices([1, 0])[0] == [torch.device("cuda", 1), torch.device("cuda", 0)]
    with pytest.raises(PatchCoreError, match=r"--gpu 2: expected a CUDA device in 0\.\.1"):
        devices.choose_devices([0, 2])


@pytest.mark.parametrize(
    ("precision", "native", "warned"), [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)]
)
def test_bfloat16_that_has_to_be_emulated_is_warned_of(precision, native, warned, monkeypatch, caplog):
    monkeypatch.setattr(devices, "native_bfloat16", lambda: native)
    devices.warn_of_slow_precision(precision, torch.device("cpu"))
    assert ("float32 is likely faster" in caplog.text) == warned


def test_available_memory_is_some_of_what_there_is():
    assert 2**20 < devices.available_bytes(torch.device("cpu")) < 2**50
