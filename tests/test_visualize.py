"""Overlays: every panel shows what it should, scales and colours are ordered, and odd input does not crash."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from patchcore.pictures import histogram
from patchcore.pictures import overlay as overlay_module
from patchcore.pictures import text as text_module
from patchcore.pictures.heat import HEAT_COLOURS, HeatScale, colourise
from patchcore.pictures.histogram import score_histogram
from patchcore.pictures.overlay import overlay

SIDE = 224
# Up to 256 px a panel: 34 px for the title, margins of 10 px, gaps of 6 px.
TOP, MARGIN, GAP = 34, 10, 6


def panels(sheet: Image.Image, side: int = SIDE) -> list[np.ndarray]:
    """The pixels of image, mask and heat map."""
    lefts = [MARGIN + panel * (side + GAP) for panel in range(3)]
    return [np.asarray(sheet.crop((left, TOP, left + side, TOP + side))) for left in lefts]


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB in [0, 255], (..., 3) -> (...)."""
    linear = np.where(rgb <= 0.04045 * 255, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > (6 / 29) ** 3, 116 * np.cbrt(luminance) - 16, (29 / 3) ** 3 * luminance)


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


UNIT = HeatScale(low=0, high=1)


# Colours


def test_colours_run_from_navy_to_ivory_in_even_steps_of_lightness():
    assert HEAT_COLOURS[0].tolist() == [8, 10, 26]
    assert HEAT_COLOURS[-1].tolist() == [255, 250, 216]
    steps = lightness(HEAT_COLOURS.astype(float))
    assert (np.diff(steps) > 0).all()
    np.testing.assert_allclose(steps, np.linspace(steps[0], steps[-1], 256), atol=1.5)


def test_colours_between_two_control_points_are_mixed_from_both():
    # Entry 51 is 0.2 of the way, between violet at 0.137 and plum at 0.293: 0.063 / 0.156 = 0.4038 from violet.
    np.testing.assert_allclose(HEAT_COLOURS[51], [46 + 0.4038 * 74, 24 + 0.4038 * 10, 98 + 0.4038 * 26], atol=0.51)


def test_colourise_maps_the_scale_onto_the_colours_and_cuts_at_its_ends():
    values = np.array([[-7.0, 2.0, 4.0, 6.0, 99.0]], np.float32)
    expected = HEAT_COLOURS[[[0, 0, 128, 255, 255]]]  # 4 is half way: 127.5, rounded up
    colours = colourise(values, HeatScale(low=2, high=6))
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours, expected)


def test_colourise_does_not_change_the_map():
    values = np.array([[1.0, 5.0]], np.float64)
    colourise(values, UNIT)
    assert values.tolist() == [[1.0, 5.0]]


@pytest.mark.parametrize("span", [1e-30, 5e-324, 1e30])
def test_colourise_holds_for_any_span(span):
    np.testing.assert_array_equal(
        colourise(np.array([[0.0, span]]), HeatScale(low=0, high=span)), HEAT_COLOURS[[[0, 255]]]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused(value):
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 3, 5] = value  # not among every fourth pixel
    with pytest.raises(ValueError, match="maps must be finite, got nan or infinity in 1 of 128 values"):
        HeatScale.of(maps)
    with pytest.raises(ValueError, match="anomaly map must be finite"):
        colourise(maps[1], UNIT)


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 8), (1, 2, 8, 8)])
def test_a_scale_needs_maps(shape):
    with pytest.raises(ValueError, match="got shape"):
        HeatScale.of(np.zeros(shape))
    with pytest.raises(ValueError, match="got shape"):
        colourise(np.zeros((0, 8)), UNIT)


# Scales


def test_scale_is_the_median_pixel_and_the_95th_percentile_of_the_maxima():
    maps = np.full((21, 8, 8), 3.0, np.float32)
    maps[:, 1, 1] = np.arange(10, 31)  # the maxima 10 ... 30; the one of rank 0.95 * 20 = 19 is 29
    assert HeatScale.of(maps) == HeatScale(low=3, high=29)


def test_one_extreme_image_does_not_dim_the_others():
    maps = np.random.default_rng(0).random((40, 16, 16), np.float32)
    maps[7] *= 1e6
    assert HeatScale.of(maps).high < 1.1


