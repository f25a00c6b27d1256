"""Categories as folders: walk and pair the files, read them, bring them to the input's geometry, batch them.

The layout of MPDD and MVTec AD, which any other set of parts may share:

    ROOT/CATEGORY/train/good/000.png                      good parts only
    ROOT/CATEGORY/test/good/000.png                       good parts
    ROOT/CATEGORY/test/DEFECT/000.png                     a folder per kind of defect
    ROOT/CATEGORY/ground_truth/DEFECT/000_mask.png        the mask of test/DEFECT/000.png (or plain 000.png)

Hidden files, files that are no images, folders below DEFECT and folders beside train/good are ignored.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from patchcore.types import PatchCoreError, Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

# Only these decoders may look at a file, whatever its name says: Pillow has others that start programs (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LOSSY_FORMATS = ("JPEG", "MPO")
# Modes that Pillow converts to RGB without guessing a range (as it would for F) or a colour space (LAB).
_RGB_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
# What Pillow's decoders raise on damaged files, beside its own error: they check little themselves.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


# Walking and pairing


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


# Reading


def load_image(path: Path, least: int | None = None) -> Image.Image:
    """Read a PNG, JPEG, BMP or TIFF file as 8-bit RGB.

    Alpha is dropped, not blended. 16-bit grey is divided by 257, so that 65535 becomes 255, whatever range
    the camera used of it. Of several pages the first is read; EXIF orientation is not applied, as masks have
    none.

    Args:
        least: JPEG is decoded at a half, a quarter or an eighth of its size where both sides keep so many pixels,
            which leaves out most of the work.

    Raises:
        PatchCoreError: the file is missing, damaged, too large or of a kind that has no one meaning as RGB.
    """
    with _opened(path) as image:
        if least is not None:
            image.draft(None, (least, least))
        return _rgb(image, path)


def load_mask(path: Path) -> Image.Image:
    """Read a mask as mode L with 255 on defects and 0 elsewhere: what is not zero in some colour is a defect.

    Alpha does not count, and a palette's colours do, not its indices. JPEG, which surrounds every edge with
    values near zero, is cut at half its range instead.

    Raises:
        PatchCoreError: as `load_image`.
    """
    with _opened(path) as image:
        single = image.mode in ("1", "L") or _is_16_bit(image)
        values = np.asarray(image if single else _rgb(image, path))
        defect = values >= 128 if image.format in _LOSSY_FORMATS else values != 0
        if defect.ndim == 3:
            defect = defect.any(axis=2)  # (H, W, 3) -> (H, W)
        return Image.fromarray(defect.astype(np.uint8) * 255)


def _image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the file's header, without decoding."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; what goes wrong in the body while decoding it names the file."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except _DECODING_ERRORS as error:
        raise PatchCoreError(f"cannot read the image {path}: {_reason(path, error)}; replace or remove it") from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = path.stat().st_size == 0
        return "the file is empty" if empty else f"its content is none of {', '.join(_FORMATS)}"
    # The system's errors repeat the path in their text; Pillow's have no strerror.
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _is_16_bit(image: Image.Image) -> bool:
    # Mode I is 32-bit, but is also how Pillow before 11 reads a 16-bit PNG.
    return image.mode == "I" or image.mode.startswith("I;16")


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if _is_16_bit(image):
        return _grey_from_16_bit(image, path).convert("RGB")
    if image.mode not in _RGB_CONVERTIBLE:
        kind = "32-bit float" if image.mode == "F" else "another kind"
        cure = "scale its values to 0..255 and save them as an 8-bit PNG"
        raise PatchCoreError(
            f"{path}: expected pixels of 8 or 16 bits, grey or RGB, got {kind} (mode {image.mode}); {cure}"
        )
    # Alpha goes anyway; left here, Pillow would warn that a palette's cannot be kept.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _grey_from_16_bit(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        cure = "scale them to 16 or 8 bits"
        raise PatchCoreError(f"{path}: expected grey values in 0..65535, got {low}..{high}; {cure}")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


# Geometry

REDUCED_DECODING = 2


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """From a file's pixels to the network's: the shorter side becomes `resize`, then the centre is cropped.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on Pillow images, without their import time.

    Attributes:
        resize: pixels of the shorter side after resizing; the longer follows the aspect ratio, rounded down.
        imagesize: pixels of both sides after cropping, at most `resize`.
        reduced_decoding: large JPEG files are not decoded at their full size, but at no less than REDUCED_DECODING
            times `resize`. What resizing makes of that differs from the exact pixels by some tenths of a grey value.
    """

    resize: int
    imagesize: int
    reduced_decoding: bool = False

    def __post_init__(self) -> None:
        if self.imagesize < 1:
            raise ValueError(f"imagesize must be at least 1, got {self.imagesize}")
        if self.imagesize > self.resize:
            raise ValueError(
                f"imagesize {self.imagesize} is larger than resize {self.resize}, so that the crop would pad "
                "the image with black; raise resize or lower imagesize"
            )

    def read(self, path: Path) -> torch.Tensor:
        """Return the pixels of a file that the network sees, see `load_image` and `image`."""
        return self.image(load_image(path, REDUCED_DECODING * self.resize if self.reduced_decoding else None))

    def image(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels that the network sees: (3, imagesize, imagesize) uint8 RGB, a view of (H, W, 3)."""
        return torch.from_numpy(np.array(self.picture(image))).permute(2, 0, 1)

    def mask(self, mask: Image.Image) -> NDArray[np.bool_]:
        """Return (imagesize, imagesize) bool, True on defects, from a mask as `load_mask` gives it."""
        return np.asarray(self._cropped(mask, Image.Resampling.NEAREST)) != 0

    def picture(self, image: Image.Image) -> Image.Image:
        """Return what the network sees, for people: RGB, imagesize x imagesize, uint8 in [0, 255]."""
        if image.mode != "RGB":
            raise ValueError(f"expected an image of mode RGB, got {image.mode}; read it with load_image")
        return self._cropped(image, Image.Resampling.BILINEAR)

    def _cropped(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        width, height = image.size
        longer = int(self.resize * max(width, height) / min(width, height))
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        left, top = (round((side - self.imagesize) / 2) for side in size)
        return image.resize(size, resample).crop((left, top, left + self.imagesize, top + self.imagesize))


# Batches

VIEWS = 8  # the symmetries of the square


class ImageDataset(Dataset[torch.Tensor]):
    """The pixels (3, imagesize, imagesize) uint8 of some samples, in their order.

    With `augment` every sample comes in the 8 views of the square's symmetry group, one after the other:
    index i is sample i // 8 in view i % 8, view 0 as it is, 1 to 3 turned, 4 to 7 turned and mirrored.
    """

    def __init__(self, samples: Sequence[Sample], geometry: Geometry, augment: bool = False) -> None:
        self.samples = tuple(samples)
        self.geometry = geometry
        self.augment = augment
        # The 8 views of a sample are asked for in a row, and decoding costs far more than turning.
        self._latest: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.samples) * (VIEWS if self.augment else 1)

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self.augment:
            return self._read(index)
        latest = self._latest  # one look, as other threads replace it
        if latest is None or latest[0] != index // VIEWS:
            latest = self._latest = index // VIEWS, self._read(index // VIEWS)
        return _view(latest[1], index % VIEWS)

    def _read(self, index: int) -> torch.Tensor:
        return self.geometry.read(self.samples[index].path)


