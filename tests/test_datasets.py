from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from patchcore.datasets import DATASETS
from patchcore.datasets.category import load_masks, split_train
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import load_image, load_mask
from patchcore.datasets.layout import scan_category
from patchcore.datasets.loader import ImageDataset, image_loader
from patchcore.types import PatchCoreError, Sample

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def write_image(path: Path, color: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (color,) * 3 if mode == "RGB" else color).save(path)
    return path


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_category(root: Path, *paths: str) -> Path:
    for path in paths:
        write_image(root / path)
    return root


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """A root with one category: 2 training images, 1 good and 2 scratched test images with their masks."""
    return write_category(
        tmp_path / "root",
        "plate/train/good/000.png",
        "plate/train/good/001.png",
        "plate/test/good/000.png",
        "plate/test/scratches/000.png",
        "plate/test/scratches/001.png",
        "plate/ground_truth/scratches/000_mask.png",
        "plate/ground_truth/scratches/001_mask.png",
    )


def sample(path: Path, defect: str = "good", mask_path: Path | None = None) -> Sample:
    return Sample(path=path, category="plate", split="test", defect=defect, mask_path=mask_path)


def one_line(error: pytest.ExceptionInfo[PatchCoreError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Names


def test_data_sets_have_their_official_categories() -> None:
    assert set(DATASETS) == {"mpdd", "mvtec"}
    assert DATASETS["mpdd"] == (
        "bracket_black",
        "bracket_brown",
        "bracket_white",
        "connector",
        "metal_plate",
        "tubes",
    )
    assert len(set(DATASETS["mvtec"])) == 15
    assert {"bottle", "metal_nut", "screw", "zipper"} <= set(DATASETS["mvtec"])


def test_names_cost_no_torch() -> None:
    code = "import sys, patchcore.datasets; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# Walking and pairing


def test_scan_lists_by_folder_then_name(plates: Path) -> None:
    write_category(plates, "plate/test/bend/009.png", "plate/ground_truth/bend/009_mask.png")
    train, test = scan_category(plates, "plate")
    folder = plates / "plate"
    assert [s.path for s in train] == [folder / "train/good/000.png", folder / "train/good/001.png"]
    assert all((s.category, s.split, s.defect, s.mask_path) == ("plate", "train", "good", None) for s in train)
    assert [(s.defect, s.path.name, s.is_defective) for s in test] == [
        ("bend", "009.png", True),
        ("good", "000.png", False),
        ("scratches", "000.png", True),
        ("scratches", "001.png", True),
    ]
    assert all((s.category, s.split) == ("plate", "test") for s in test)
    assert [s.mask_path for s in test] == [
        folder / "ground_truth/bend/009_mask.png",
        None,
        folder / "ground_truth/scratches/000_mask.png",
        folder / "ground_truth/scratches/001_mask.png",
    ]


def test_scan_ignores_strays(plates: Path) -> None:
    before = scan_category(plates, "plate")
    folder = plates / "plate"
    for stray in ("train/good/._000.png", "test/scratches/Thumbs.db", "test/scratches/notes.txt", "x.png"):
        (folder / stray).write_bytes(b"no image")
    write_category(
        folder,
        "test/scratches/deeper/002.png",
        "test/.ipynb_checkpoints/000.png",
        "test/stray.png",
        "train/bad/000.png",
        "train/good/000.png.d/000.png",
        "ground_truth/good/000_mask.png",
        "ground_truth/scratches/._000_mask.png",
        "ground_truth/scratches/orphan_mask.png",
    )
    (folder / "train" / "good" / "folder.png").mkdir()
    assert scan_category(plates, "plate") == before


def test_every_suffix_in_any_case_is_an_image(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "c.jpeg", "d.Bmp", "e.tif", "f.TIFF"]
    write_category(tmp_path, *(f"plate/train/good/{name}" for name in names), "plate/test/good/0.png")
    train, _ = scan_category(tmp_path, "plate")
    assert [s.path.name for s in train] == names


def test_masks_pair_by_name_not_by_position(tmp_path: Path) -> None:
    # Sorted, the images are 10, 9, a.b and the masks 10_mask, 9 and a.b_mask or, by suffix, any order.
    write_category(
        tmp_path,
        "plate/train/good/0.png",
        "plate/test/dent/9.png",
        "plate/test/dent/a.b.JPG",
        "plate/test/dent/10.png",
        "plate/ground_truth/dent/9.bmp",
        "plate/ground_truth/dent/0.png",
        "plate/ground_truth/dent/10_mask.tif",
        "plate/ground_truth/dent/a.b_mask.png",
    )
    _, test = scan_category(tmp_path, "plate")
    assert {s.path.name: s.mask_path.name for s in test if s.mask_path} == {
        "10.png": "10_mask.tif",
        "9.png": "9.bmp",
        "a.b.JPG": "a.b_mask.png",
    }


def test_names_with_spaces_and_unicode(tmp_path: Path) -> None:
    root = tmp_path / "Prüfstand Süd"
    write_category(
        root,
        "Träger 7/train/good/Bild 1.png",
        "Träger 7/test/Kratzer & Rost/錆 01.png",
        "Träger 7/ground_truth/Kratzer & Rost/錆 01_mask.png",
    )
    train, test = scan_category(root, "Träger 7")
    assert load_image(train[0].path).size == (6, 4)
    assert test[0].defect == "Kratzer & Rost"
    masks = load_masks(test, Geometry(resize=4, imagesize=4))
    assert masks is not None
    assert masks.shape == (1, 4, 4)


def test_without_ground_truth_no_sample_has_a_mask(tmp_path: Path) -> None:
    write_category(tmp_path, "plate/train/good/0.png", "plate/test/dent/0.png", "plate/test/good/0.png")
    _, test = scan_category(tmp_path, "plate")
    assert [(s.defect, s.mask_path) for s in test] == [("dent", None), ("good", None)]
    assert load_masks(test, Geometry(resize=4, imagesize=4)) is None


@pytest.mark.parametrize("whole_folder", [False, True])
def test_missing_mask_names_the_image_and_the_mask(plates: Path, whole_folder: bool) -> None:
    masks = plates / "plate" / "ground_truth" / "scratches"
    (masks / "001_mask.png").unlink()
    if whole_folder:
        (masks / "000_mask.png").unlink()
        masks.rmdir()
    name = "000" if whole_folder else "001"
    with pytest.raises(PatchCoreError) as error:
        scan_category(plates, "plate")
    message = one_line(error)
    assert str(plates / "plate" / "test" / "scratches" / f"{name}.png") in message
    assert str(masks / f"{name}_mask.png") in message


def test_two_masks_for_one_image(plates: Path) -> None:
    write_category(plates, "plate/ground_truth/scratches/000.bmp")
    with pytest.raises(PatchCoreError, match=r"several masks .*000\.png: 000_mask\.png and 000\.bmp") as error:
        scan_category(plates, "plate")
    one_line(error)


def test_two_images_for_one_mask(plates: Path) -> None:
    write_category(plates, "plate/test/scratches/000.jpg")
    with pytest.raises(PatchCoreError, match=r"000\.jpg and 000\.png in .* claim .*000_mask\.png") as error:
        scan_category(plates, "plate")
    one_line(error)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(PatchCoreError, match=r"no folder .*nowhere") as error:
        scan_category(tmp_path / "nowhere", "plate")
    one_line(error)


@pytest.mark.parametrize("category", ["plates", "Plate", "plate/"])
def test_near_miss_of_a_category(plates: Path, category: str) -> None:
    write_category(plates, "tubes/train/good/0.png")
    (plates / "no category").mkdir()
    with pytest.raises(PatchCoreError) as error:
        scan_category(plates, category)
    message = one_line(error)
    assert repr(category) in message
    assert message.endswith("did you mean 'plate'? those there: plate, tubes")


@pytest.mark.parametrize("category", ["gear wheel", "", ".", "..", "plate/train"])
def test_missing_category(plates: Path, category: str) -> None:
    with pytest.raises(PatchCoreError, match=r"no category .*those there: plate$") as error:
        scan_category(plates, category)
    one_line(error)


def test_root_without_categories(tmp_path: Path) -> None:
    with pytest.raises(PatchCoreError, match=r"no category 'plate'.*no folder there has a folder train"):
        scan_category(tmp_path, "plate")


def test_root_that_is_a_category_names_its_parent(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plates / "plate")
    with pytest.raises(PatchCoreError) as error:
        scan_category(Path(), "plate")
    assert one_line(error).endswith(f"pass {plates} and the category plate")


def remove_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("train", r"no folder .*good: expected the good images"),
        ("test", r"no folder .*test: expected a folder"),
    ],
)
def test_missing_folder(plates: Path, folder: str, expected: str) -> None:
    (plates / "plate" / folder).rename(plates / "elsewhere")
    with pytest.raises(PatchCoreError, match=expected) as error:
        scan_category(plates, "plate")
    one_line(error)


