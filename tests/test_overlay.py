"""Overlays: every panel shows what it should, odd input does not crash, and what is saved is read back."""

import math

import numpy as np
import pytest
from PIL import Image

from lightness import lightness
from patchcore.pictures import png
from patchcore.pictures.heat import HEAT_COLOURS, HeatScale
from patchcore.pictures.overlay import draw_overlay, read_overlay, save_overlay
from patchcore.pictures.panels import OUTLINE
from patchcore.pictures.text import BACKGROUND, SURFACE

SIDE = 224
# Up to 256 px a panel: 34 px for the heading, margins of 10 px, gaps of 6 px.
TOP, MARGIN, GAP = 34, 10, 6
UNIT = HeatScale(low=0, high=1)


def panels(sheet: Image.Image, side: int = SIDE) -> list[np.ndarray]:
    """The pixels of image, mask and heat map."""
    lefts = [MARGIN + panel * (side + GAP) for panel in range(3)]
    return [np.asarray(sheet.crop((left, TOP, left + side, TOP + side))) for left in lefts]


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[50:90, 100:180] = True
    return mask


@pytest.fixture
def ramp() -> np.ndarray:
    """A map that grows from 0 at the left to 1 at the right."""
    return np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))


def test_image_and_mask_panels_show_their_sources_to_the_pixel(picture, mask, ramp):
    image, truth, _ = panels(draw_overlay(picture, mask, ramp, scale=UNIT, heading="x"))
    np.testing.assert_array_equal(image, np.asarray(picture))
    np.testing.assert_array_equal(truth, np.uint8(255) * np.repeat(mask[..., None], 3, axis=2))


