"""Resizing and cropping, against torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from image_files import noise
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import load_image
from patchcore.types import MapRegion


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 64), (101, 67), (67, 101), (37, 211), (211, 37), (13, 13), (48, 48), (48, 49), (49, 48), (1, 3)],
)
@pytest.mark.parametrize(("resize", "imagesize"), [(48, 48), (48, 47), (48, 33), (47, 32), (37, 1)])
def test_geometry_equals_torchvision(width: int, height: int, resize: int, imagesize: int) -> None:
    geometry = Geometry(resize=resize, imagesize=imagesize)
    image = noise(width, height)
    picture = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(imagesize)])(image)
    ours = geometry.image(image)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, transforms.PILToTensor()(picture))
    np.testing.assert_array_equal(np.asarray(geometry.picture(image)), np.asarray(picture))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (101, 67), (67, 101), (37, 211), (13, 17)])
@pytest.mark.parametrize(("resize", "imagesize"), [(48, 48), (48, 33), (47, 32)])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_mask_geometry_equals_torchvision(width: int, height: int, resize: int, imagesize: int, mode: str) -> None:
    mask = noise(width, height).convert("L").point(lambda value: 255 * (value > 127)).convert(mode)
    nearest = transforms.InterpolationMode.NEAREST
    expected = transforms.Compose(
        [transforms.Resize(resize, nearest), transforms.CenterCrop(imagesize), transforms.ToTensor()]
    )(mask)
    ours = Geometry(resize=resize, imagesize=imagesize).mask(mask)
    assert ours.dtype == bool
    np.testing.assert_array_equal(ours, expected[0].numpy() == 1)


def test_geometry_checks_itself() -> None:
    with pytest.raises(ValueError, match=r"imagesize 225 is larger than resize 224.*pad"):
        Geometry(resize=224, imagesize=225)
    with pytest.raises(ValueError, match=r"imagesize must be at least 1, got 0"):
        Geometry(resize=224, imagesize=0)
    with pytest.raises(ValueError, match=r"mode RGB, got L; read it with load_image"):
        Geometry(resize=8, imagesize=8).image(Image.new("L", (8, 8)))


def test_reduced_decoding_leaves_out_pixels_that_resizing_would_average(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.linear_gradient("L").resize((1200, 900)).convert("RGB").save(path, quality=95)
    whole, reduced = Geometry(resize=64, imagesize=60), Geometry(resize=64, imagesize=60, reduced_decoding=True)
    assert load_image(path, 2 * 64).size == (300, 225)
    difference = (whole.read(path).int() - reduced.read(path).int()).abs()
    assert 0 < difference.float().mean() < 0.5
    assert torch.equal(whole.read(path), whole.image(load_image(path)))


def test_reduced_decoding_leaves_small_and_lossless_images_alone(tmp_path: Path) -> None:
    reduced = Geometry(resize=64, imagesize=60, reduced_decoding=True)
    for name, size in (("large.png", (600, 500)), ("small.jpg", (255, 255))):
        noise(*size).save(tmp_path / name)
        assert torch.equal(reduced.read(tmp_path / name), reduced.image(load_image(tmp_path / name)))


SHAPES = [(512, 512), (640, 480), (480, 640), (60, 40), (40, 60), (50, 50), (300, 100)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(("resize", "imagesize"), [(128, 128), (128, 112)])
def test_a_mark_in_the_original_lies_in_the_box_of_what_the_network_sees_of_it(
    size: tuple[int, int], resize: int, imagesize: int
) -> None:
    geometry = Geometry(resize=resize, imagesize=imagesize)
    width, height = size
    marked = (int(0.4 * width), int(0.45 * height), int(0.55 * width), int(0.7 * height))
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), marked)
    rows, columns = np.nonzero(np.asarray(geometry.picture(image))[..., 0] > 127)
    seen = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)

    # Off by less than one pixel of the network: half a pixel of resampling, then outwards to a whole one.
    pixel = min(size) / resize
    np.testing.assert_allclose(geometry.box_in_image(seen, size), marked, atol=0.5 * pixel + 1)
    region = geometry.region_in_image(MapRegion(box=seen, pixels=len(rows), peak=7), size)
    left, top, right, bottom = marked
    assert region.box == geometry.box_in_image(seen, size)
    assert region.peak == 7
    assert region.area == pytest.approx((right - left) * (bottom - top), rel=0.1)
    assert region.share == pytest.approx(region.area / (width * height))


def test_boxes_solved_by_hand() -> None:
    # 100 x 50 is resized to 20 x 10, and 10 x 10 are cropped 5 from the left: a network pixel is 5 x 5 of the image.
    geometry = Geometry(resize=10, imagesize=10)
    assert geometry.box_in_image((0, 0, 10, 10), (100, 50)) == (25, 0, 75, 50)
    assert geometry.box_in_image((3, 2, 4, 7), (100, 50)) == (40, 10, 45, 35)
    region = geometry.region_in_image(MapRegion(box=(3, 2, 4, 7), pixels=4, peak=1), (100, 50))
    assert (region.area, region.share) == (100, 0.02)
    # 7 x 7 enlarged to 10 x 10: pixel 3 reaches from 2.1 to 2.8, and edges are rounded outwards.
    assert geometry.box_in_image((3, 3, 4, 4), (7, 7)) == (2, 2, 3, 3)
    assert geometry.box_in_image((1, 1, 9, 10), (7, 7)) == (0, 0, 7, 7)


@pytest.mark.parametrize("size", [*SHAPES, (13, 211), (1, 3), (101, 67)])
@pytest.mark.parametrize(("resize", "imagesize"), [(47, 47), (48, 33), (37, 1)])
def test_boxes_stay_within_the_image_and_hold_at_least_a_pixel(
    size: tuple[int, int], resize: int, imagesize: int
) -> None:
    geometry = Geometry(resize=resize, imagesize=imagesize)
    whole = geometry.box_in_image((0, 0, imagesize, imagesize), size)
    corner = geometry.box_in_image((imagesize - 1, imagesize - 1, imagesize, imagesize), size)
    for left, top, right, bottom in (whole, corner):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
    assert corner[2:] == whole[2:]
    if imagesize == resize and size[0] == size[1]:
        assert whole == (0, 0, *size)
    everything = MapRegion(box=(0, 0, imagesize, imagesize), pixels=imagesize**2, peak=0)
    assert 0 < geometry.region_in_image(everything, size).share <= 1


@pytest.mark.parametrize("box", [(0, 0, 11, 5), (-1, 0, 5, 5), (5, 0, 5, 5), (0, 6, 5, 5)])
def test_boxes_outside_of_the_networks_input_are_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="within 10 x 10 network pixels"):
        Geometry(resize=20, imagesize=10).box_in_image(box, (100, 100))
