"""The folder that predictions go to: `predictions.csv`, `regions.csv` and `overlays/`, written as images are judged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from patchcore.results.tables import as_read, csv_line, read_csv, write_csv
from patchcore.system.files import lock, remove_leftovers
from patchcore.types import Inspected, PatchCoreError

if TYPE_CHECKING:
    from typing_extensions import Self

PREDICTIONS, REGIONS, OVERLAYS = "predictions.csv", "regions.csv", "overlays"
_BASIS = "watch.json"
_STATE = ("bytes", "modified")  # tell with the path what a file held
_COLUMNS = {
    PREDICTIONS: ("path", "score", "p_value", "verdict", "threshold", "seconds", "error"),
    REGIONS: ("path", "region", "left", "top", "right", "bottom", "area", "peak", "share"),
}

State = tuple[str, str, str]


def refuse_used_folder(folder: Path) -> None:
    """Raise a ValueError if a folder holds predictions."""
    for name in (PREDICTIONS, REGIONS, OVERLAYS):
        if (folder / name).exists():
            raise ValueError(f"{folder / name} is there already: give the name of a new folder")


class PredictionFolder:
    """Appends every image to the tables of a folder as it is judged.

    Of a journal every line is on the disk before the next, and the regions of an image come before its prediction, so
    that who goes on after a process that was killed neither loses nor doubles an image: a torn last line is cut off,
    and the regions of an image without a prediction are removed.

    Args:
        folder: made if it is not there.
        journal: go on with the predictions that are there, if any, and tell files by their size and time of change. It
            says what verdicts rest on, as JSON holds it, and must be what the folder was begun with. None: no journal.

    Raises:
        PatchCoreError: the folder cannot be written, another process writes into it, or it holds predictions that a
            journal cannot go on with.
        ValueError: it holds predictions, and this is no journal.
    """

    def __init__(self, folder: Path, *, journal: Mapping[str, Any] | None = None) -> None:
        if journal is None:
            refuse_used_folder(folder)
        self._journal = journal is not None
        self._folder = folder
        self._judged: set[State] = set()
        self._files: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if journal is not None:
                self._begin(journal)
            for name in (PREDICTIONS, REGIONS):
                self._files[name] = self._open(name)
        except (OSError, PatchCoreError) as error:
            self.close()
            if isinstance(error, PatchCoreError):
                raise
            raise PatchCoreError(f"cannot write {folder}: {error.strerror}") from error
        if journal is not None:
            self._go_on()

    def holds(self, path: Path, state: tuple[int, int]) -> bool:
        """Whether a file was judged in a certain state, see `Inspected`."""
        return _key(path, state) in self._judged

    def add(self, image: Inspected) -> None:
        """Append an image: its regions, then its prediction.

        Raises:
            PatchCoreError: the system refused.
        """
        self._append(REGIONS, [self._row(image, row) for row in _regions(image)])
        self._append(PREDICTIONS, [self._row(image, _prediction(image))])
        self._judged.add(_key(image.path, image.state))

    def close(self) -> None:
        """Close the tables."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _begin(self, journal: Mapping[str, Any]) -> None:
        """Lock the folder as long as this process lives, and see that it was begun with the same."""
        path, content = self._folder / _BASIS, json.dumps(journal, indent=2, sort_keys=True)
        if (self._folder / PREDICTIONS).exists() and not path.exists():
            raise PatchCoreError(f"{self._folder}: not what --watch wrote: give the name of a new folder")
        file = self._files[_BASIS] = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        if not lock(file):
            raise PatchCoreError(f"{self._folder}: another process writes its predictions there")
        begun = path.read_text(encoding="utf-8")
        if begun and begun != content:
            raise PatchCoreError(
                f"{self._folder} was begun with another model, --false_rejects or --threshold: repeat those, or give"
                " the name of a new folder"
            )
        if not begun:
            os.write(file, content.encode())

    def _columns(self, name: str) -> tuple[str, ...]:
        return _COLUMNS[name] + (_STATE if self._journal else ())

    def _row(self, image: Inspected, row: Sequence[object]) -> list[object]:
        return [str(image.path), *row, *((image.state or ("", "")) if self._journal else ())]

    def _open(self, name: str) -> int:
        path, header = self._folder / name, csv_line(self._columns(name))
        file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o666)
        whole = _whole_lines(path.read_bytes())
        if whole and not whole.startswith(header):
            os.close(file)
            raise PatchCoreError(f"{path}: not what --watch wrote, so it cannot go on: give the name of a new folder")
        os.ftruncate(file, len(whole))
        self._files[name] = file
        if not whole:
            self._append(name, [self._columns(name)])
        return file

    def _go_on(self) -> None:
        remove_leftovers(self._folder)
        path = self._folder / PREDICTIONS
        self._judged = {_key_of(row) for row in read_csv(path, self._columns(PREDICTIONS))}
        path = self._folder / REGIONS
        rows = read_csv(path, self._columns(REGIONS))
        kept = [list(row.values()) for row in rows if _key_of(row) in self._judged]
        if len(kept) < len(rows):
            os.close(self._files.pop(REGIONS))
            write_csv(path, self._columns(REGIONS), kept)
            self._files[REGIONS] = self._open(REGIONS)

    def _append(self, name: str, rows: Sequence[Sequence[object]]) -> None:
        """Append lines at one go: nobody sees a part of them, unless the process is killed meanwhile."""
        content = b"".join(map(csv_line, rows))
        if not content:
            return
        try:
            written = os.write(self._files[name], content)
            if self._journal:
                os.fsync(self._files[name])
        except OSError as error:
            raise PatchCoreError(f"cannot write {self._folder / name}: {error.strerror}") from error
        if written < len(content):
            raise PatchCoreError(f"cannot write {self._folder / name}: the disk is full")


def _prediction(image: Inspected) -> list[object]:
    result = image.result
    if result is None:
        return ["", "", "", "", "", image.error or ""]
    values = (result.score, result.p_value, result.verdict, result.threshold, image.seconds)
    return [*("" if value is None else value for value in values), ""]


def _regions(image: Inspected) -> Iterator[list[object]]:
    regions = image.result.regions if image.result else None
    for number, region in enumerate(regions or (), start=1):
        yield [number, *region.box, region.area, region.peak, region.share]


def _key(path: Path, state: tuple[int, int] | None) -> State:
    size, modified = ("", "") if state is None else map(str, state)
    return as_read(str(path)), size, modified


def _key_of(row: dict[str, str]) -> State:
    return row["path"], row["bytes"], row["modified"]


def _whole_lines(content: bytes) -> bytes:
    """What is left without a torn last line; a line ends outside of quotes only."""
    end = len(content)
    while (end := content.rfind(b"\r\n", 0, end)) >= 0:
        if content.count(b'"', 0, end) % 2 == 0:
            return content[: end + 2]
    return b""
