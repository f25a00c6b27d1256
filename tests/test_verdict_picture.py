"""Pictures of verdicts: the badge says it in word, colour and shape, and both panels outline the regions."""

import numpy as np
import pytest
from PIL import Image

from golden import DATA, needs_data
from image_files import noise
from lightness import lightness
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import load_image
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.panels import OUTLINE
from patchcore.pictures.text import BACKGROUND, SURFACE
from patchcore.pictures.verdict import ACCEPT, NO_VERDICT, REJECT, draw_verdict

SIDE = 320
# Panels of up to 360 px: 66 px for the badge and the heading, margins of 12 px.
TOP, MARGIN = 66, 12
LEFTS = (MARGIN, 2 * MARGIN + SIDE)
UNIT = HeatScale(low=0, high=1)
VERDICTS = [(True, ACCEPT), (False, REJECT), (None, NO_VERDICT)]


def draw(anomaly_map=None, regions=None, *, picture=None, accepted=False, heading="", caption="") -> np.ndarray:
    anomaly_map = np.zeros((SIDE, SIDE), np.float32) if anomaly_map is None else anomaly_map
    regions = np.zeros(anomaly_map.shape, np.int32) if regions is None else regions
    picture = noise(SIDE, SIDE) if picture is None else picture
    sheet = draw_verdict(
        picture, anomaly_map, scale=UNIT, regions=regions, accepted=accepted, heading=heading, caption=caption
    )
    assert sheet.mode == "RGB"
    return np.asarray(sheet)


def panels(sheet: np.ndarray) -> tuple[np.ndarray, ...]:
    """The pixels of image and heat map at 320 px."""
    return tuple(sheet[TOP : TOP + SIDE, left : left + SIDE] for left in LEFTS)


@pytest.fixture
def regions() -> np.ndarray:
    regions = np.zeros((SIDE, SIDE), np.int32)
    regions[50:90, 100:180] = 1
    regions[200:210, 20:30] = 2
    return regions


