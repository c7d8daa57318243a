"""Typographic attacks: the name of a wrong class, written onto a picture.

Models that were trained on pairs from the web read words in pictures, and may choose
the class of the word instead of that of the object
(https://distill.pub/2021/multimodal-neurons).
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from align_jax.pictures import lay_on_white, read_picture

HEIGHT = 0.15  # font size, as a share of the picture's height
# Width of the borders without letters, as a share of the picture's sides. Models see
# the centre of a picture; ALIGN's, 289 of 346 pixels.
BORDER = 0.1
RIM = 0.05  # width of the letters' black rim, as a share of the font size


def choose_wrong(names: Sequence[str], right: int, random: np.random.Generator) -> int:
    """Draws a class whose name is not the right one.

    Args:
      names: K class names, of which two or more are different.
      right: index of the right class.
      random: generator of the draw.
    """
    while names[wrong := int(random.integers(len(names)))] == names[right]:
        pass
    return wrong


def write_word(picture: bytes, word: str, random: np.random.Generator) -> bytes:
    """Writes a word in white letters with a black rim at a random position.

    The font is the one that Pillow contains, which has Latin letters only. It is made
    smaller for a word that is wider than the picture without its borders.

    Args:
      picture: bytes of a picture's file.
      word: text to write.
      random: generator of the position.

    Returns:
      A PNG file; transparent pixels are laid on white.
    """
    canvas = lay_on_white(Image.fromarray(read_picture(picture)))
    draw = ImageDraw.Draw(canvas)
    size = HEIGHT * canvas.height
    left, _, right, _ = _measure(draw, word, size)
    size *= min(1.0, (1 - 2 * BORDER) * canvas.width / max(1, right - left))
    left, top, right, bottom = _measure(draw, word, size)
    x = _draw_start(canvas.width, right - left, random)
    y = _draw_start(canvas.height, bottom - top, random)
    draw.text(
        (x - left, y - top),
        word,
        font=_font(size),
        fill="white",
        stroke_width=_rim(size),
        stroke_fill="black",
    )
    file = io.BytesIO()
    canvas.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _draw_start(side: int, length: float, random: np.random.Generator) -> int:
    """Draws where a word of a length begins on a side, between its borders."""
    first = BORDER * side
    return int(random.uniform(first, max(first, side - first - length)))


def _measure(draw: ImageDraw.ImageDraw, word: str, size: float) -> tuple[float, ...]:
    """Returns left, top, right and bottom of a word that is written at (0, 0)."""
    return draw.textbbox((0, 0), word, font=_font(size), stroke_width=_rim(size))


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(1.0, size))


def _rim(size: float) -> int:
    return max(1, round(RIM * size))
