"""Judge the files that a camera writes into a folder, each once, when it is whole."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from patchcore.inspection.images import images_below
from patchcore.inspection.inspector import Inspector, ReadImage, state_of
from patchcore.inspection.report import Report
from patchcore.types import Inspected

log = logging.getLogger(__name__)

POLL_SECONDS = 0.15  # between two looks at the folder
LONGEST_POLL = 1.0  # where looking takes long itself
BROKEN_AFTER = 5.0  # seconds without a change, after which a file that cannot be read is called broken

# How files begin and end: without their last bytes they may decode, and still grow.
_ENDS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8": b"\xff\xd9"}
_BMP = b"BM"  # its size follows
_TAIL = 1024  # bytes in which the end must be, as something may be appended

State = tuple[int, int]
Judged = Callable[[Path, State], bool]


def watch(folder: Path, inspector: Inspector, report: Report, *, judged: Judged, stop: Callable[[], bool]) -> None:
    """Judge the images in a folder, those that are there and those that come, until `stop` says so.

    A file is whole if it is the same in two polls and decodes; one that does not decode is tried again when it changes,
    and called broken after `BROKEN_AFTER`. A file that is overwritten is judged anew. Hidden files and those of other
    endings than images have are taken for temporary ones.

    Args:
        folder: searched with the folders in it.
        report: takes the images as they are judged.
        judged: (file, state as in `Inspected`) -> whether it was judged, by this process or an earlier one.
    """
    arrivals = Arrivals(folder, judged)
    while not stop():
        begin = time.monotonic()
        candidates = arrivals.poll(begin)
        pause = min(max(POLL_SECONDS, time.monotonic() - begin), LONGEST_POLL)
        read = inspector.read_all(path for path in candidates if not stop())
        settled = (arrivals.settled(image, begin) for image in read)
        report.add_all(inspector.judge_all(image for image in settled if image is not None))
        time.sleep(pause)


def unjudged(images: Iterable[Path | Inspected], judged: Judged) -> Iterator[Path | Inspected]:
    """Those images that were not judged before."""
    for image in images:
        state = state_of(image) if isinstance(image, Path) else None
        if not (isinstance(image, Path) and state is not None and judged(image, state)):
            yield image


@dataclass
class _Arrival:
    """A file that was not judged yet: what it held when it was looked at last, since when, and whether it decoded."""

    state: State
    since: float
    failed: bool = False


class Arrivals:
    """Which files of a folder wait to be judged, and which of them are whole."""

    def __init__(self, folder: Path, judged: Judged) -> None:
        self._folder, self._judged = folder, judged
        self._waiting: dict[Path, _Arrival] = {}
        self._missing = False

    def poll(self, now: float) -> list[Path]:
        """Look at the folder; returns the files that are worth reading."""
        errors: list[OSError] = []
        before, self._waiting = self._waiting, {}
        candidates = []
        for path in images_below(self._folder, errors.append):
            state = state_of(path)
            if state is None or self._judged(path, state):
                continue
            arrival = before.get(path)
            if arrival is None or arrival.state != state:
                arrival = _Arrival(state, now)
            elif not arrival.failed or now - arrival.since >= BROKEN_AFTER:
                candidates.append(path)
            self._waiting[path] = arrival
        self._tell_missing(errors)
        return candidates

    def settled(self, image: ReadImage | Inspected, now: float) -> ReadImage | Inspected | None:
        """A candidate that was read, if it is whole or broken for good; None if it is to be looked at again."""
        arrival = self._waiting[image.path]
        if not arrival.state == image.state == state_of(image.path):
            return None  # it changed meanwhile
        whole = isinstance(image, ReadImage) and _has_end(image.path)
        if not whole and now - arrival.since < BROKEN_AFTER:
            arrival.failed = True
            return None
        return image

    def _tell_missing(self, errors: Iterable[OSError]) -> None:
        """Warn once while the folder itself cannot be read; a folder in it may vanish unnoticed."""
        reasons = [error.strerror for error in errors if error.filename == str(self._folder)]
        if reasons and not self._missing:
            log.warning("cannot read the watched folder %s: %s; waiting for it", self._folder, reasons[0])
        elif self._missing and not reasons:
            log.info("the watched folder %s is back", self._folder)
        self._missing = bool(reasons)


def _has_end(path: Path) -> bool:
    """Whether a file that decodes has all its bytes, as far as that can be seen."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
            size = file.seek(0, os.SEEK_END)
            if start.startswith(_BMP):
                return size >= int.from_bytes(start[2:], "little")
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            return all(end in tail for begin, end in _ENDS.items() if start.startswith(begin))
    except OSError:
        return False
