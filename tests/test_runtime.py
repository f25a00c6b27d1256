"""Memory as the system tells it, and as it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patchcore.system import devices, memory

HUNGRY = 400 * 2**20

# What the child prints: its peak. Its own interpreter and this module take a few tens of MiB.
CHILD = "from patchcore.system.memory import peak_host_mib; print(peak_host_mib())"


def test_the_peak_grows_with_what_is_held_and_stays():
    before = memory.peak_host_mib()
    held = bytearray(b"x") * (int(before * 2**20) + HUNGRY)
    during = memory.peak_host_mib()
    assert during >= before + 390
    del held
    assert memory.peak_host_mib() >= during - 4  # the kernel counts in batches


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux hands a peak on")
def test_the_peak_of_the_program_that_starts_another_does_not_count():
    """Linux carries ru_maxrss over exec; 400 MiB of the starter would show in the child's."""
    starter = (
        f"import subprocess, sys; held = bytearray(b'x') * {HUNGRY}; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    )
    ended = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    assert 5 < float(ended.stdout) < 300


@pytest.mark.parametrize("status", [None, "Name: python\n"])
def test_without_a_peak_in_the_status_the_resource_usage_tells(monkeypatch, tmp_path, status):
    resource = pytest.importorskip("resource")
    if status is not None:
        (tmp_path / "status").write_text(status)
    monkeypatch.setattr(memory, "_PROCESS_STATUS", tmp_path / "status")
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert memory.peak_host_mib() >= usage / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.parametrize(
    ("precision", "native", "warned"), [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)]
)
def test_bfloat16_that_has_to_be_emulated_is_warned_of(precision, native, warned, monkeypatch, caplog):
    monkeypatch.setattr(devices, "native_bfloat16", lambda: native)
    devices.warn_of_slow_precision(precision, torch.device("cpu"))
    assert ("float32 is likely faster" in caplog.text) == warned
