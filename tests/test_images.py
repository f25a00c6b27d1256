"""Image and mask files of every kind, whole and damaged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_files import noise, one_line, write_image
from patchcore.datasets.images import load_image, load_mask
from patchcore.types import PatchCoreError

GREY = [[10, 10, 10], [200, 200, 200]]
COLOURS = [[10, 20, 30], [200, 100, 0]]


def row(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def palette_row(mode: str = "P") -> Image.Image:
    image = row(mode, (0, 255), (1, 0)) if mode == "PA" else row(mode, 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 0])
    return image


def grey_16_bit(dtype: str) -> Image.Image:
    return Image.fromarray(np.array([[2570, 51400]], dtype))  # 257 x 10 and 257 x 200


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (row("RGB", (10, 20, 30), (200, 100, 0)), "png", COLOURS),
        (row("RGB", (10, 20, 30), (200, 100, 0)), "bmp", COLOURS),
        (row("RGB", (10, 20, 30), (200, 100, 0)), "tif", COLOURS),
        (row("RGBA", (10, 20, 30, 0), (200, 100, 0, 128)), "png", COLOURS),
        (row("RGBA", (10, 20, 30, 0), (200, 100, 0, 128)), "tiff", COLOURS),
        (row("L", 10, 200), "png", GREY),
        (row("L", 10, 200), "bmp", GREY),
        (row("LA", (10, 0), (200, 128)), "png", GREY),
        (row("1", 0, 1), "png", [[0, 0, 0], [255, 255, 255]]),
        (row("1", 0, 1), "tif", [[0, 0, 0], [255, 255, 255]]),
        (palette_row(), "png", COLOURS),
        (palette_row(), "bmp", COLOURS),
        (palette_row("PA"), "tif", COLOURS),
        (row("CMYK", (245, 235, 225, 0), (55, 155, 255, 0)), "tif", COLOURS),
        (grey_16_bit("<u2"), "png", GREY),
        (grey_16_bit("<u2"), "tif", GREY),
        (grey_16_bit(">u2"), "tif", GREY),
        (grey_16_bit("<i4"), "tif", GREY),
    ],
    ids=lambda value: f"{value.mode}" if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(tmp_path: Path, image: Image.Image, suffix: str, expected: list[list[int]]) -> None:
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    assert np.asarray(loaded).tolist() == [expected]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_read_as_pillow_converts_it(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.jpg"
    Image.linear_gradient("L").convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(path)), expected)


def test_16_bit_spans_8_bit(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], np.uint16)).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_transparent_palette_does_not_warn(tmp_path: Path, transparency: int | bytes) -> None:
    path = tmp_path / "image.png"
    palette_row().save(path, transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(load_image(path)).tolist() == [COLOURS]
        assert np.asarray(load_mask(path)).tolist() == [[255, 255]]


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", 0.5, r"32-bit float \(mode F\).*save them as an 8-bit PNG"),
        ("int32", 65536, r"0\.\.65535, got 65536\.\.65536; scale"),
        ("int32", -1, r"0\.\.65535, got -1\.\.-1; scale"),
    ],
)
def test_pixels_without_a_known_range(tmp_path: Path, dtype: str, value: float, expected: str) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((2, 2), value, dtype)).save(path)
    with pytest.raises(PatchCoreError, match=expected) as error:
        load_image(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_other_colour_space(tmp_path: Path, load: Callable[[Path], Image.Image]) -> None:
    path = tmp_path / "image.tif"
    Image.new("LAB", (2, 2)).save(path)
    with pytest.raises(PatchCoreError, match=r"mode LAB"):
        load(path)


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_truncated_file(tmp_path: Path, mode: str, suffix: str, load: Callable[[Path], Image.Image]) -> None:
    path = tmp_path / f"image.{suffix}"
    noise(40, 40).convert(mode).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PatchCoreError, match="replace or remove it") as error:
        load(path)
    assert str(path) in one_line(error)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    noise(40, 40).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(PatchCoreError) as error:
        load_image(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "none of PNG, JPEG, BMP, TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG"),
    ],
)
def test_file_that_is_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(PatchCoreError, match=reason) as error:
        load_image(path)
    assert str(path) in one_line(error)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PatchCoreError) as error:
        load_image(tmp_path / "gone.png")
    assert one_line(error).count(str(tmp_path)) == 1


def test_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "image.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PatchCoreError, match=r"400 pixels.*exceeds") as error:
        load_image(path)
    assert str(path) in one_line(error)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_files_are_closed(tmp_path: Path) -> None:
    good = tmp_path / "image.tif"
    noise(40, 40).save(good)
    bad = tmp_path / "bad.tif"
    bad.write_bytes(good.read_bytes()[:2000])
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [load_image(good), load_mask(good)]
    with pytest.raises(PatchCoreError) as error:
        load_image(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(kept) == 2
    assert str(bad) in str(error.value)


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        (row("L", 0, 1, 255), "png"),
        (row("1", 0, 1, 1), "png"),
        (row("LA", (0, 255), (1, 0), (255, 255)), "png"),
        (row("RGB", (0, 0, 0), (0, 0, 1), (255, 0, 0)), "bmp"),
        (row("RGBA", (0, 0, 0, 255), (0, 1, 0, 0), (9, 9, 9, 9)), "png"),
        (Image.fromarray(np.array([[0, 1, 65535]], np.uint16)), "png"),
        (Image.fromarray(np.array([[0, 1, 65535]], ">u2")), "tif"),
        (Image.fromarray(np.array([[0, 70000, -1]], np.int32)), "tif"),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else value,
)
def test_what_is_not_zero_is_a_defect(tmp_path: Path, image: Image.Image, suffix: str) -> None:
    path = tmp_path / f"mask.{suffix}"
    image.save(path)
    mask = load_mask(path)
    assert mask.mode == "L"
    assert np.asarray(mask).tolist() == [[0, 255, 255]]


def test_palette_mask_goes_by_colour(tmp_path: Path) -> None:
    image = row("P", 0, 1)
    image.putpalette([0, 0, 255, 0, 0, 0])  # index 0 is blue, a defect; index 1 is black
    image.save(tmp_path / "mask.png")
    assert np.asarray(load_mask(tmp_path / "mask.png")).tolist() == [[255, 0]]


def test_jpeg_mask_has_no_halo(tmp_path: Path) -> None:
    defect = np.zeros((64, 64), dtype=bool)
    defect[20:41, 13:30] = True
    path = tmp_path / "mask.jpg"
    Image.fromarray(defect.astype(np.uint8) * 255).save(path, quality=75)
    with Image.open(path) as image:
        assert ((np.asarray(image) != 0) != defect).any()
    np.testing.assert_array_equal(np.asarray(load_mask(path)) != 0, defect)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PatchCoreError, match=r"pipe\.png: it is no regular file"):
        load_image(tmp_path / "pipe.png")