def test_constant_maps_are_dark_and_what_rises_above_them_is_bright():
    scale = HeatScale.of(np.full((3, 8, 8), 0.7, np.float32))
    assert scale.low == scale.high
    with np.errstate(all="raise"):
        colours = colourise(np.array([[0.1, scale.low, 0.8]]), scale)
    np.testing.assert_array_equal(colours, HEAT_COLOURS[[[0, 0, 255]]])


@pytest.mark.parametrize(("low", "high"), [(2, 1), (np.nan, 1), (0, np.inf)])
def test_impossible_scales_are_refused(low, high):
    with pytest.raises(ValueError, match="finite low <= high"):
        HeatScale(low=low, high=high)


# Overlays


def test_image_and_mask_panels_show_their_sources_to_the_pixel(picture, mask, ramp):
    image, truth, _ = panels(overlay(picture, mask, ramp, scale=UNIT, title="x"))
    np.testing.assert_array_equal(image, np.asarray(picture))
    np.testing.assert_array_equal(truth, np.uint8(255) * np.repeat(mask[..., None], 3, axis=2))


def test_heat_panel_blends_colours_over_the_grey_picture(ramp):
    grey = Image.new("RGB", (SIDE, SIDE), (100, 100, 100))
    heat = panels(overlay(grey, None, ramp, scale=UNIT, title="x"))[2].astype(float)
    # Opacity 45 % at the low end, 90 % at the high end.
    np.testing.assert_allclose(heat[:, 0], np.tile(0.45 * HEAT_COLOURS[0] + 0.55 * 100, (SIDE, 1)), atol=1)
    np.testing.assert_allclose(heat[:, -1], np.tile(0.9 * HEAT_COLOURS[-1] + 0.1 * 100, (SIDE, 1)), atol=1)
    hot = lightness(heat[0, SIDE // 2 :])
    assert (np.diff(hot) > -0.5).all()
    assert hot[-1] > hot[0] + 30


def test_heat_panel_keeps_the_part_visible_where_it_is_normal(picture):
    heat = panels(overlay(picture, None, np.zeros((SIDE, SIDE), np.float32), scale=UNIT, title="x"))[2]
    grey = np.asarray(picture.convert("L"))
    assert np.corrcoef(heat.mean(axis=2).ravel(), grey.ravel())[0, 1] > 0.999


def test_outline_surrounds_the_mask_and_hides_none_of_it(picture, mask, ramp):
    plain = panels(overlay(picture, np.zeros_like(mask), ramp, scale=UNIT, title="x"))[2]
    outlined = panels(overlay(picture, mask, ramp, scale=UNIT, title="x"))[2]
    changed = (plain != outlined).any(axis=2)
    expected = np.zeros_like(mask)
    expected[[49, 90], 100:180] = True
    expected[50:90, [99, 180]] = True
    np.testing.assert_array_equal(changed, expected)
    assert (outlined[expected] == overlay_module.OUTLINE).all()


def test_without_a_mask_the_panel_says_so(picture, mask, ramp):
    without = overlay(picture, None, ramp, scale=UNIT, title="x")
    good = overlay(picture, np.zeros_like(mask), ramp, scale=UNIT, title="x")
    assert without.size == good.size
    assert not panels(good)[1].any()
    panel = panels(without)[1]
    assert (panel[:80] == text_module.SURFACE).all()
    assert (panel[100:124] != text_module.SURFACE).any()


def test_overlays_do_not_draw_on_each_other(picture, mask, ramp):
    first = overlay(picture, mask, ramp, scale=UNIT, title="the first")
    overlay(Image.new("RGB", (SIDE, SIDE)), mask, ramp * 0, scale=UNIT, title="another one, and longer")
    assert overlay(picture, mask, ramp, scale=UNIT, title="the first").tobytes() == first.tobytes()


def test_colour_bar_runs_from_dark_to_bright_between_the_ends_of_the_scale(picture, ramp):
    sheet = np.asarray(overlay(picture, None, ramp, scale=UNIT, title="x"))
    row = sheet[TOP + SIDE + 14, -MARGIN - SIDE : -MARGIN].astype(int)  # the middle of the strip below the heat map
    hot = np.flatnonzero((row[:, 0] > 200) & (row[:, 2] < 120))  # orange and amber: neither text nor ground
    assert len(hot) > 20
    steps = lightness(row[hot[0] - 40 : hot[-1]].astype(float))
    assert (np.diff(steps) >= 0).all()
    other = np.asarray(overlay(picture, None, ramp, scale=HeatScale(low=0, high=7), title="x"))
    assert (other[TOP + SIDE :] != sheet[TOP + SIDE :]).any()


def test_pictures_of_any_size_and_mode_are_shown_at_the_size_of_the_map(mask, ramp):
    sheet = overlay(Image.new("L", (900, 500), 77), mask, ramp, scale=UNIT, title="x")
    assert (panels(sheet)[0] == 77).all()


def test_small_maps_are_enlarged_by_a_whole_factor():
    mask = np.zeros((32, 32), bool)
    mask[4, 7] = True
    picture = Image.new("RGB", (32, 32), (10, 200, 30))
    image, truth, _ = panels(overlay(picture, mask, np.zeros((32, 32)), scale=UNIT, title="x"), side=192)
    assert (image == (10, 200, 30)).all()
    expected = np.zeros((192, 192), bool)
    expected[24:30, 42:48] = True
    np.testing.assert_array_equal(truth[..., 0] == 255, expected)


@pytest.mark.parametrize("shape", [(320, 320), (100, 300), (300, 100), (1, 1)])
def test_maps_of_any_shape(shape):
    sheet = overlay(Image.new("RGB", (50, 50)), np.ones(shape, bool), np.ones(shape), scale=UNIT, title="x")
    assert sheet.mode == "RGB"


def test_mask_of_another_shape_is_refused(picture, ramp):
    with pytest.raises(ValueError, match=r"mask has shape \(8, 8\), expected \(224, 224\)"):
        overlay(picture, np.zeros((8, 8), bool), ramp, scale=UNIT, title="x")


@pytest.mark.parametrize("scale", [HeatScale(low=-1.2345e-30, high=-1.2345e-31), HeatScale(low=-1e30, high=1e30)])
def test_long_numbers_leave_the_other_panels_alone(ramp, scale):
    sheet = np.asarray(overlay(Image.new("RGB", (SIDE, SIDE)), None, ramp[:, :32][:32], scale=scale, title="x"))
    assert (sheet[:, -10:] == text_module.BACKGROUND).all()


# Titles


def test_title_is_drawn_above_the_panels(picture, ramp):
    blank, named = (np.asarray(overlay(picture, None, ramp, scale=UNIT, title=title)) for title in ("", "scratches"))
    assert (blank[:TOP] == text_module.BACKGROUND).all()
    assert named[:TOP].max() > 200
    np.testing.assert_array_equal(named[TOP:], blank[TOP:])


def test_long_titles_lose_their_middle_but_neither_name_nor_score(picture, ramp):
    title = "metal_plate" + "_long" * 60 + " score 0.719"
    text, font = text_module._fit(title, 15, 400)
    assert text.startswith("metal_plate")
    assert text.endswith(" score 0.719")
    assert "…" in text
    assert 380 < font.getlength(text) <= 400
    sheet = np.asarray(overlay(picture, None, ramp, scale=UNIT, title=title))
    assert (sheet[:TOP, -10:] == text_module.BACKGROUND).all()


def test_titles_that_fit_are_left_alone():
    assert text_module._fit("scratches 0.719", 15, 400)[0] == "scratches 0.719"
    assert text_module._fit("scratches", 15, 1)[0] == "…"


@pytest.mark.parametrize(
    "title",
    ["Prüfling_Ölfleck_ß", "金属板_划痕", "деталь", "שלום", "🙂🔩", "undecodable \udcff", "two\nlines\tand\0nul", ""],
)
def test_titles_may_hold_any_character(picture, ramp, title):
    overlay(picture, None, ramp, scale=UNIT, title=title)
    overlay(picture, None, ramp, scale=UNIT, title=title * 100)


def test_without_a_font_for_them_letters_lose_their_accents(monkeypatch):
    monkeypatch.setattr(text_module, "_fonts_of_the_system", lambda size: ())
    assert text_module._legible("Prüfling_é", 15)[0] == "Prufling_e"


def test_a_font_of_the_system_draws_what_the_own_font_lacks():
    try:
        expected = ImageFont.truetype("DejaVuSans.ttf", 15)
    except OSError:
        pytest.skip("DejaVuSans.ttf is not installed")
    text, font = text_module._legible("Prüfling_ж_金", 15)  # the last is in neither font
    assert text == "Prüfling_ж_金"
    assert font.getname() == expected.getname()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.71934, "0.719"), (3532.77, "3533"), (-12.345, "-12.3"), (123456, "1.23e5"), (5e-7, "5e-7")],
)
def test_numbers_are_short(value, text):
    assert text_module._short(value) == text


