"""Image files by the paths that a user names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from patchcore.datasets.layout import IMAGE_SUFFIXES
from patchcore.results.predictions import OVERLAYS, PREDICTIONS
from patchcore.types import Inspected


def find_images(paths: Iterable[Path]) -> Iterator[Path | Inspected]:
    """Files as they are, and the images of folders, see `images_below`; no file twice.

    What is not there, a folder without images, and one that cannot be read, come as broken.
    """
    known: set[str] = set()
    for path in paths:
        found: list[Path | Inspected]
        if path.is_dir():
            refused: list[OSError] = []
            found = [*images_below(path, refused.append), *map(_unreadable, refused)]
            if not found:
                found = [Inspected(path=path, error=f"no image in {path}: expected {', '.join(IMAGE_SUFFIXES)} files")]
        elif os.path.lexists(path):
            found = [path]
        else:
            found = [Inspected(path=path, error=f"no file or folder {path}")]
        for one in found:
            name = absolute(one.path if isinstance(one, Inspected) else one)
            if name not in known:
                known.add(name)
                yield one


def images_below(folder: Path, on_error: Callable[[OSError], object]) -> list[Path]:
    """The image files of a folder and those in it, in the order of their paths; hidden ones are ignored.

    A folder that several links lead to is looked at once, and pictures of earlier verdicts are no images to judge.

    Args:
        on_error: told of a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    found = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=on_error):
        try:
            here = os.stat(root)  # noqa: PTH116 - a watched folder is walked several times a second
        except OSError as error:
            on_error(error)
            continue
        identity = here.st_dev, here.st_ino
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if identity not in seen else []
        if PREDICTIONS in names:
            folders[:] = [name for name in folders if name != OVERLAYS]
        if identity not in seen:
            found += [Path(root, name) for name in names if is_image_name(name)]
        seen.add(identity)
    return sorted(found, key=lambda path: path.parts)


def absolute(path: Path) -> str:
    """Where a path leads from the root, links as they are."""
    return os.path.abspath(path)  # noqa: PTH100 - Path.resolve follows links


def is_image_name(name: str) -> bool:
    """Whether a file of that name is looked at in a folder."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _unreadable(error: OSError) -> Inspected:
    return Inspected(
        path=Path(error.filename or ""), error=f"cannot read the folder {error.filename}: {error.strerror}"
    )
