"""What the machine is, and what it can do at best: the floors that the stages are held against."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.measure import Work, timed
from patchcore.system.environment import environment


@dataclass(frozen=True, kw_only=True)
class Floors:
    """The most operations and bytes a second that were measured in this run."""

    operations: dict[str, float]
    nbytes: float

    def seconds(self, work: Work) -> float:
        """The least time for some work: operations and traffic overlap, so the longer of the two."""
        return max(work.operations / self.operations[work.precision], work.nbytes / self.nbytes)

    def limit(self, work: Work) -> str:
        """Which of the two it is."""
        by_operations = work.operations / self.operations[work.precision] > work.nbytes / self.nbytes
        return f"operations, {work.precision}" if by_operations else "bytes"


def measure_floors(device: torch.device, *, quick: bool) -> Floors:
    """Measure large square matrix products, and a sum of two arrays into a third that no cache holds."""
    side = 512 if quick else (8192 if device.type == "cuda" else 2048)
    length = 2**22 if quick else (2**28 if device.type == "cuda" else 2**26)
    operations = {}
    for name in ("float32", "bfloat16"):
        a = torch.randn(side, side, device=device).to(getattr(torch, name))
        out = torch.empty_like(a)
        operations[name] = 2 * side**3 / _best(lambda a=a, out=out: torch.mm(a, a, out=out), device)
    x, y = torch.ones(length, device=device), torch.ones(length, device=device)
    total = torch.empty_like(x)
    nbytes = 3 * x.nbytes / _best(lambda: torch.add(x, y, out=total), device)
    return Floors(operations=operations, nbytes=nbytes)


def _best(call, device: torch.device, repeats: int = 7) -> float:
    return min(timed(call, device)[1] for _ in range(repeats + 1))


def describe(device: torch.device) -> list[tuple[str, str]]:
    """Name and value of all that the figures depend on, without paths or host names."""
    here = environment()
    names = ("processor", "threads", "python", "torch", "faiss", "numpy", "pillow")
    lines = [("date", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")), ("commit", _commit())]
    lines += [(name, here[name]) for name in names]
    lines.append(("system", f"{platform.system()} {platform.machine()}"))
    if device.type == "cuda":
        lines.append(("GPU", torch.cuda.get_device_name(device)))
    return lines


def _commit() -> str:
    """The commit of this checkout; says so where files of the package or the benchmarks differ from it."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "src", "bin", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}, with changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
