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

# A process's highest memory counts from before its program is loaded, when it still is a copy of whoever started
# it. So a small process starts it, and tells on its last line: start, end, exit code, peak. The monotonic clock is
# the same for all processes.
_LAUNCHER = """
import os, sys, time
begin = time.monotonic()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print("", begin, time.monotonic(), os.waitstatus_to_exitcode(status), usage.ru_maxrss, sep="\\n")
"""


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


def run_python(arguments: Sequence[object], *, until: str | None = None, cuda: bool = False) -> Ended:
    """Run this Python with some arguments to its end.

    Args:
        arguments: a script, or `-c` and code, and what it gets.
        until: text of the line that `seconds_until` waits for.
        cuda: whether it sees CUDA devices.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, *map(str, arguments)]
    lines, seen = [], float("nan")
    environment = os.environ | ({} if cuda else {"CUDA_VISIBLE_DEVICES": ""})
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if until is not None and until in line and seen != seen:
                seen = time.monotonic()
    *said, begin, end, code, peak = lines
    if int(code):
        raise RuntimeError(f"{Path(str(arguments[0])).name} failed: {' '.join(said[-5:]).strip()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Ended(seconds=float(end) - float(begin), peak_mib=int(peak) / unit, seconds_until=seen - float(begin))
