"""Which images and masks a category has: walking, pairing, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from golden import DATA
from image_files import one_line, write_category, write_plates
from patchcore.datasets.geometry import Geometry, load_masks
from patchcore.datasets.images import load_image
from patchcore.datasets.layout import scan_test, scan_train
from patchcore.types import PatchCoreError, Sample


def scan_category(root: Path, category: str) -> tuple[list[Sample], list[Sample]]:
    return scan_train(root, category), scan_test(root, category)[0]


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    return write_plates(tmp_path / "root")


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


def test_a_category_without_training_images_is_suggested(plates: Path) -> None:
    write_category(plates, "tubes/test/good/0.png")
    with pytest.raises(PatchCoreError, match="did you mean 'tubes'"):
        scan_test(plates, "tube")


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


def test_training_images_are_needed_to_train_only(plates: Path) -> None:
    before = scan_test(plates, "plate")
    (plates / "plate" / "train").rename(plates / "elsewhere")
    with pytest.raises(PatchCoreError, match=r"no folder .*good: expected the good images") as error:
        scan_train(plates, "plate")
    one_line(error)
    assert scan_test(plates, "plate") == before


def test_without_the_folder_test_there_are_no_test_images(plates: Path) -> None:
    (plates / "plate" / "test").rename(plates / "elsewhere")
    assert len(scan_train(plates, "plate")) == 2
    assert scan_test(plates, "plate") == ([], 0)


def test_images_directly_in_test_have_no_label(plates: Path) -> None:
    labelled, _ = scan_test(plates, "plate")
    write_category(plates, "plate/test/new.png", "plate/test/newer.png")
    assert scan_test(plates, "plate") == (labelled, 2)
    for folder in ("good", "scratches"):
        remove_images(plates / "plate" / "test" / folder)
    assert scan_test(plates, "plate") == ([], 2)


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


@pytest.mark.parametrize("module", ["patchcore.config", "patchcore.datasets.layout"])
def test_names_and_folders_cost_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
