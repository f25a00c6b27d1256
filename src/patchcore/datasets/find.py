"""Find the images of a category, in the layout that the name of the data set says."""

from __future__ import annotations

from patchcore.config import OWN_PARTS, DatasetConfig
from patchcore.datasets.layout import scan_test, scan_train
from patchcore.datasets.own_parts import scan_bad, scan_good
from patchcore.types import PatchCoreError, Sample


def find_training(dataset: DatasetConfig, category: str) -> list[Sample]:
    """The good images to learn from; there is at least one.

    Raises:
        PatchCoreError: they are missing or cannot be read.
    """
    if dataset.name != OWN_PARTS:
        return scan_train(dataset.root, category)
    if dataset.good is None:
        raise PatchCoreError("no good images to train on: name their folder, --good FOLDER")
    return scan_good(dataset.good, category)


def find_test(dataset: DatasetConfig, category: str) -> tuple[list[Sample], int]:
    """The test images, which may be none, and how many images are there of which nothing says whether they are good.

    Raises:
        PatchCoreError: an image or a mask that must be there is missing, cannot be read, or is ambiguous.
    """
    if dataset.name != OWN_PARTS:
        return scan_test(dataset.root, category)
    return ([], 0) if dataset.bad is None else (scan_bad(dataset.bad, dataset.masks, category), 0)
