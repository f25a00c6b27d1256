"""Text that fits its line, in a font that can draw it, and short numbers."""

import pytest
from PIL import ImageFont

from patchcore.pictures import text as text_module
from patchcore.pictures.text import fit_lines, fit_text, format_number


def test_long_titles_lose_their_middle_but_neither_name_nor_score():
    title = "metal_plate" + "_long" * 60 + " score 0.719"
    text, font = fit_text(title, 15, 400)
    assert text.startswith("metal_plate")
    assert text.endswith(" score 0.719")
    assert "…" in text
    assert 380 < font.getlength(text) <= 400


def test_titles_that_fit_are_left_alone():
    assert fit_text("scratches 0.719", 15, 400)[0] == "scratches 0.719"
    assert fit_text("scratches", 15, 1)[0] == "…"


def test_lines_end_at_line_breaks_and_then_at_spaces():
    def lines(text: str, most: int, width: int = 80) -> list[str]:
        return [line for line, _ in fit_lines(text, 12, width, most)]

    assert lines("031.png\nscore 67012", 2) == ["031.png", "score 67012"]
    assert lines("one line", 3) == ["one line"]
    assert lines("the place of this patch", 2) == ["the place of", "this patch"]
    assert lines("a.png\nthe place of this patch", 3) == ["a.png", "the place of", "this patch"]
    assert lines("", 2) == [""]


@pytest.mark.parametrize("text", ["word " * 40, "long_name" * 40, "a\n" * 40, "ü " + "name" * 40, "金属板_划痕 " * 40])
def test_lines_are_never_more_or_wider_than_there_is_room(text):
    for most in (1, 2, 3):
        lines = fit_lines(text, 12, 150, most)
        assert 1 <= len(lines) <= most
        assert all(font.getlength(line) <= 150 and "\n" not in line for line, font in lines)


def test_the_last_of_too_many_lines_keeps_both_ends_of_the_rest():
    first, second = (line for line, _ in fit_lines("metal_plate " + "word " * 40 + "score 7", 12, 150, 2))
    assert first.startswith("metal_plate word")
    assert second.startswith("word")
    assert second.endswith("score 7")
    assert "…" in second


def test_without_a_font_for_them_letters_lose_their_accents(monkeypatch):
    monkeypatch.setattr(text_module, "_load_system_fonts", lambda size: ())
    assert text_module._make_legible("Prüfling_é", 15)[0] == "Prufling_e"


def test_a_font_of_the_system_draws_what_the_own_font_lacks():
    try:
        expected = ImageFont.truetype("DejaVuSans.ttf", 15)
    except OSError:
        pytest.skip("DejaVuSans.ttf is not installed")
    text, font = text_module._make_legible("Prüfling_ж_金", 15)  # the last is in neither font
    assert text == "Prüfling_ж_金"
    assert font.getname() == expected.getname()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.71934, "0.719"), (3532.77, "3533"), (-12.345, "-12.3"), (123456, "1.23e5"), (5e-7, "5e-7")],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
