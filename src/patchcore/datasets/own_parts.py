"""Find the images of one's own parts in folders that lie anywhere: --good, --bad and --masks.

    GOOD/000.png                     good parts to learn from; nothing else, so that no defect is learnt as good
    BAD/000.png                      defective parts to test on, of the kind "bad"
    BAD/DEFECT/000.png               or in a folder per kind of defect
    MASKS/DEFECT/000_mask.png        the mask of BAD/DEFECT/000.png (or plain 000.png)

Hidden files and files that are no images are ignored; any other folder is refused rather than left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchcore.datasets.layout import list_folder, list_images, match_masks
from patchcore.types import PatchCoreError, Sample

UNNAMED = "bad"  # the kind of the defects directly in BAD


def scan_good(good: Path, category: str) -> list[Sample]:
    """List the images to learn from by file name.

    Raises:
        PatchCoreError: the folder is missing, cannot be read, has no image, or holds a folder.
    """
    _refuse_folders(good, list_folder(good, expected="the good images to train on")[0])
    return [Sample(path=path, category=category, split="train", defect="good") for path in list_images(good)]


def scan_bad(bad: Path, masks: Path | None, category: str) -> list[Sample]:
    """List the defective test images, those directly in `bad` first, then by kind, each by file name.

    Without `masks` no image has one.

    Raises:
        PatchCoreError: a folder or mask is missing, cannot be read, or is ambiguous; there is no image; a folder is
            called good or lies deeper.
    """
    kinds, names = list_folder(bad, expected="defective images, or a folder of them per kind of defect")
    for kind in kinds:
        if kind.lower() == "good":
            raise PatchCoreError(f"{bad / kind}: expected defective images only; move the folder out of {bad}")
    samples = _scan_kind(bad, names, UNNAMED, masks, category)
    there = list_folder(masks, expected="the masks of the defective images")[0] if masks else []
    for kind in kinds:
        folders, names = list_folder(bad / kind, expected="defective images")
        _refuse_folders(bad / kind, folders)
        mask_folder = masks / kind if masks else None
        samples += _scan_kind(bad / kind, names, kind, mask_folder, category, has_masks=kind in there)
    if not samples:
        raise PatchCoreError(f"no image in {bad}: expected defective images, or a folder of them per kind of defect")
    return samples


def _scan_kind(
    folder: Path,
    names: Sequence[str],
    defect: str,
    mask_folder: Path | None,
    category: str,
    *,
    has_masks: bool = True,
) -> list[Sample]:
    images = [folder / name for name in names]
    masks: Sequence[Path | None] = [None] * len(images)
    if mask_folder is not None:
        found = list_folder(mask_folder, expected="masks")[1] if has_masks else []
        masks = match_masks(images, mask_folder, found, without="leave --masks out")
    return [
        Sample(path=path, category=category, split="test", defect=defect, mask_path=mask_path)
        for path, mask_path in zip(images, masks, strict=True)
    ]


def _refuse_folders(folder: Path, inside: Sequence[str]) -> None:
    if inside:
        got = f"the folder{'s' * (len(inside) > 1)} {', '.join(inside)}"
        raise PatchCoreError(
            f"{folder}: expected images directly in it, got {got}; move the images of one kind together"
        )