def _view(image: torch.Tensor, element: int) -> torch.Tensor:
    """Return (C, S, S) under one of the 8 symmetries of the square; element 0 is the identity."""
    turned = torch.rot90(image, element % 4, (1, 2))
    return turned.flip(2) if element >= 4 else turned


@dataclass(frozen=True, kw_only=True)
class PrefetchLoader:
    """Batches (B, 3, H, W) uint8 of a data set in its order, decoded ahead by threads; the last may be smaller.

    Pillow and numpy release the interpreter while they work, so that threads decode as fast as worker
    processes and give the first batch in half the time. The error of a bad image arrives as it was raised,
    after the whole batches before it. Leaving a loop early ends the threads.

    Attributes:
        batch_size: images per batch.
        num_workers: decoding threads; 0 decodes in the calling thread.
        pin_memory: batches lie in page-locked memory, for asynchronous copies to CUDA; ignored without CUDA.
    """

    dataset: ImageDataset
    batch_size: int
    num_workers: int
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        with closing(self._images()) as images:
            while batch := list(islice(images, self.batch_size)):
                yield self._stack(batch)

    def _images(self) -> Iterator[torch.Tensor]:
        indices = iter(range(len(self.dataset)))
        if self.num_workers == 0:
            yield from map(self.dataset.__getitem__, indices)
            return
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode")
        try:
            # One batch ahead, so that it is whole when the model asks for it, and work for every thread.
            n_ahead = self.batch_size + 2 * self.num_workers
            ahead = deque(pool.submit(self.dataset.__getitem__, i) for i in islice(indices, n_ahead))
            while ahead:
                image = ahead.popleft().result()
                ahead.extend(pool.submit(self.dataset.__getitem__, i) for i in islice(indices, 1))
                yield image
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stack(self, images: list[torch.Tensor]) -> torch.Tensor:
        rows = [image.permute(1, 2, 0) for image in images]  # (H, W, 3), as they lie in memory
        out = None
        if self.pin_memory and torch.cuda.is_available():
            out = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=True)
        return torch.stack(rows, out=out).permute(0, 3, 1, 2)  # (B, 3, H, W), channels last


def image_loader(
    dataset: ImageDataset, batch_size: int, num_workers: int, *, pin_memory: bool = False
) -> PrefetchLoader:
    """Return the batches (B, 3, H, W) uint8 of `dataset`, in order; see `PrefetchLoader`."""
    return PrefetchLoader(dataset=dataset, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory)


def load_masks(samples: Sequence[Sample], geometry: Geometry) -> NDArray[np.bool_] | None:
    """Return the masks of all samples, (N, imagesize, imagesize) bool, True on defects, none in good images.

    None if a defective sample has no mask: pixel metrics are undefined then.

    Raises:
        PatchCoreError: a mask cannot be read, or its size is not that of its image.
    """
    if any(sample.is_defective and sample.mask_path is None for sample in samples):
        return None
    masks = np.zeros((len(samples), geometry.imagesize, geometry.imagesize), dtype=bool)
    for row, sample in zip(masks, samples, strict=True):
        if sample.mask_path is not None:
            row[:] = geometry.mask(_load_mask_of(sample.path, sample.mask_path))
    return masks


def _load_mask_of(image_path: Path, mask_path: Path) -> Image.Image:
    mask, (width, height) = load_mask(mask_path), _image_size(image_path)
    if mask.size != (width, height):
        raise PatchCoreError(
            f"the mask {mask_path} is {mask.width}x{mask.height}, but its image {image_path} is "
            f"{width}x{height}; save the mask at the size of the image"
        )
    return mask
