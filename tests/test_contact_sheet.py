"""Contact sheets: every picture in its cell with its caption, framed where it warns."""

import numpy as np
import pytest
from PIL import Image

from patchcore.pictures.contact_sheet import WARNING, draw_contact_sheet
from patchcore.pictures.text import BACKGROUND, SURFACE

# Thumbnails of 160 px, gaps of 16 px, margins of 20 px, 56 px for the title; frames of 4 px lie around the thumbnail.
SIDE, STEP, MARGIN, TOP, ROW = 160, 176, 20, 56, 216


def colour_of(index: int) -> tuple[int, int, int]:
    return 5 * index, 200, 255 - 5 * index


def draw(count: int, title: str = "", caption: str = "", size=(30, 30), warned=()) -> np.ndarray:
    entries = [(Image.new("RGB", size, colour_of(index)), caption, index in warned) for index in range(count)]
    return np.asarray(draw_contact_sheet(title, entries))


def corner(index: int, columns: int = 6) -> tuple[int, int]:
    row, column = divmod(index, columns)
    return TOP + row * ROW, MARGIN + column * STEP


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 3, 1), (4, 4, 1), (6, 6, 1), (7, 6, 2), (40, 6, 7)])
def test_pictures_stand_in_rows_of_at_most_six(count, columns, rows):
    sheet = draw(count)
    assert sheet.shape == (TOP + rows * ROW, 2 * MARGIN + columns * STEP - 16, 3)
    for index in range(columns * rows):
        top, left = corner(index, columns)
        cell = sheet[top : top + SIDE, left : left + SIDE]
        assert (cell == (colour_of(index) if index < count else BACKGROUND)).all()


def test_frames_surround_the_warned_and_hide_nothing():
    plain, framed = draw(8), draw(8, warned=(0, 6))
    expected = np.zeros(plain.shape[:2], bool)
    for index in (0, 6):
        top, left = corner(index)
        expected[top - 4 : top + SIDE + 4, left - 4 : left + SIDE + 4] = True
        expected[top : top + SIDE, left : left + SIDE] = False
    np.testing.assert_array_equal((plain != framed).any(axis=2), expected)
    assert (framed[expected] == WARNING).all()


@pytest.mark.parametrize(
    "caption", ["031.png\nscore 67012", "name" * 40 + "\n" + "score " * 40, "金属板 " * 40, "🙂\0\udcff"]
)
def test_captions_stay_below_their_picture(caption):
    changed = (draw(7, caption=caption) != draw(7)).any(axis=2)
    for index in range(7):
        top, left = corner(index)
        below = changed[top + SIDE + 8 : top + SIDE + 8 + 2 * 16, left : left + SIDE]
        assert below.any()
        below[:] = False
    assert not changed.any()


def test_long_titles_stay_above_the_pictures():
    changed = (draw(1, title="suspicious training images " * 20) != draw(1)).any(axis=2)
    assert changed[:TOP].any()
    assert not changed[TOP:].any()
    assert not changed[:, -MARGIN + 1 :].any()


@pytest.mark.parametrize(("size", "shown"), [((400, 100), (160, 40)), ((100, 400), (40, 160)), ((3000, 2), (160, 1))])
def test_pictures_of_any_shape_lie_in_the_middle_of_their_cell(size, shown):
    top, left = corner(1, 3)
    cell = draw(2, size=size)[top : top + SIDE, left : left + SIDE]
    picture = (cell == colour_of(1)).all(axis=2)
    rows, columns = np.nonzero(picture)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == shown
    assert picture.sum() == shown[0] * shown[1]
    assert (cell[~picture] == SURFACE).all()
    assert abs(rows.min() + rows.max() - 159) <= 1
    assert abs(columns.min() + columns.max() - 159) <= 1


def test_pictures_of_other_modes_are_shown_too():
    sheet = np.asarray(draw_contact_sheet("x", [(Image.new("L", (9, 9), 77), "", False)]))
    assert (sheet[TOP : TOP + SIDE, MARGIN : MARGIN + SIDE] == 77).all()


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        draw_contact_sheet("x", [])