def test_panels_show_image_and_heat():
    ramp = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))
    grey = Image.new("RGB", (SIDE, SIDE), (100, 100, 100))
    image, heat = panels(draw(ramp, picture=grey))
    assert (image == 100).all()
    assert (np.diff(lightness(heat[7, SIDE // 2 :].astype(float))) > -0.5).all()
    np.testing.assert_array_equal(panels(draw(ramp))[0], np.asarray(noise(SIDE, SIDE)))


def test_outlines_surround_the_regions_in_both_panels_and_hide_none_of_them(regions):
    plain, outlined = panels(draw()), panels(draw(regions=regions))
    for before, after in zip(plain, outlined, strict=True):
        for top, bottom, left, right in ((50, 90, 100, 180), (200, 210, 20, 30)):
            line = (after[top:bottom, left - 2 : left], after[top:bottom, right : right + 2])
            line += (after[top - 2 : top, left:right], after[bottom : bottom + 2, left:right])
            assert all((part == OUTLINE).all() for part in line)
            assert (after[top:bottom, left - 3] == BACKGROUND).all()
        np.testing.assert_array_equal(after[regions > 0], before[regions > 0])
        changed = (before != after).any(axis=2)
        assert not changed[:46].any()
        assert not changed[100:190].any()
    np.testing.assert_array_equal(draw(regions=regions > 0), draw(regions=regions))


def test_the_legend_says_whether_there_are_regions(regions):
    strips = [draw(regions=marked)[TOP + SIDE + 3 :, : MARGIN + SIDE] for marked in (regions, 0 * regions)]
    swatch, none = ((strip == OUTLINE).all(axis=2).sum() for strip in strips)
    assert swatch > 20
    assert none == 0


@pytest.mark.parametrize(("accepted", "badge"), VERDICTS)
def test_badges_have_their_colour_between_edge_and_sign(accepted, badge):
    strip = draw(accepted=accepted)[:TOP]
    assert (strip[TOP // 2, MARGIN + 4 : MARGIN + 10] == badge.ground).all()
    assert (strip == badge.ink).all(axis=2).sum() > 50
    others = {other.ground for _, other in VERDICTS} - {badge.ground}
    assert not any((strip == ground).all(axis=2).any() for ground in others)


def test_badges_differ_without_colour():
    light, shapes = {}, set()
    for accepted, badge in VERDICTS:
        light[badge.word] = lightness(np.array([badge.ground, badge.ink], float))
        strip = draw(accepted=accepted)[:TOP]
        row = np.flatnonzero((strip[TOP // 2 - 20] == badge.ground).all(axis=1))
        shapes.add(int(row[0]) - MARGIN)  # how far the corner is cut off
        assert abs(np.diff(light[badge.word])[0]) > 50
    # Dark on light means accepted, light on dark anything else.
    assert light["ACCEPT"][0] > light["ACCEPT"][1]
    assert light["REJECT"][0] < light["REJECT"][1]
    assert light["NO VERDICT"][0] < light["NO VERDICT"][1]
    assert light["ACCEPT"][0] - light["REJECT"][0] > 25
    assert len(shapes) == 3


def test_the_verdict_changes_nothing_but_the_header(regions):
    accepted, rejected = draw(regions=regions, accepted=True), draw(regions=regions, accepted=False)
    assert (accepted[:TOP] != rejected[:TOP]).any()
    np.testing.assert_array_equal(accepted[TOP:], rejected[TOP:])


def test_heading_and_caption_stand_beside_the_badge_one_above_the_other():
    blank = draw(accepted=None)
    for text, rows in (({"heading": "000.png"}, slice(12, 32)), ({"caption": "score 67012"}, slice(36, 56))):
        changed = (draw(accepted=None, **text) != blank).any(axis=2)
        assert changed[rows].any()
        changed[rows] = False
        assert not changed.any()


@pytest.mark.parametrize("text", ["metal_plate" + "_long" * 90, "金属板_划痕" * 30, "two\nlines\0 \udcff", "ß🙂"])
def test_any_text_leaves_margins_and_panels_alone(text):
    blank, sheet = draw(), draw(heading=text, caption=text)
    np.testing.assert_array_equal(sheet[TOP:], blank[TOP:])
    assert (sheet[:TOP, -MARGIN + 1 :] == BACKGROUND).all()


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ((320, 320), 1),
        ((224, 224), 2),
        ((64, 64), 5),
        ((1024, 1024), 1),
        ((64, 640), 1),
        ((640, 64), 1),
        ((90, 120), 3),
    ],
)
def test_maps_of_any_shape(shape, factor):
    height, width = (side * factor for side in shape)
    column = max(300, width)
    unit = max(1, column / 360)
    margin, top = round(12 * unit), round(66 * unit)
    marked = np.zeros(shape, bool)
    marked[shape[0] // 2, shape[1] // 2] = True
    picture = Image.new("RGB", (50, 40), (10, 200, 30))
    sheet = draw(marked.astype(np.float32), marked, picture=picture, heading="x" * 200, caption="y" * 200)
    assert sheet.shape == (top + height + round(32 * unit), 3 * margin + 2 * column, 3)
    left = margin + (column - width) // 2
    image = sheet[top : top + height, left : left + width]
    y, x = (side // 2 * factor for side in shape)
    assert (image[y : y + factor, x : x + factor] == (10, 200, 30)).all()
    assert (image[y, x + factor] == OUTLINE).all()
    assert (image[0, 0] == (10, 200, 30)).all()
    if width < column:
        assert (sheet[top : top + height, margin : left - 4] == SURFACE).all()


def test_a_map_of_one_pixel_is_fine():
    assert draw(np.ones((1, 1)), np.ones((1, 1), bool), picture=Image.new("L", (9, 9), 77)).shape[1] == 636


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"regions have shape \(8, 8\), expected \(320, 320\)"):
        draw(regions=np.zeros((8, 8), int))
    with pytest.raises(ValueError, match="must be finite"):
        draw(np.full((4, 4), np.nan))


@needs_data
@pytest.mark.parametrize("side", [224, 320])
def test_real_images(side):
    geometry = Geometry(resize=side + 32, imagesize=side)
    picture = geometry.picture(load_image(DATA / "mpdd/metal_plate/test/scratches/000.png"))
    sheet = draw(np.zeros((side, side)), picture=picture)
    assert sheet[100:-40].std() > 20
