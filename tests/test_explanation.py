"""Explanations: the surroundings of a place, and rows of crops with their boxes below the sheet of a verdict."""

import numpy as np
import pytest
from PIL import Image

from image_files import noise
from patchcore.pictures.explanation import Match, Place, cut_surroundings, draw_explanation
from patchcore.pictures.panels import OUTLINE
from patchcore.pictures.text import BACKGROUND, SURFACE
from patchcore.pictures.verdict import ACCEPT

GREY = Image.new("RGB", (192, 192), (120, 120, 120))
BOX = (72, 72, 96, 96)
SHEET = Image.new("RGB", (676, 50), (1, 2, 3))  # as wide as that of a map of 320 px
# Cells of 151 px and gaps of 10 px; between the first and the others 28 px. 40 px for the titles.
CELL, LEFTS, TOP = 151, (12, 191, 352, 513), 50 + 40
ROW = CELL + 5 + 3 * 17 + 12


def place(matches: int, crop: Image.Image = GREY, label: str = "") -> Place:
    nearest = tuple(Match(crop=crop, box=BOX, label=label) for _ in range(matches))
    return Place(crop=crop, box=BOX, label=label, nearest=nearest)


def cells(sheet: np.ndarray, row: int) -> list[np.ndarray]:
    top = TOP + row * ROW
    return [sheet[top : top + CELL, left : left + CELL] for left in LEFTS]


def test_surroundings_are_centred_and_enlarged_by_a_whole_factor():
    picture = noise(100, 80)
    crop, box = cut_surroundings(picture, (40, 30, 48, 38), 64)
    assert crop.size == (192, 192)
    assert box == (28 * 3, 28 * 3, 36 * 3, 36 * 3)
    large, box = cut_surroundings(noise(400, 300), (100, 120, 110, 130), 200)
    assert box == (95, 95, 105, 105)
    np.testing.assert_array_equal(np.asarray(large), np.asarray(noise(400, 300).crop((5, 25, 205, 225))))


@pytest.mark.parametrize("size", [1, 20, 64, 200])
@pytest.mark.parametrize("box", [(0, 0, 8, 8), (92, 72, 100, 80), (0, 40, 5, 44), (50, 79, 51, 80), (0, 0, 100, 80)])
def test_surroundings_hold_the_box_wherever_it_lies(box, size):
    picture = Image.new("RGB", (100, 80), (50, 50, 50))
    picture.paste((250, 50, 50), box)
    crop, inside = cut_surroundings(picture, box, size)
    assert max(crop.size) >= 192
    assert 0 <= inside[0] < inside[2] <= crop.width
    assert 0 <= inside[1] < inside[3] <= crop.height
    factor = (inside[2] - inside[0]) / (box[2] - box[0])
    assert inside[3] - inside[1] == factor * (box[3] - box[1])
    wanted = max(size, box[2] - box[0], box[3] - box[1])
    assert crop.size == (factor * min(100, wanted), factor * min(80, wanted))
    red = np.asarray(crop)[..., 0]
    middle = red[(inside[1] + inside[3]) // 2, (inside[0] + inside[2]) // 2]
    assert middle > 200  # the box shows what was in it
    outside = red.copy()
    margin = int(2 * factor)  # of resampling
    outside[max(0, inside[1] - margin) : inside[3] + margin, max(0, inside[0] - margin) : inside[2] + margin] = 50
    assert (abs(outside.astype(int) - 50) < 5).all()


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 101, 5), (5, 5, 5, 9), (0, 75, 5, 81)])
def test_boxes_outside_of_the_picture_are_refused(box):
    with pytest.raises(ValueError, match=r"expected a box within 100 x 80 px, got"):
        cut_surroundings(noise(100, 80), box, 20)


def test_rows_stand_below_the_verdict():
    sheet = np.asarray(draw_explanation(SHEET, [place(3), place(1), place(2)]))
    assert sheet.shape == (TOP + 3 * ROW, 676, 3)
    assert (sheet[:50] == (1, 2, 3)).all()
    assert (SHEET.size, SHEET.getpixel((0, 0))) == ((676, 50), (1, 2, 3))  # not drawn on
    for row, matches in enumerate((3, 1, 2)):
        for column, cell in enumerate(cells(sheet, row)):
            ground = (120, 120, 120) if column <= matches else BACKGROUND
            assert (cell[[0, -1]] == ground).all()
    assert (sheet[:, -12:][50 + 2 :] == BACKGROUND).all()


def test_boxes_are_outlined_in_the_colour_of_what_they_mark():
    for column, cell in enumerate(cells(np.asarray(draw_explanation(SHEET, [place(3)])), 0)):
        near, far = int(72 * CELL / 192), int(np.ceil(96 * CELL / 192))
        colour = OUTLINE if column == 0 else ACCEPT.ground
        assert (cell[near:far, near - 2 : near] == colour).all()
        assert (cell[far : far + 2, near:far] == colour).all()
        assert (cell[near:far, near:far] == 120).all()
        assert (cell[near:far, near - 3] == BACKGROUND).all()


def test_labels_are_written_below_their_crop_and_nowhere_else():
    blank = np.asarray(draw_explanation(SHEET, [place(3)]))
    long = "a_name_of_a_training_image_that_is_much_too_long.png\nat (1020, 873)\ndistance 67012, and far more of it"
    changed = (np.asarray(draw_explanation(SHEET, [place(3, label=long)])) != blank).any(axis=2)
    below = slice(TOP + CELL + 5, TOP + CELL + 5 + 3 * 17)
    for left in LEFTS:
        for line in range(3):
            top = below.start + line * 17
            assert changed[top : top + 17, left : left + CELL].any()
        changed[below, left : left + CELL] = False
    assert not changed.any()


@pytest.mark.parametrize("size", [(300, 60), (60, 300), (10, 10), (2000, 1)])
def test_crops_of_any_shape_lie_in_the_middle_of_their_cell(size):
    crop = Image.new("RGB", size, (120, 120, 120))
    shown = Place(crop=crop, box=(0, 0, 1, 1), label="", nearest=())
    cell = cells(np.asarray(draw_explanation(SHEET, [shown])), 0)[0]
    assert (cell[CELL // 2, CELL // 2] == 120).all()
    assert (cell == OUTLINE).all(axis=2).any()
    if size[0] != size[1]:
        assert (cell[-1, -1] == SURFACE).all()


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="at least one anomalous place"):
        draw_explanation(SHEET, [])
    with pytest.raises(ValueError, match="at most 3 good patches, got 4"):
        place(4)
