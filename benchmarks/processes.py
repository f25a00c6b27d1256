"""Commands run as processes of their own, with their time and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "bin"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process went.

    Attributes:
        seconds: from its start to its end.
        peak_mib: the most resident memory that it held.
        seconds_until: from its start to the first line with the text looked for; nan without.
    """

    seconds: float
    peak_mib: float
    seconds_until: float


def run_python(arguments: Sequence[object], until: str | None = None) -> Ended:
    """Run this Python with some arguments to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines, seconds_until = [], float("nan")
    for line in process.stdout:
        lines.append(line)
        if until is not None and until in line and seconds_until != seconds_until:
            seconds_until = time.perf_counter() - begin
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone, unlike getrusage
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{Path(str(arguments[0])).name} failed: {''.join(lines[-5:]).strip()}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Ended(seconds=seconds, peak_mib=peak, seconds_until=seconds_until)
