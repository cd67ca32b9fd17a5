"""Text in pictures, drawn with Pillow."""

import functools
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SMALLEST_FONT, LARGEST_FONT = 12, 28  # pixels
LINES_OF_A_CELL = 6  # of text, as high as an image


def font_for(height: int) -> ImageFont.FreeTypeFont:
    """Returns a font that suits images of a height in pixels."""
    return _font(min(max(height // LINES_OF_A_CELL, SMALLEST_FONT), LARGEST_FONT))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, with Latin, Greek and Cyrillic letters. Pillow's own font has ASCII."""
    import matplotlib  # its backend is neither chosen nor loaded

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Breaks lines that are wider than `width` pixels. A word that is too long is cut."""
    lines: list[str] = []
    for line in text.splitlines():
        words = line.split()
        lines += words[:1] and [_cut(words[0], font, width)]
        for word in words[1:]:
            joined = f"{lines[-1]} {word}"
            if font.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(_cut(word, font, width))
    return "\n".join(lines)


def block_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Returns the width and the height of lines of text in pixels."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return math.ceil(right - left), math.ceil(bottom - min(top, 0))


def _cut(word: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns a word, or as much of it as fits with an ellipsis, or "" if nothing fits."""
    if font.getlength(word) <= width:
        return word
    start = word
    while start and font.getlength(f"{start}…") > width:
        start = start[:-1]
    return f"{start}…" if start else ""
