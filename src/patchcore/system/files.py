"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from patchcore.types import PatchCoreError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or folder to, and move it there once it is whole.

    If the body fails, nothing remains. An existing file is replaced; an existing folder is not.

    Raises:
        PatchCoreError: the system refused to write (disk full, no permission ...); it names `path`.
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
            with suppress(OSError):  # mostly that it is not there
                aside.unlink()


@contextmanager
def removed_unless(folders: Sequence[Path], wanted: Callable[[], bool]) -> Iterator[None]:
    """Delete the first of some folders at the end, also after an error, unless it turned out to be wanted.

    The others, its parents, go as well if that leaves them empty.
    """
    try:
        yield
    finally:
        if not wanted():
            shutil.rmtree(folders[0], ignore_errors=True)
            with suppress(OSError):  # not empty: somebody else's
                for parent in folders[1:]:
                    parent.rmdir()
