"""Draw many pictures as thumbnails, to look them over at once."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from patchcore.pictures.text import BACKGROUND, MUTED, SURFACE, TEXT, Colour, fit_lines, fit_text

WARNING: Colour = (240, 150, 30)

MOST_COLUMNS = 6
_LEAST_COLUMNS = 3  # so that a title fits above a single picture
_THUMBNAIL, _GAP, _MARGIN, _FRAME = 160, 16, 20, 4  # px
_CAPTION_LINES = 2
_TOP, _LINE = 56, 16  # px, heights of the title's strip and of a line of a caption
_ROW = _THUMBNAIL + _FRAME + 4 + _CAPTION_LINES * _LINE + _GAP


def draw_contact_sheet(title: str, entries: Sequence[tuple[Image.Image, str, bool]]) -> Image.Image:
    """Draw pictures in rows of at most six, each with its caption below.

    Args:
        title: shortened in its middle if it is too long.
        entries: of each picture the RGB image of any size, its caption, and whether a frame warns of it. Captions
            take two lines, see `fit_lines`.

    Returns:
        RGB image.

    Raises:
        ValueError: there are no entries.
    """
    if not entries:
        raise ValueError("expected at least one picture for a contact sheet, got none")
    columns = min(MOST_COLUMNS, max(_LEAST_COLUMNS, len(entries)))
    rows = -(-len(entries) // columns)
    width = 2 * _MARGIN + columns * (_THUMBNAIL + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _TOP + rows * _ROW), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    text, font = fit_text(title, 16, width - 2 * _MARGIN)
    draw.text((_MARGIN, _TOP // 2), text, font=font, fill=TEXT, anchor="lm")
    for index, (picture, caption, warn) in enumerate(entries):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * (_THUMBNAIL + _GAP), _TOP + row * _ROW
        _draw_thumbnail(sheet, left, top, picture, warn)
        y = top + _THUMBNAIL + _FRAME + 4 + _LINE // 2
        for number, (text, font) in enumerate(fit_lines(caption, 12, _THUMBNAIL, _CAPTION_LINES)):
            colour = TEXT if number == 0 else MUTED
            draw.text((left, y + number * _LINE), text, font=font, fill=colour, anchor="lm")
    return sheet


def _draw_thumbnail(sheet: Image.Image, left: int, top: int, picture: Image.Image, warn: bool) -> None:
    """Fit a picture into its cell; the frame lies around the cell, so that it hides nothing."""
    right, bottom = left + _THUMBNAIL, top + _THUMBNAIL
    if warn:
        sheet.paste(WARNING, (left - _FRAME, top - _FRAME, right + _FRAME, bottom + _FRAME))
    sheet.paste(SURFACE, (left, top, right, bottom))
    scale = _THUMBNAIL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    thumbnail = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)
    sheet.paste(thumbnail, (left + (_THUMBNAIL - width) // 2, top + (_THUMBNAIL - height) // 2))
