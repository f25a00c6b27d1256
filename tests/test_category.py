"""Held-out training images, and the masks of the test images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_files import one_line, sample, write_image, write_noise, write_plates
from patchcore.datasets.geometry import Geometry, load_masks
from patchcore.datasets.layout import scan_test, split_train
from patchcore.types import PatchCoreError, Sample

GEOMETRY = Geometry(resize=12, imagesize=8)
SAMPLES = [sample(Path(f"{i:03}.png")) for i in range(10)]


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    return write_plates(tmp_path / "root")


@pytest.fixture
def noisy(tmp_path: Path) -> list[Sample]:
    return write_noise(tmp_path)


@pytest.mark.parametrize(
    ("n", "fraction", "n_kept"), [(10, 0.8, 8), (10, 0.5, 5), (10, 0.99, 9), (10, 0.01, 1), (2, 0.9, 1)]
)
def test_split_sizes(n: int, fraction: float, n_kept: int) -> None:
    train, held_out = split_train(SAMPLES[:n], fraction, np.random.default_rng(0))
    assert (len(train), len(held_out)) == (n_kept, n - n_kept)
    assert sorted(train + held_out, key=lambda s: s.path) == SAMPLES[:n]
    assert train == [s for s in SAMPLES if s in train]
    assert held_out == [s for s in SAMPLES if s in held_out]


def test_split_depends_on_the_generator_alone() -> None:
    splits = [split_train(SAMPLES, 0.5, np.random.default_rng(seed)) for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert splits[2] != splits[0] or splits[3] != splits[0]


def test_split_holds_out_every_image_equally_often() -> None:
    generator = np.random.default_rng(0)
    counts = Counter(s.path.name for _ in range(500) for s in split_train(SAMPLES, 0.7, generator)[1])
    # 150 expected of 500; five standard deviations are 51.
    assert all(100 <= counts[s.path.name] <= 200 for s in SAMPLES)


def test_split_of_one_holds_out_nothing() -> None:
    assert split_train(SAMPLES[:1], 1.0, np.random.default_rng(0)) == (SAMPLES[:1], [])


def test_split_of_one_image_is_impossible() -> None:
    with pytest.raises(PatchCoreError, match="at least 2 training images, got 1") as error:
        split_train(SAMPLES[:1], 0.9, np.random.default_rng(0))
    one_line(error)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.1, float("nan")])
def test_split_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"train_val_split must be in \(0, 1\]"):
        split_train(SAMPLES, fraction, np.random.default_rng(0))


def test_masks_follow_their_samples(tmp_path: Path) -> None:
    mask = np.zeros((8, 16), np.uint8)
    mask[:, 4:8] = 255  # of 16 columns the centre crop keeps 4 to 11
    Image.fromarray(mask).save(tmp_path / "0_mask.png")
    defective = sample(write_image(tmp_path / "0.png", size=(16, 8)), "dent", tmp_path / "0_mask.png")
    good = sample(write_image(tmp_path / "1.png", size=(16, 8)))
    masks = load_masks([good, defective, good], Geometry(resize=8, imagesize=8))
    assert masks is not None
    assert masks.dtype == bool
    expected = np.zeros((3, 8, 8), dtype=bool)
    expected[1, :, :4] = True
    np.testing.assert_array_equal(masks, expected)


def test_masks_of_good_images_alone_are_empty(noisy: list[Sample]) -> None:
    masks = load_masks(noisy, GEOMETRY)
    assert masks is not None
    assert masks.shape == (11, 8, 8)
    assert not masks.any()


def test_one_missing_mask_leaves_all_undefined(plates: Path) -> None:
    test, _ = scan_test(plates, "plate")
    bare = Sample(path=test[1].path, category="plate", split="test", defect="scratches")
    assert load_masks([*test, bare], GEOMETRY) is None


def test_mask_of_another_size_than_its_image(plates: Path) -> None:
    path = write_image(plates / "plate" / "ground_truth" / "scratches" / "001_mask.png", size=(4, 6))
    test, _ = scan_test(plates, "plate")
    with pytest.raises(PatchCoreError, match=r"is 4x6, but its image .*001\.png is 6x4") as error:
        load_masks(test, GEOMETRY)
    assert str(path) in one_line(error)