@pytest.mark.parametrize("folder", ["train/good", "test"])
def test_folder_without_images(plates: Path, folder: str) -> None:
    remove_images(plates / "plate" / folder)
    with pytest.raises(PatchCoreError, match=r"no image in .*expected \*\.png \*\.jpg") as error:
        scan_category(plates, "plate")
    assert str(plates / "plate" / folder) in one_line(error)


def test_misspelt_good_would_turn_labels_around(plates: Path) -> None:
    (plates / "plate" / "test" / "good").rename(plates / "plate" / "test" / "Good")
    with pytest.raises(PatchCoreError, match="rename it to 'good'"):
        scan_category(plates, "plate")


def refuse_to_list(refused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse as the system would: real permissions do not bind an administrator, who may run the tests."""
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder) == refused:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)


def test_unreadable_folder(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = plates / "plate" / "ground_truth"
    refuse_to_list(refused, monkeypatch)
    with pytest.raises(PatchCoreError) as error:
        scan_category(plates, "plate")
    assert one_line(error).startswith(f"cannot read the folder {refused}: Permission denied")


def test_unreadable_folder_is_no_suggestion(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plates / "plates").mkdir()
    refuse_to_list(plates / "plates", monkeypatch)
    with pytest.raises(PatchCoreError, match=r"did you mean 'plate'\? those there: plate$"):
        scan_category(plates, "plates2")


def test_a_dead_link_is_named_not_dropped(plates: Path) -> None:
    link = plates / "plate" / "train" / "good" / "002.png"
    try:
        link.symlink_to(plates / "gone.png")
    except OSError:
        pytest.skip("symbolic links are not allowed here")
    train, _ = scan_category(plates, "plate")
    assert train[-1].path == link
    with pytest.raises(PatchCoreError, match=r"002\.png: No such file"):
        load_image(link)


# Splitting


SAMPLES = [sample(Path(f"{i:03}.png")) for i in range(10)]


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


# Reading images

# One row of two pixels, in RGB, whatever the file's mode.
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


# Reading masks


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


# Geometry


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


# Batches

GEOMETRY = Geometry(resize=12, imagesize=8)


@pytest.fixture
def noisy(tmp_path: Path) -> list[Sample]:
    samples = [sample(tmp_path / f"{i:03}.png") for i in range(11)]
    for i, one in enumerate(samples):
        noise(20, 17, seed=i).save(one.path)
    return samples


def test_dataset_reads_in_the_order_of_the_samples(noisy: list[Sample]) -> None:
    dataset = ImageDataset(noisy[::-1], GEOMETRY)
    assert len(dataset) == 11
    for i in range(11):
        assert torch.equal(dataset[i], GEOMETRY.image(load_image(noisy[10 - i].path)))


def test_augment_covers_the_symmetries_of_the_square(noisy: list[Sample]) -> None:
    plain, augmented = ImageDataset(noisy[:2], GEOMETRY), ImageDataset(noisy[:2], GEOMETRY, augment=True)
    assert len(augmented) == 16
    for i in range(2):
        image = plain[i].numpy()
        views = [augmented[8 * i + k].numpy() for k in range(8)]
        np.testing.assert_array_equal(views[0], image)
        turned = [np.rot90(image, k, (1, 2)) for k in range(4)]
        expected = {view.tobytes() for view in [*turned, *(np.flip(view, 2) for view in turned)]}
        assert len(expected) == 8
        assert {view.tobytes() for view in views} == expected
        # Closed: to turn or to mirror a view gives a view again.
        assert {np.rot90(view, 1, (1, 2)).tobytes() for view in views} == expected
        assert {np.flip(view, 1).tobytes() for view in views} == expected


def test_augmented_views_do_not_share_memory(noisy: list[Sample]) -> None:
    dataset = ImageDataset(noisy, GEOMETRY, augment=True)
    expected = dataset[0].clone()
    for k in range(8):
        dataset[k].zero_()
    assert torch.equal(dataset[0], expected)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
@pytest.mark.parametrize("augment", [False, True])
def test_loader_keeps_the_order(noisy: list[Sample], num_workers: int, augment: bool) -> None:
    dataset = ImageDataset(noisy, GEOMETRY, augment=augment)
    expected = torch.stack([dataset[i] for i in range(len(dataset))])
    loader = image_loader(dataset, 4, num_workers)
    sizes = [4] * 22 if augment else [4, 4, 3]
    assert len(loader) == len(sizes)
    for _ in range(2):  # a loader can be walked again
        batches = list(loader)
        assert [len(batch) for batch in batches] == sizes
        assert torch.equal(torch.cat(batches), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_of_nothing(num_workers: int) -> None:
    loader = image_loader(ImageDataset([], GEOMETRY), 4, num_workers)
    assert (len(loader), list(loader)) == (0, [])


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_bad_image_in_the_middle_arrives_as_it_was_raised(noisy: list[Sample], num_workers: int) -> None:
    bad = noisy[5].path
    bad.write_bytes(bad.read_bytes()[:100])
    batches = []
    with pytest.raises(PatchCoreError) as error:
        batches.extend(image_loader(ImageDataset(noisy, GEOMETRY), 4, num_workers))
    assert len(batches) == 1  # the whole batch before it
    assert one_line(error).startswith(f"cannot read the image {bad}: ")
    assert not decoding_threads()


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("interruption", [None, RuntimeError, KeyboardInterrupt])
def test_leaving_early_ends_the_threads(noisy: list[Sample], interruption: type[BaseException] | None) -> None:
    reads: list[int] = []

    class Counted(ImageDataset):
        def __getitem__(self, index: int) -> torch.Tensor:
            reads.append(index)
            if index >= 4:
                time.sleep(0.05)  # so that the first batch is out while most of those ahead still wait
            return super().__getitem__(index)

    def walk() -> None:
        for _ in image_loader(Counted(noisy * 20, GEOMETRY), 4, 2):
            assert decoding_threads()
            if interruption:
                raise interruption
            break

    if interruption:
        with pytest.raises(interruption):
            walk()
    else:
        walk()
    assert not decoding_threads()
    assert 4 <= len(reads) <= 8  # the batch taken and what had begun, not all 12 that were queued, or 220


def test_loader_reads_a_batch_ahead_and_no_further(noisy: list[Sample]) -> None:
    reads: list[int] = []
    whole = threading.Event()

    class Signalling(ImageDataset):
        def __getitem__(self, index: int) -> torch.Tensor:
            reads.append(index)
            if index == 9:
                whole.set()
            return super().__getitem__(index)

    batches = iter(image_loader(Signalling(noisy * 20, GEOMETRY), 4, 1))
    next(batches)
    # Nobody has asked for the second batch yet: 4 images taken, 4 ahead, and two for the thread.
    assert whole.wait(timeout=10)
    time.sleep(0.05)
    assert reads == list(range(10))
    batches.close()


@pytest.mark.parametrize(("batch_size", "num_workers", "named"), [(0, 0, "batch_size"), (4, -1, "num_workers")])
def test_loader_checks_itself(batch_size: int, num_workers: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be at least"):
        image_loader(ImageDataset([], GEOMETRY), batch_size, num_workers)


def test_pinning_without_cuda_is_no_error(noisy: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (batch,) = image_loader(ImageDataset(noisy, GEOMETRY), 11, 0, pin_memory=True)
    assert batch.shape == (11, 3, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinning_with_cuda(noisy: list[Sample]) -> None:
    dataset = ImageDataset(noisy, GEOMETRY)
    (pinned,) = image_loader(dataset, 11, 2, pin_memory=True)
    (pageable,) = image_loader(dataset, 11, 2)
    assert pinned.is_pinned()
    assert not pageable.is_pinned()
    assert torch.equal(pinned, pageable)


# Masks of a category


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
    _, test = scan_category(plates, "plate")
    bare = Sample(path=test[1].path, category="plate", split="test", defect="scratches")
    assert load_masks([*test, bare], GEOMETRY) is None


def test_mask_of_another_size_than_its_image(plates: Path) -> None:
    path = write_image(plates / "plate" / "ground_truth" / "scratches" / "001_mask.png", size=(4, 6))
    _, test = scan_category(plates, "plate")
    with pytest.raises(PatchCoreError, match=r"is 4x6, but its image .*001\.png is 6x4") as error:
        load_masks(test, GEOMETRY)
    assert str(path) in one_line(error)


# Real images


@pytest.mark.skipif(not (DATA / "mpdd").is_dir(), reason="../shared/data/mpdd is not there")
def test_metal_plate_is_complete() -> None:
    train, test = scan_category(DATA / "mpdd", "metal_plate")
    assert len(train) == 54
    assert Counter(s.defect for s in test) == {
        "good": 26,
        "major_rust": 14,
        "scratches": 34,
        "total_rust": 23,
    }
    for s in test:
        if s.is_defective:
            assert s.mask_path is not None
            assert s.mask_path.parent.name == s.defect
            assert s.mask_path.name == f"{s.path.stem}_mask.png"
    masks = load_masks(test, Geometry(resize=64, imagesize=56))
    assert masks is not None
    has_defect = masks.any(axis=(1, 2))
    assert not has_defect[[not s.is_defective for s in test]].any()
    assert has_defect.sum() >= 65  # of 71; a small one may lie outside the crop


@pytest.mark.skipif(not (DATA / "mvtec").is_dir(), reason="../shared/data/mvtec is not there")
def test_screw_is_complete() -> None:
    train, test = scan_category(DATA / "mvtec", "screw")
    assert len(train) == 320
    assert Counter(s.defect for s in test) == {
        "good": 21,
        "manipulated_front": 12,
        "scratch_head": 12,
        "scratch_neck": 13,
        "thread_side": 12,
        "thread_top": 12,
    }
    assert all((s.mask_path is not None) == s.is_defective for s in test)


@pytest.mark.skipif(not (DATA / "mvtec_mini").is_dir(), reason="../shared/data/mvtec_mini is not there")
def test_a_real_batch_equals_torchvision() -> None:
    train, _ = scan_category(DATA / "mvtec_mini", "hazelnut")
    reference = transforms.Compose(
        [
            transforms.Resize(200),
            transforms.CenterCrop(160),
            transforms.PILToTensor(),
        ]
    )
    (batch,) = image_loader(ImageDataset(train[:4], Geometry(resize=200, imagesize=160)), 4, 2)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    with_torchvision = torch.stack([reference(Image.open(s.path).convert("RGB")) for s in train[:4]])
    assert torch.equal(batch, with_torchvision)
