"""Pictures as pixels: any file format, upright, 8 bits, alpha kept, size checked first.

Training, evaluation and export read pictures here and see the same pixels. Plain JPEG
files are decoded by libjpeg-turbo through simplejpeg, all else by Pillow; both decode
without the interpreter lock.
"""

import io
import os
import pathlib
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from align_jax.errors import InputError
from align_jax.input.scratch import Scratch

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray

# A header can promise any number of pixels; all of them would be allocated. The limit
# is what Pillow warns from: a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485

# What Pillow reads by itself: for EPS and WMF it starts other programs.
Image.init()
FORMATS = tuple(name for name in Image.ID if name not in ("EPS", "WMF"))

JPEG, EXIF = b"\xff\xd8\xff", b"Exif\0\0"
HEADER = 4096  # bytes in which Exif data is looked for: it is the first or second part
CUT_SHORT = ("truncated", "premature", "unexpected end", "incomplete")
# What each Exif orientation does to rows and columns.
UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}

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
    scratch: Scratch | None = None,
) -> np.ndarray:
    """Reads one picture.

    Args:
      picture: a path, a file's bytes, a PIL image or a uint8 array (H, W), (H, W, 3)
        or (H, W, 4).
      name: what to call it in messages where it has no path.
      max_pixels: larger ones are refused before they are decoded.
      least: height and width; JPEG files may be decoded at 1/2, 1/4 or 1/8 of their
        size as long as they stay that large. None for the exact pixels.
      scratch: memory for the pixels, which then hold until it is used again.

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
        return _to_array(picture, getattr(picture, "filename", "") or name, max_pixels)
    if not isinstance(picture, bytes):
        try:
            picture, name = pathlib.Path(picture).read_bytes(), str(picture)
        except FileNotFoundError as error:
            raise InputError(f"{picture} is missing") from error
        except OSError as error:
            raise InputError(f"{picture} cannot be read: {error}") from error
    pixels = _read_jpeg(picture, name, max_pixels, least, scratch)
    return _read_with_pillow(picture, name, max_pixels) if pixels is None else pixels


def _read_jpeg(content, name, max_pixels, least, scratch) -> np.ndarray | None:
    """Pixels of a JPEG file in grey or three colours; None where Pillow must look."""
    if not content.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        orientation = _orientation(content) if EXIF in content[:HEADER] else 1
        if colours not in ("Gray", "YCbCr", "RGB") or orientation is None:
            return None
        _check_size(height, width, name, max_pixels)
        options = {}
        if least:
            rows, columns = least if orientation < 5 else least[::-1]
            options = {"min_height": rows, "min_width": columns, "min_factor": 2}
        if scratch:
            options["buffer"] = scratch.take("pixels", 3 * height * width)
        pixels = simplejpeg.decode_jpeg(content, "RGB", **options)
    except PictureError:
        raise
    except ValueError:
        # Any oddity of the file; Pillow says whether it can be read and what is wrong.
        return None
    return UPRIGHT[orientation](pixels) if orientation in UPRIGHT else pixels


def _orientation(content: bytes) -> int | None:
    """The Exif orientation of a file; None where Pillow cannot read it."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a parser of untrusted bytes; the whole file is judged later
        return None


def _read_with_pillow(content, name, max_pixels) -> np.ndarray:
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: {error}", "too large") from error
    except Exception as error:  # parsers of untrusted bytes raise anything
        raise PictureError(
            f"{name} is no picture that can be read: {error}",
            "not a picture" if content else "empty",
        ) from error
    with opened:
        return _to_array(opened, name, max_pixels)


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width} x {height} pixels; the limit is {max_pixels:,} in all",
            "too large",
        )


def _to_array(picture: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Pixels of an opened picture, which is decoded here; see `read_picture`."""
    width, height = picture.size
    _check_size(height, width, name, max_pixels)
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.mode in ("I", "F"):
            raise PictureError(
                f"{name} has pixels of mode {upright.mode!r}, whose range is unknown;"
                " convert it to 8 bits",
                "unsupported",
            )
        transparent = "A" in upright.getbands() or "transparency" in upright.info
        return np.asarray(upright.convert("RGBA" if transparent else "RGB"))
    except PictureError:
        raise
    except Exception as error:  # as above
        found = str(error).lower()
        cut = isinstance(error, EOFError) or any(sign in found for sign in CUT_SHORT)
        raise PictureError(
            f"{name} is broken or cut short: {error}", "cut short" if cut else "broken"
        ) from error


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