# Files


# Galleries and histograms


def test_histogram_shows_good_left_and_defective_right_of_the_threshold():
    scores, labels = [1.0, 1.1, 1.2, 3.0, 3.1], [False, False, False, True, True]
    plot = np.asarray(score_histogram(scores, labels, 2.0, title="x")).astype(int)[66:-45]
    dash = (plot == text_module.TEXT).all(axis=2).any(axis=0)
    line = np.flatnonzero(dash)
    assert 1 <= len(line) <= 2
    blue = np.flatnonzero((plot == histogram.GOOD).all(axis=2).any(axis=0))
    orange = np.flatnonzero((plot == histogram.DEFECTIVE).all(axis=2).any(axis=0))
    assert blue.max() < line.min() <= line.max() < orange.min()
    without = np.asarray(score_histogram(scores, labels, None, title="x"))[66:-45]
    assert not (without == text_module.TEXT).all(axis=2).any()


def test_an_edge_of_the_bins_lies_on_the_threshold():
    values = np.random.default_rng(0).normal(size=100)
    edges = histogram._bin_edges(values, bins=40, anchor=0.1234)
    assert 0.1234 in edges
    assert edges[0] < values.min()
    assert values.max() < edges[-1]
    assert np.histogram(values, edges)[0].sum() == 100


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([3.0, 3.0], 3.0), ([0.0], None), ([1e-300, 2e-300], None), ([-1e30, 1e30], 0.0), ([1.0, 1.0 + 2e-16], 1e6)],
)
def test_histograms_of_odd_scores(scores, threshold):
    labels = [True] * len(scores)
    assert score_histogram(scores, labels, threshold, title="ü" * 300, size=(400, 240)).size == (400, 240)


