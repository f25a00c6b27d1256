"""Memory as the system reports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from patchcore.system import memory

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


@pytest.mark.parametrize(("size", "text"), [(0, "0 MiB"), (320.4 * 2**20, "320 MiB"), (1.31 * 2**30, "1.3 GiB")])
def test_sizes_for_people(size, text):
    assert memory.format_bytes(size) == text
