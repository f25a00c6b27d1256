"""Files and folders that are written whole or not at all, and files that come with the toolkit."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from patchcore.types import PatchCoreError

_PACKAGE = Path(__file__).resolve().parents[1]
# pyproject.toml has these files copied into the package when it is built; a checkout has configs/ at its top.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or folder, and move it to `path` when the body ends.

    If the body fails, nothing is left. An existing file is replaced; an existing folder is not.

    Raises:
        PatchCoreError: the system refused to write (disk full, no permission ...); the message names `path`.
    """
    aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)  # noqa: PTH105 - Path.replace says the same but names the wrong file in its error
    except OSError as error:
        raise PatchCoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with suppress(OSError):  # it was moved
                aside.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left of `atomic_write` in a folder and those in it."""
    for path in list(folder.rglob(".*.tmp")):
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


@contextmanager
def remove_unless(folders: Sequence[Path], wanted: Callable[[], bool]) -> Iterator[None]:
    """Remove the first of `folders` when the body ends, also by an error, unless `wanted()` says to keep it.

    The others are its parents, the nearest first: they go as well if they are empty then.
    """
    try:
        yield
    finally:
        if not wanted():
            shutil.rmtree(folders[0], ignore_errors=True)
            with suppress(OSError):  # not empty: it holds other files
                for parent in folders[1:]:
                    parent.rmdir()


def lock(file: int) -> bool:
    """Lock an open file until it is closed or the process ends; False where another process has it.

    Where the system has no such locks nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def shipped(name: str) -> Path:
    """The path of a file of `configs/`, such as "fastflow_mpdd.yaml" or "published_mpdd.json".

    Raises:
        FileNotFoundError: the toolkit comes without such a file.
    """
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name}: expected in {' or '.join(map(str, _FOLDERS))}; install the toolkit again")
