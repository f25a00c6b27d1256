"""Categories as folders: which images and masks there are.

The layout of MPDD and MVTec AD, which any other set of parts may share:

    ROOT/CATEGORY/train/good/000.png                      good parts only
    ROOT/CATEGORY/test/good/000.png                       good parts
    ROOT/CATEGORY/test/DEFECT/000.png                     a folder per kind of defect
    ROOT/CATEGORY/ground_truth/DEFECT/000_mask.png        the mask of test/DEFECT/000.png (or plain 000.png)

Hidden files, files that are no images, folders below DEFECT and folders beside train/good are ignored.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from patchcore.types import PatchCoreError, Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def scan_category(root: Path, category: str) -> tuple[list[Sample], list[Sample]]:
    """List the training and the test images of `root`/`category`, each sorted by folder, then by file name.

    Masks are paired by name. A category without a folder `ground_truth` has `mask_path` None throughout.

    Raises:
        PatchCoreError: a folder or mask that must be there is missing, cannot be read, or is ambiguous.
    """
    folder = _category_folder(Path(root), category)
    train = [
        Sample(path=path, category=category, split="train", defect="good")
        for path in _good_training_images(folder / "train" / "good")
    ]
    test = [
        Sample(path=path, category=category, split="test", defect=defect, mask_path=mask_path)
        for defect in _defects(folder / "test")
        for path, mask_path in _with_masks(folder, defect)
    ]
    if not test:
        raise PatchCoreError(f"no image in the folders of {folder / 'test'}: expected {_looked_for('them')}")
    return train, test


def _category_folder(root: Path, category: str) -> Path:
    folders, _ = _listing(root, expected="the folder that holds a folder per category")
    # Compared with the listing rather than opened: "..", "a/b" and "" would open, but name no category.
    if category in folders:
        return root / category
    if "train" in folders:
        here = root.resolve()  # "." has neither a name nor a parent
        cure = f"it is a category itself; pass {here.parent} and the category {here.name}"
        raise PatchCoreError(f"no category {category!r} in {root}: {cure}")
    there = [name for name in folders if _looks_like_category(root / name)]
    near = get_close_matches(category.lower(), [name.lower() for name in there], n=1)
    suggestion = [f"did you mean {name!r}?" for name in there if name.lower() in near][:1]
    listed = f"those there: {', '.join(there)}" if there else "no folder there has a folder train"
    raise PatchCoreError(f"no category {category!r} in {root}: {' '.join([*suggestion, listed])}")


def _looks_like_category(folder: Path) -> bool:
    try:
        return _has_folder(folder, "train")
    except PatchCoreError:  # a folder that may not be read is none to suggest
        return False


def _good_training_images(folder: Path) -> list[Path]:
    _, images = _listing(folder, expected="the good images to train on")
    if not images:
        raise PatchCoreError(f"no image in {folder}: expected {_looked_for('it')}")
    return [folder / name for name in images]


def _defects(folder: Path) -> list[str]:
    defects, _ = _listing(folder, expected="a folder good and one per kind of defect")
    for name in defects:
        if name != "good" and name.lower() == "good":
            raise PatchCoreError(f"{folder / name}: its images would count as defective; rename it to 'good'")
    return defects


def _with_masks(folder: Path, defect: str) -> list[tuple[Path, Path | None]]:
    """Pair the images of test/`defect` with their masks, or with None where none are to be had."""
    image_folder, mask_folder = folder / "test" / defect, folder / "ground_truth" / defect
    _, names = _listing(image_folder, expected="test images")
    images = [image_folder / name for name in names]
    if defect == "good" or not _has_folder(folder, "ground_truth"):
        return [(path, None) for path in images]
    mask_names = _listing(mask_folder, expected="masks")[1] if _has_folder(mask_folder.parent, defect) else []
    masks = _pair(images, [mask_folder / name for name in mask_names], mask_folder)
    return list(zip(images, masks, strict=True))


def _pair(images: list[Path], masks: list[Path], mask_folder: Path) -> list[Path]:
    """Return the mask of each image: the one that bears its stem, with or without `_mask`."""
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        by_stem.setdefault(mask.stem, []).append(mask)
    claims: dict[Path, Path] = {}
    for image in images:
        found = [*by_stem.get(f"{image.stem}_mask", []), *by_stem.get(image.stem, [])]
        if not found:
            expected = mask_folder / f"{image.stem}_mask.png"
            cure = "add it, or remove the folder ground_truth to go without pixel metrics"
            raise PatchCoreError(f"no mask for {image}: expected {expected}; {cure}")
        if len(found) > 1:
            names = " and ".join(mask.name for mask in found)
            raise PatchCoreError(f"several masks for {image}: {names} in {mask_folder}; keep one")
        if found[0] in claims:
            both = f"{claims[found[0]].name} and {image.name} in {image.parent}"
            raise PatchCoreError(f"one mask for two images: {both} claim {found[0]}; rename or remove one")
        claims[found[0]] = image
    return list(claims)


def _listing(folder: Path, *, expected: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the visible folders and image files in `folder`."""
    try:
        with os.scandir(folder) as entries:
            visible = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        raise PatchCoreError(f"no folder {folder}: expected {expected} there") from None
    except OSError as error:
        raise PatchCoreError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error
    folders = sorted(name for name, is_folder in visible if is_folder)
    # A link to a file that is gone counts as an image: to be named when it is opened, not dropped unseen.
    images = sorted(name for name, is_folder in visible if not is_folder and _is_image_name(name))
    return folders, images


def _has_folder(folder: Path, name: str) -> bool:
    # By listing, as Path.exists would raise, without a path, in a folder that may not be read.
    return name in _listing(folder, expected=f"a folder {name}")[0]


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _looked_for(where: str) -> str:
    return f"{' '.join('*' + suffix for suffix in IMAGE_SUFFIXES)} in {where}"
