"""Find the images of a category and their masks in its folders, and hold some out of the training.

The layout of MPDD and MVTec AD, which any other set of parts may share:

    ROOT/CATEGORY/train/good/000.png                      good parts only
    ROOT/CATEGORY/test/good/000.png                       good parts
    ROOT/CATEGORY/test/DEFECT/000.png                     a folder per kind of defect
    ROOT/CATEGORY/ground_truth/DEFECT/000_mask.png        the mask of test/DEFECT/000.png (or plain 000.png)

A category to train on may lack `test`, and one to test on may lack `train`. Nothing says whether an image directly in
`test` is good. Hidden files, files that are no images, folders below DEFECT and folders beside train/good are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from patchcore.types import PatchCoreError, Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_WILDCARDS = " ".join("*" + suffix for suffix in IMAGE_SUFFIXES)


def scan_train(root: Path, category: str) -> list[Sample]:
    """List the training images of `root`/`category` by file name.

    Raises:
        PatchCoreError: the folder is missing, cannot be read, or has no image.
    """
    folder = _find_category(Path(root), category) / "train" / "good"
    return [Sample(path=path, category=category, split="train", defect="good") for path in list_images(folder)]


def scan_test(root: Path, category: str) -> tuple[list[Sample], int]:
    """List the test images of `root`/`category`, sorted by folder, then by file name, and count those without a label.

    Masks are paired by name. A category without a folder `ground_truth` has `mask_path` None throughout; one without a
    folder `test` has no test images.

    Raises:
        PatchCoreError: a folder or mask that must be there is missing, cannot be read, or is ambiguous.
    """
    folder = _find_category(Path(root), category)
    if not _has_folder(folder, "test"):
        return [], 0
    defects, unlabelled = _list_test(folder / "test")
    test = [
        Sample(path=path, category=category, split="test", defect=defect, mask_path=mask_path)
        for defect in defects
        for path, mask_path in _list_test_images(folder, defect)
    ]
    if not test and not unlabelled:
        raise PatchCoreError(f"no image in the folders of {folder / 'test'}: expected {_WILDCARDS} in them")
    return test, unlabelled


def split_train(
    samples: Sequence[Sample], fraction: float, generator: np.random.Generator
) -> tuple[list[Sample], list[Sample]]:
    """Split training images at random into those kept and those held out, both in their given order.

    Args:
        samples: the training images.
        fraction: share of the images that is kept, in (0, 1]. Below 1 each part gets at least one image.
        generator: decides which images are held out.

    Raises:
        PatchCoreError: one image cannot be split in two.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"train_val_split must be in (0, 1], got {fraction}")
    if fraction == 1:
        return list(samples), []
    n = len(samples)
    if n < 2:
        raise PatchCoreError(
            f"train_val_split {fraction} needs at least 2 training images, got {n}; add images or use 1.0"
        )
    n_kept = min(max(round(fraction * n), 1), n - 1)
    kept = set(generator.permutation(n)[:n_kept].tolist())
    return [samples[i] for i in range(n) if i in kept], [samples[i] for i in range(n) if i not in kept]


def _find_category(root: Path, category: str) -> Path:
    folders, _ = list_folder(root, expected="the folder that holds a folder per category")
    # Compared with the listing rather than opened: "..", "a/b" and "" would open, but name no category.
    if category in folders:
        return root / category
    if "train" in folders or "test" in folders:
        here = root.resolve()  # "." has neither a name nor a parent
        cure = f"it is a category itself; pass {here.parent} and the category {here.name}"
        raise PatchCoreError(f"no category {category!r} in {root}: {cure}")
    there = [name for name in folders if _looks_like_category(root / name)]
    near = get_close_matches(category.lower(), [name.lower() for name in there], n=1)
    suggestion = [f"did you mean {name!r}?" for name in there if name.lower() in near][:1]
    listed = f"those there: {', '.join(there)}" if there else "no folder there has a folder train or test"
    raise PatchCoreError(f"no category {category!r} in {root}: {' '.join([*suggestion, listed])}")