@pytest.mark.parametrize(
    ("scores", "labels", "threshold", "size", "message"),
    [
        ([], [], None, (640, 360), "N >= 1 scores"),
        ([1.0], [True, False], None, (640, 360), "one label for each"),
        ([np.nan], [True], None, (640, 360), "scores must be finite"),
        ([1.0], [True], np.inf, (640, 360), "threshold must be finite"),
        ([1.0], [True], None, (10, 10), "at least 400 x 240"),
    ],
)
def test_impossible_histograms_are_refused(scores, labels, threshold, size, message):
    with pytest.raises(ValueError, match=message):
        score_histogram(scores, labels, threshold, title="x", size=size)


def test_ticks_are_round():
    assert histogram._ticks(0, 9, most=5, least_step=1) == [(0, "0"), (2, "2"), (4, "4"), (6, "6"), (8, "8")]
    assert [label for _, label in histogram._ticks(0.23, 1.01, most=6)] == ["0.4", "0.6", "0.8", "1.0"]
    assert [label for _, label in histogram._ticks(0, 1e-6, most=5)][:2] == ["0", "2e-7"]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (320, 320), (96, 128), (300, 260)])
def test_the_panels_come_out_of_an_overlay(height, width):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[10:40, 20:60] = True
    anomaly_map = rng.random((height, width), dtype=np.float32)
    scale = HeatScale(low=0, high=1)
    sheet = overlay(Image.fromarray(pixels), mask, anomaly_map, scale=scale, title="t")
    image, truth, heat = overlay_module.panels(sheet)
    factor = image.width // width
    assert image.size == truth.size == heat.size == (factor * width, factor * height)
    np.testing.assert_array_equal(np.asarray(truth.convert("1")), mask.repeat(factor, 0).repeat(factor, 1))
    if factor == 1:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_what_is_no_overlay_has_no_panels():
    with pytest.raises(ValueError, match="no overlay"):
        overlay_module.panels(Image.new("RGB", (10, 10)))