def test_heat_panel_blends_colours_over_the_grey_picture(ramp):
    grey = Image.new("RGB", (SIDE, SIDE), (100, 100, 100))
    heat = panels(draw_overlay(grey, None, ramp, scale=UNIT, heading="x"))[2].astype(float)
    # Opacity 45 % at the low end, 90 % at the high end.
    np.testing.assert_allclose(heat[:, 0], np.tile(0.45 * HEAT_COLOURS[0] + 0.55 * 100, (SIDE, 1)), atol=1)
    np.testing.assert_allclose(heat[:, -1], np.tile(0.9 * HEAT_COLOURS[-1] + 0.1 * 100, (SIDE, 1)), atol=1)
    hot = lightness(heat[0, SIDE // 2 :])
    assert (np.diff(hot) > -0.5).all()
    assert hot[-1] > hot[0] + 30


def test_heat_panel_keeps_the_part_visible_where_it_is_normal(picture):
    heat = panels(draw_overlay(picture, None, np.zeros((SIDE, SIDE), np.float32), scale=UNIT, heading="x"))[2]
    grey = np.asarray(picture.convert("L"))
    assert np.corrcoef(heat.mean(axis=2).ravel(), grey.ravel())[0, 1] > 0.999


def test_outline_surrounds_the_mask_and_hides_none_of_it(picture, mask, ramp):
    plain = panels(draw_overlay(picture, np.zeros_like(mask), ramp, scale=UNIT, heading="x"))[2]
    outlined = panels(draw_overlay(picture, mask, ramp, scale=UNIT, heading="x"))[2]
    changed = (plain != outlined).any(axis=2)
    expected = np.zeros_like(mask)
    expected[[49, 90], 100:180] = True
    expected[50:90, [99, 180]] = True
    np.testing.assert_array_equal(changed, expected)
    assert (outlined[expected] == OUTLINE).all()


def test_without_a_mask_the_panel_says_so(picture, mask, ramp):
    without = draw_overlay(picture, None, ramp, scale=UNIT, heading="x")
    good = draw_overlay(picture, np.zeros_like(mask), ramp, scale=UNIT, heading="x")
    assert without.size == good.size
    assert not panels(good)[1].any()
    panel = panels(without)[1]
    assert (panel[:80] == SURFACE).all()
    assert (panel[100:124] != SURFACE).any()


def test_overlays_do_not_draw_on_each_other(picture, mask, ramp):
    first = draw_overlay(picture, mask, ramp, scale=UNIT, heading="the first")
    draw_overlay(Image.new("RGB", (SIDE, SIDE)), mask, ramp * 0, scale=UNIT, heading="another one, and longer")
    assert draw_overlay(picture, mask, ramp, scale=UNIT, heading="the first").tobytes() == first.tobytes()


def test_colour_bar_runs_from_dark_to_bright_between_the_ends_of_the_scale(picture, ramp):
    sheet = np.asarray(draw_overlay(picture, None, ramp, scale=UNIT, heading="x"))
    row = sheet[TOP + SIDE + 14, -MARGIN - SIDE : -MARGIN].astype(int)  # the middle of the strip below the heat map
    hot = np.flatnonzero((row[:, 0] > 200) & (row[:, 2] < 120))  # orange and amber: neither text nor ground
    assert len(hot) > 20
    steps = lightness(row[hot[0] - 40 : hot[-1]].astype(float))
    assert (np.diff(steps) >= 0).all()
    other = np.asarray(draw_overlay(picture, None, ramp, scale=HeatScale(low=0, high=7), heading="x"))
    assert (other[TOP + SIDE :] != sheet[TOP + SIDE :]).any()


def test_pictures_of_any_size_and_mode_are_shown_at_the_size_of_the_map(mask, ramp):
    sheet = draw_overlay(Image.new("L", (900, 500), 77), mask, ramp, scale=UNIT, heading="x")
    assert (panels(sheet)[0] == 77).all()


def test_small_maps_are_enlarged_by_a_whole_factor():
    mask = np.zeros((32, 32), bool)
    mask[4, 7] = True
    picture = Image.new("RGB", (32, 32), (10, 200, 30))
    image, truth, _ = panels(draw_overlay(picture, mask, np.zeros((32, 32)), scale=UNIT, heading="x"), side=192)
    assert (image == (10, 200, 30)).all()
    expected = np.zeros((192, 192), bool)
    expected[24:30, 42:48] = True
    np.testing.assert_array_equal(truth[..., 0] == 255, expected)


@pytest.mark.parametrize("shape", [(320, 320), (100, 300), (300, 100), (1, 1)])
def test_maps_of_any_shape(shape):
    sheet = draw_overlay(Image.new("RGB", (50, 50)), np.ones(shape, bool), np.ones(shape), scale=UNIT, heading="x")
    assert sheet.mode == "RGB"


def test_mask_of_another_shape_is_refused(picture, ramp):
    with pytest.raises(ValueError, match=r"mask has shape \(8, 8\), expected \(224, 224\)"):
        draw_overlay(picture, np.zeros((8, 8), bool), ramp, scale=UNIT, heading="x")


@pytest.mark.parametrize("scale", [HeatScale(low=-1.2345e-30, high=-1.2345e-31), HeatScale(low=-1e30, high=1e30)])
def test_long_numbers_leave_the_other_panels_alone(ramp, scale):
    sheet = np.asarray(draw_overlay(Image.new("RGB", (SIDE, SIDE)), None, ramp[:, :32][:32], scale=scale, heading="x"))
    assert (sheet[:, -10:] == BACKGROUND).all()


def test_heading_is_drawn_above_the_panels(picture, ramp):
    blank, named = (
        np.asarray(draw_overlay(picture, None, ramp, scale=UNIT, heading=heading)) for heading in ("", "scratches")
    )
    assert (blank[:TOP] == BACKGROUND).all()
    assert named[:TOP].max() > 200
    np.testing.assert_array_equal(named[TOP:], blank[TOP:])


@pytest.mark.parametrize(
    "heading",
    ["Prüfling_Ölfleck_ß", "金属板_划痕", "деталь", "שלום", "🙂🔩", "undecodable \udcff", "two\nlines\tand\0nul", ""],
)
def test_headings_may_hold_any_character(picture, ramp, heading):
    draw_overlay(picture, None, ramp, scale=UNIT, heading=heading)
    draw_overlay(picture, None, ramp, scale=UNIT, heading=heading * 100)


def test_long_headings_leave_the_margin_free(picture, ramp):
    sheet = np.asarray(draw_overlay(picture, None, ramp, scale=UNIT, heading="metal_plate" + "_long" * 60))
    assert (sheet[:TOP, -10:] == BACKGROUND).all()


# Files


@pytest.mark.parametrize(("height", "width"), [(224, 224), (320, 320), (96, 128), (300, 260)])
def test_what_is_saved_is_read_back(tmp_path, height, width):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[10:40, 20:60] = True
    anomaly_map = rng.random((height, width), dtype=np.float32)
    scores = {"score": 1 / 3, "raw_score": np.float32(0.1)}
    save_overlay(tmp_path / "x.png", Image.fromarray(pixels), mask, anomaly_map, scale=UNIT, title="a/ü.png", **scores)
    read = read_overlay(tmp_path / "x.png")
    assert (read.title, read.score, read.raw_score) == ("a/ü.png", 1 / 3, float(np.float32(0.1)))
    factor = math.ceil(192 / width)
    assert read.image.size == read.mask.size == read.heat_map.size == (factor * width, factor * height)
    np.testing.assert_array_equal(np.asarray(read.mask.convert("1")), mask.repeat(factor, 0).repeat(factor, 1))
    heading = "a/ü.png   score 0.333 (raw 0.1)"
    sheet = draw_overlay(Image.fromarray(pixels), mask, anomaly_map, scale=UNIT, heading=heading)
    assert Image.open(tmp_path / "x.png").tobytes() == sheet.tobytes()
    if factor == 1:
        np.testing.assert_array_equal(np.asarray(read.image), pixels)
        right = sheet.width - round(MARGIN * max(1, width / 256))
        bottom = round(TOP * max(1, width / 256)) + height
        assert read.heat_map.tobytes() == sheet.crop((right - width, bottom - height, right, bottom)).tobytes()


@pytest.mark.parametrize("title", ["金属板_划痕", "undecodable \udcff", "two\nlines and\0nul", ""])
def test_titles_in_files_may_hold_any_character(tmp_path, picture, ramp, title):
    path = tmp_path / "x.png"
    save_overlay(path, picture, None, ramp, scale=UNIT, title=title, score=0, raw_score=1)
    assert read_overlay(path).title == title.replace("\udcff", "?")  # which has no code in UTF-8


TEXTS = {"Title": "x", "Score": "0.5", "Raw score": "7", "Panels": "0,0,2,4 2,0,4,4 4,0,6,4"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Title": None, "Panels": None}, "its PNG text lacks Title, Panels"),
        ({"Score": "high"}, "could not convert string to float: 'high'"),
        ({"Panels": "0,0,2,4 2,0,4,4"}, "not enough values"),
        ({"Panels": "0,0,2,4 2,0,4,4 4,0,7,4"}, "panel 4,0,7,4 does not lie on a sheet of 6 x 4 px"),
        ({"Panels": "0,0,2,4 2,0,4,4 6,0,4,4"}, "panel 6,0,4,4 does not lie"),
        ({"Panels": "0,0,2,4 2,0,4,4 4,0,x,4"}, "invalid literal"),
    ],
)
def test_foreign_pictures_are_refused_in_one_line(tmp_path, change, expected):
    path = tmp_path / "x.png"
    text = {name: value for name, value in (TEXTS | change).items() if value is not None}
    path.write_bytes(png.encode(Image.new("RGB", (6, 4)), TEXTS))
    assert read_overlay(path).raw_score == 7
    path.write_bytes(png.encode(Image.new("RGB", (6, 4)), text))
    with pytest.raises(ValueError, match=expected) as error:
        read_overlay(path)
    assert str(error.value).startswith(f"{path}: cannot read the overlay: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: b"GIF89a", lambda content: content[:2000]])
def test_damaged_files_are_refused_in_one_line(tmp_path, picture, ramp, damage):
    path = tmp_path / "x.png"
    save_overlay(path, picture, None, ramp, scale=UNIT, title="x", score=0, raw_score=1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="cannot read the overlay") as error:
        read_overlay(path)
    assert str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_overlay(tmp_path / "gone.png")