def _looks_like_category(folder: Path) -> bool:
    try:
        return _has_folder(folder, "train") or _has_folder(folder, "test")
    except PatchCoreError:  # do not suggest a folder that cannot be read
        return False


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder by name; a PatchCoreError where there is none."""
    _, images = list_folder(folder, expected="the good images to train on")
    if not images:
        raise PatchCoreError(f"no image in {folder}: expected {_WILDCARDS} in it")
    return [folder / name for name in images]


def _list_test(folder: Path) -> tuple[list[str], int]:
    """The folders of test images, and how many images lie beside them."""
    defects, beside = list_folder(folder, expected="a folder good and one per kind of defect")
    for name in defects:
        if name != "good" and name.lower() == "good":
            raise PatchCoreError(f"{folder / name}: its images would count as defective; rename it to 'good'")
    return defects, len(beside)


def _list_test_images(folder: Path, defect: str) -> list[tuple[Path, Path | None]]:
    """List the images of test/`defect`, each with its mask, or with None where it has none."""
    image_folder, mask_folder = folder / "test" / defect, folder / "ground_truth" / defect
    _, names = list_folder(image_folder, expected="test images")
    images = [image_folder / name for name in names]
    if defect == "good" or not _has_folder(folder, "ground_truth"):
        return [(path, None) for path in images]
    names = list_folder(mask_folder, expected="masks")[1] if _has_folder(mask_folder.parent, defect) else []
    masks = match_masks(images, mask_folder, names, without="remove the folder ground_truth")
    return list(zip(images, masks, strict=True))


def match_masks(images: Sequence[Path], mask_folder: Path, names: Sequence[str], *, without: str) -> list[Path]:
    """Return the mask of each image: the file of the same stem, with or without `_mask`.

    Args:
        images: the images of a folder.
        mask_folder: where their masks lie, or should.
        names: the files that are there.
        without: what to do to go without masks, for the error.

    Raises:
        PatchCoreError: an image has no mask or several, or shares one.
    """
    by_stem: dict[str, list[Path]] = {}
    for mask in (mask_folder / name for name in names):
        by_stem.setdefault(mask.stem, []).append(mask)
    claims: dict[Path, Path] = {}
    for image in images:
        found = [*by_stem.get(f"{image.stem}_mask", []), *by_stem.get(image.stem, [])]
        if not found:
            expected = mask_folder / f"{image.stem}_mask.png"
            cure = f"add it, or {without} to go without pixel metrics"
            raise PatchCoreError(f"no mask for {image}: expected {expected}; {cure}")
        if len(found) > 1:
            names = " and ".join(mask.name for mask in found)
            raise PatchCoreError(f"several masks for {image}: {names} in {mask_folder}; keep one")
        if found[0] in claims:
            both = f"{claims[found[0]].name} and {image.name} in {image.parent}"
            raise PatchCoreError(f"one mask for two images: {both} claim {found[0]}; rename or remove one")
        claims[found[0]] = image
    return list(claims)


def list_folder(folder: Path, *, expected: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the visible folders and image files in `folder`.

    Raises:
        PatchCoreError: it is not there, or cannot be read; `expected` says what should be in it.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        raise PatchCoreError(f"no folder {folder}: expected {expected} there") from None
    except OSError as error:
        raise PatchCoreError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error
    folders = sorted(name for name, is_folder in visible if is_folder)
    # A link to a missing file counts as an image: opening it gives an error that names it.
    images = sorted(name for name, is_folder in visible if not is_folder and name.lower().endswith(IMAGE_SUFFIXES))
    return folders, images


def _has_folder(folder: Path, name: str) -> bool:
    # By listing: in a folder that cannot be read, Path.exists raises an error without the path.
    return name in list_folder(folder, expected=f"a folder {name}")[0]
