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
