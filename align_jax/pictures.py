"""Pictures as pixels: any file format, upright, 8 bits, alpha kept, size checked first.

The corpus, training, evaluation and export read pictures here, so they agree on which
are broken and see the same pixels. `read_picture` decodes plain JPEG files by
libjpeg-turbo through simplejpeg, all else by Pillow; both decode without the
interpreter lock.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from align_jax import places
from align_jax.errors import InputError

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# A header can promise any number of pixels; all of them would be allocated. The limit
# is what Pillow warns from: a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485

# What Pillow reads by itself: for EPS and WMF it starts other programs.
Image.init()
FORMATS = tuple(name for name in Image.ID if name not in ("EPS", "WMF"))

JPEG, EXIF = b"\xff\xd8\xff", b"Exif\0\0"
HEADER = 4096  # bytes in which Exif data is looked for: it is the first or second part
CUT_SHORT = ("truncated", "premature", "unexpected end", "incomplete")
# What turns a picture of each Exif orientation upright: rows and columns of pixels, or
# a picture of Pillow's.
UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow keeps what tells an orientation.
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

# Pillow warns of large pictures, for which there is a limit of our own, and of every
# oddity of a file. Set once: `catch_warnings` a picture would not be safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(InputError):
    """A picture that cannot be read.

    Attributes:
      reason: why in a word or two, for counts: "empty", "not a picture", "too large",
        "cut short", "broken" or "unsupported".
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def read_picture(
    picture: Picture,
    name: str = "picture",
    max_pixels: int = MAX_PIXELS,
    least: tuple[int, int] | None = None,
    buffer: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
    """Reads one picture.

    Args:
      picture: a path, a file's bytes, a PIL image or a uint8 array (H, W), (H, W, 3)
        or (H, W, 4).
      name: what to call it in messages where it has no path.
      max_pixels: larger ones are refused before they are decoded.
      least: height and width; JPEG files may be decoded at 1/2, 1/4 or 1/8 of their
        size as long as they stay that large. None for the exact pixels.
      buffer: function of a number of bytes that gives memory for the pixels, uint8
        (bytes,), which then hold until that memory is used again. None for new memory.

    Returns:
      uint8 (H, W, 3), or (H, W, 4) where it has transparency; the first frame, turned
      as its Exif orientation says.

    Raises:
      InputError: it is missing, broken, cut short, too large or no picture; all but the
        first are `PictureError`s.
    """
    if isinstance(picture, np.ndarray):
        return _check_array(picture, name)
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or name
        _check_size(*picture.size, name, max_pixels)
        with _decoding(name):
            return _to_array(picture, name)
    if isinstance(picture, bytes):
        content = picture
    else:
        name = os.fspath(picture)
        content = places.read_bytes(places.resolve(picture))
    pixels = _read_jpeg(content, name, max_pixels, least, buffer)
    return _read_with_pillow(content, name, max_pixels) if pixels is None else pixels


@contextlib.contextmanager
def open_picture(
    content: bytes,
    name: str = "picture",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Iterator[Image.Image]:
    """Opens a picture file that may be hostile, for what pixels alone do not tell.

    Its size and format are known; its pixels are decoded when they are asked for. They
    lie as in the file: see `turn_upright`.

    Args:
      content: the file's bytes.
      name: what to call it in messages.
      max_pixels: larger ones are refused.
      formats: those that are tried, by Pillow's names.

    Raises:
      PictureError: it is no picture or too large, or anything that decodes it inside
        the `with` statement fails.
    """
    try:
        opened = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: {error}", "too large") from error
    except Exception as error:  # parsers of untrusted bytes raise anything
        raise PictureError(
            f"{name} is no picture that can be read: {error}",
            "not a picture" if content else "empty",
        ) from error
    with opened:
        _check_size(*opened.size, name, max_pixels)
        with _decoding(name):
            yield opened


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture as `turn_upright` will give it."""
    width, height = picture.size
    # Pillow gives a TIFF's size as it is shown.
    turned = picture.format != "TIFF" and _orientation(picture) >= 5
    return (height, width) if turned else (width, height)


def turn_upright(picture: Image.Image) -> Image.Image:
    """Decodes an opened picture and turns it as its Exif orientation says.

    An orientation that is damaged, or no number from 1 to 8, says nothing.
    """
    picture.load()  # before its Exif data are read: it turns a TIFF by itself
    turn = TURNS.get(_orientation(picture))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for name in METADATA:  # they do not fit it
        turned.info.pop(name, None)
    return turned


def take_eight_bits(picture: Image.Image, name: str = "picture") -> Image.Image:
    """Takes the upper 8 of a grey picture's 16 bits; others are given back.

    Raises:
      PictureError: its pixels are of a kind whose range is unknown.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise PictureError(
            f"{name} has pixels of mode {picture.mode!r}, whose range is unknown;"
            " convert it to 8 bits",
            "unsupported",
        )
    return picture


def make_thumbnail(content: bytes, side: int) -> Image.Image:
    """Reads a picture file and reduces it to a longer side of at most `side` pixels.

    Returns:
      RGB, or RGBA where it has transparency.

    Raises:
      PictureError: as `read_picture`.
    """
    picture = Image.fromarray(read_picture(content, least=(side, side)))
    picture.thumbnail((side, side))
    return picture


def lay_on_white(picture: Image.Image) -> Image.Image:
    """Lays an RGBA picture on white; an RGB one is given back."""
    if picture.mode == "RGB":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _read_jpeg(content, name, max_pixels, least, buffer) -> np.ndarray | None:
    """Pixels of a JPEG file in grey or three colours; None where Pillow must look."""
    if not content.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        orientation = _file_orientation(content) if EXIF in content[:HEADER] else 1
        if colours not in ("Gray", "YCbCr", "RGB") or orientation is None:
            return None
        _check_size(width, height, name, max_pixels)
        options = {}
        if least:
            rows, columns = least if orientation < 5 else least[::-1]
            options = {"min_height": rows, "min_width": columns, "min_factor": 2}
        if buffer:
            options["buffer"] = buffer(3 * height * width)
        pixels = simplejpeg.decode_jpeg(content, "RGB", **options)
    except PictureError:
        raise
    except ValueError:
        # Any oddity of the file; Pillow says whether it can be read and what is wrong.
        return None
    return UPRIGHT[orientation](pixels) if orientation in UPRIGHT else pixels


def _file_orientation(content: bytes) -> int | None:
    """The Exif orientation of a file; None where Pillow cannot open it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return _orientation(opened)
    except Exception:  # a parser of untrusted bytes; the whole file is judged later
        return None


def _orientation(picture: Image.Image) -> int:
    """The Exif orientation, 1 to 8; 1 where there is none or it is damaged."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found) if found in range(1, 9) else 1
    except Exception:  # a parser of untrusted bytes; damaged metadata harm no pixel
        return 1


def _read_with_pillow(content, name, max_pixels) -> np.ndarray:
    with open_picture(content, name, max_pixels) as opened:
        return _to_array(opened, name)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width} x {height} pixels; the limit is {max_pixels:,} in all",
            "too large",
        )


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a PictureError."""
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # parsers of untrusted bytes raise anything
        found = str(error).lower()
        cut = isinstance(error, EOFError) or any(sign in found for sign in CUT_SHORT)
        raise PictureError(
            f"{name} is broken or cut short: {error}", "cut short" if cut else "broken"
        ) from error


def _to_array(picture: Image.Image, name: str) -> np.ndarray:
    """Pixels of an opened picture, which is decoded here; see `read_picture`."""
    picture = take_eight_bits(turn_upright(picture), name)
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    return np.asarray(picture.convert("RGBA" if transparent else "RGB"))


def _check_array(pixels: np.ndarray, name: str) -> np.ndarray:
    """An array of pixels with its channels, three or four."""
    shape = pixels.shape
    known = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not known or 0 in shape:
        raise InputError(
            f"{name} is {pixels.dtype} {shape}; wanted uint8 (H, W), (H, W, 3) or"
            " (H, W, 4)"
        )
    return np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
