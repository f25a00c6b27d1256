"""The own PNG encoder, against Pillow's decoder."""

import io

import numpy as np
import pytest
from PIL import Image

from patchcore.pictures import png
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.overlay import draw_overlay
from patchcore.synthetic.generate import generate

RANDOM = np.random.default_rng(0)
PICTURES = {
    "noise": RANDOM.integers(0, 256, (37, 53, 3), np.uint8),
    "flat": np.full((64, 200, 3), 255, np.uint8),
    "steps that wrap": np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8) * 7,
    "one pixel": np.array([[[1, 2, 3]]], np.uint8),
    "one row": RANDOM.integers(0, 256, (1, 999, 3), np.uint8),
    "one column": RANDOM.integers(0, 256, (999, 1, 3), np.uint8),
    "larger than the window of the compression": RANDOM.integers(0, 4, (900, 700, 3), np.uint8),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pillow_reads_the_same_pixels(name):
    file = png.encode(Image.fromarray(PICTURES[name]))
    with Image.open(io.BytesIO(file)) as image:
        image.verify()  # the checksums of all chunks
    with Image.open(io.BytesIO(file)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), PICTURES[name])


def test_pillow_reads_the_same_text():
    text = {"Title": "ü 金 🔩", "Raw score": "0.1", "Empty": ""}
    with Image.open(io.BytesIO(png.encode(Image.new("RGB", (2, 2)), text))) as image:
        image.verify()
        assert image.info == text


@pytest.mark.parametrize("picture", [Image.new("L", (4, 4)), Image.new("RGBA", (4, 4)), Image.new("RGB", (0, 4))])
def test_other_pictures_are_refused(picture):
    with pytest.raises(ValueError, match="expected an RGB picture"):
        png.encode(picture)


def test_overlays_of_parts_are_smaller_than_by_pillow(tmp_path):
    generate(tmp_path, categories=("metal_plate",), num_train=1, num_test_good=1, num_per_defect=1, size=224)
    rows, columns = np.mgrid[:224, :224] / 40
    heat = np.exp(-((rows - 3) ** 2) - (columns - 2) ** 2)
    for path in sorted(tmp_path.rglob("test/*/*.png")):
        sheet = draw_overlay(Image.open(path), heat > 0.5, heat, scale=HeatScale(low=0, high=1), heading=path.name)
        quickest = io.BytesIO()
        sheet.save(quickest, "PNG", compress_level=1)
        assert len(png.encode(sheet)) < 0.95 * len(quickest.getvalue())
