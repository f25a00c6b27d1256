"""The synthetic data set: reproducible, exact masks, whole categories or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcore.synthetic import generate as generate_module
from patchcore.synthetic.generate import generate, render
from patchcore.synthetic.parts import CATEGORIES
from patchcore.types import PatchCoreError

DEFECTS = [(category, defect) for category, recipe in CATEGORIES.items() for defect in recipe.faults]
SMALL = {"num_train": 3, "num_test_good": 2, "num_per_defect": 2, "size": 64}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_gives_identical_bytes_and_another_seed_other_images(tmp_path: Path) -> None:
    generate(tmp_path / "a", **SMALL)
    generate(tmp_path / "b", **SMALL)
    generate(tmp_path / "c", **SMALL, seed=1)
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if "ground_truth" not in name)


def test_an_image_does_not_depend_on_how_many_others_are_made(tmp_path: Path) -> None:
    generate(tmp_path / "small", **SMALL)
    larger = {"num_train": 4, "num_test_good": 3, "num_per_defect": 4, "size": 64}
    generate(tmp_path / "large", **larger, categories=["bracket_black", "metal_plate"])
    small, large = files(tmp_path / "small"), files(tmp_path / "large")
    shared = small.keys() & large.keys()
    assert shared == {name for name in small if name.startswith(("bracket_black", "metal_plate"))}
    assert all(small[name] == large[name] for name in shared)


def test_all_images_of_a_category_differ(tmp_path: Path) -> None:
    generate(tmp_path, **SMALL, categories=["bracket_white"])
    images = [content for name, content in files(tmp_path).items() if "ground_truth" not in name]
    assert len(set(images)) == len(images) == 3 + 2 + 3 * 2


def test_layout_counts_and_nothing_else(tmp_path: Path) -> None:
    generate(tmp_path, **SMALL)
    expected = set()
    for category, recipe in CATEGORIES.items():
        expected |= {f"{category}/train/good/{i:03d}.png" for i in range(3)}
        expected |= {f"{category}/test/good/{i:03d}.png" for i in range(2)}
        for defect in recipe.faults:
            expected |= {f"{category}/test/{defect}/{i:03d}.png" for i in range(2)}
            expected |= {f"{category}/ground_truth/{defect}/{i:03d}_mask.png" for i in range(2)}
    assert {Path(name).as_posix() for name in files(tmp_path)} == expected
    assert {path.name for path in tmp_path.iterdir()} == set(CATEGORIES)


def test_files_are_rgb_images_and_binary_masks_of_the_size_asked_for(tmp_path: Path) -> None:
    generate(tmp_path, **{**SMALL, "size": 80}, categories=["metal_plate"])
    for path in tmp_path.rglob("*.png"):
        pixels = np.asarray(Image.open(path))
        if "ground_truth" in path.parts:
            assert pixels.shape == (80, 80)
            assert set(np.unique(pixels)) == {0, 255}
        else:
            assert pixels.shape == (80, 80, 3)


@pytest.mark.parametrize(("category", "defect"), DEFECTS)
def test_the_mask_is_exactly_what_the_fault_changed_visibly(category: str, defect: str) -> None:
    for index in range(6):
        picture = render(category, f"test/{defect}", index, size=64)
        change = np.abs(picture.image.astype(int) - picture.clean).max(axis=2)
        assert picture.mask.any()
        assert change[picture.mask].min() >= generate_module.MIN_CHANGE
        assert change[~picture.mask].max() == 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_pictures_have_no_fault(category: str) -> None:
    for folder in ("train/good", "test/good"):
        picture = render(category, folder, 0, size=64)
        assert not picture.mask.any()
        np.testing.assert_array_equal(picture.image, picture.clean)


def test_severities_spread_over_the_whole_range() -> None:
    """Six pictures leave no gap of a third."""
    severities = np.sort([generate_module.spread_severity(index) for index in range(6)])
    assert np.diff(severities, prepend=0, append=1).max() < 1 / 3


def test_an_occupied_folder_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    kept = tmp_path / "bracket_brown" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("precious")
    with pytest.raises(PatchCoreError, match=r"bracket_brown exists .* remove it or write somewhere else"):
        generate(tmp_path, **SMALL)
    assert files(tmp_path) == {str(kept.relative_to(tmp_path)): b"precious"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "metal_plate").mkdir()
    generate(tmp_path, **SMALL, categories=["metal_plate"])
    assert (tmp_path / "metal_plate" / "train" / "good" / "002.png").is_file()


def test_a_file_in_place_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(PatchCoreError, match="is a file"):
        generate(tmp_path / "out", **SMALL)


def test_an_interruption_leaves_whole_categories_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(category: str, folder: str, index: int, **settings: int) -> generate_module.Picture:
        if category == "bracket_white" and folder == "test/good":
            raise KeyboardInterrupt
        return render(category, folder, index, **settings)

    monkeypatch.setattr(generate_module, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["metal_plate"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"num_test_good": 0}, "num_test_good must be at least 1, got 0"),
        ({"num_per_defect": -1}, "num_per_defect must be at least 1, got -1"),
        ({"size": 63}, "size must be at least 64, got 63"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"categories": []}, "categories must be some of metal_plate.* got"),
        ({"categories": ["tubes"]}, "categories must be some of metal_plate.* got .*tubes"),
        ({"categories": ["metal_plate", "metal_plate"]}, "each once"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "out", **{**SMALL, **wrong})
    assert not (tmp_path / "out").exists()
