"""Reads picture files of several formats as upright 8-bit pixels with their alpha.

The corpus, training, evaluation, search and export read pictures here, so they agree on
which pictures are broken and see the same pixels. The size in the header and the limits
of `picture_limits` are checked before anything is decoded. Plain JPEG files are decoded
by libjpeg-turbo through simplejpeg, all others by Pillow; both decode without the
interpreter lock.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from align_jax import places
from align_jax.errors import InputError
from align_jax.picture_limits import MAX_BYTES, MAX_SIDE, find_excess, jpeg_header
from align_jax.picture_orientation import read_orientation, turn_pixels, turn_upright

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# A header can claim any number of pixels, and a decoder allocates all of them. The
# limit is the size from which Pillow warns: a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485

# The formats of the web, by Pillow's names. Its other readers are less tested, and
# those of EPS and WMF start programs. Builds of Pillow may lack AVIF.
Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
    if name in Image.OPEN
)

JPEG = b"\xff\xd8\xff"
ORIENTED = (b"Exif\0\0", b"tiff:Orientation")  # one is in each file that is turned
CUT_SHORT = ("truncated", "premature", "unexpected end", "incomplete")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")  # the A of Pillow's mode LAB is a colour
# Pillow warns of large pictures, which our limit refuses, and of any oddity of a file.
# The filter is set once, because `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(InputError):
    """A picture that cannot be read.

    Attributes:
      reason: one of "empty", "not a picture", "too large", "too complex", "cut short",
        "broken" and "unsupported", for counts.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)  # both, so that workers can pickle it
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


def read_picture(
    picture: Picture,
    name: str = "picture",
    max_pixels: int = MAX_PIXELS,
    least: tuple[int, int] | None = None,
    buffer: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
    """Reads one picture.

    Args:
      picture: a path or URL, a file's bytes, a PIL image or a uint8 array (H, W),
        (H, W, 3) or (H, W, 4).
      name: name of the picture in messages, unless it has a path.
      max_pixels: largest number of pixels of a file or PIL image; a larger one is
        refused.
      least: smallest height and width needed. A JPEG file may be decoded at 1/2, 3/8,
        1/4 or 1/8 of its size if the result is that large. None for the exact pixels.
      buffer: function from a number of bytes to uint8 memory (bytes,) for the pixels of
        a JPEG file, valid until that memory is used again. None for new memory.

    Returns:
      uint8 (H, W, 3), or (H, W, 4) with alpha for a picture with transparency; the
      first frame, turned as its Exif orientation says. An array is returned as it is,
      but grey pixels get three equal channels.

    Raises:
      InputError: a missing file, or an array of another type or shape.
      PictureError: an empty, broken or too large file, one that is cut short, beyond
        the limits of `picture_limits` or of an unsupported type, or no picture at all.
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
        name, content = os.fspath(picture), read_file(picture)
    pixels = _read_jpeg(content, name, max_pixels, least, buffer)
    return _read_with_pillow(content, name, max_pixels) if pixels is None else pixels


def read_file(file: places.Place) -> bytes:
    """Reads the bytes of a picture file, or raises an error if they are too many.

    Raises:
      InputError: a missing file.
      PictureError: a file of more than MAX_BYTES bytes, which is not read.
    """
    place = places.resolve(file)
    _check_bytes(places.size(place) or 0, os.fspath(file))
    return places.read_bytes(place)


@contextlib.contextmanager
def open_picture(
    content: bytes,
    name: str = "picture",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Iterator[Image.Image]:
    """Opens a picture file that may be hostile, to read its size, format or metadata.

    Yields an image whose pixels are decoded when they are first used. They are not
    turned upright; that is the task of `picture_orientation.turn_upright`.

    Args:
      content: bytes of the file.
      name: name of the picture in messages.
      max_pixels: largest number of pixels that is accepted.
      formats: Pillow's names of the formats to try.

    Raises:
      PictureError: a file that is no picture or beyond a limit, or any error inside the
        `with` statement, which is taken for a failure to decode.
    """
    _check_content(content, name)
    try:
        opened = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: {error}", "too large") from error
    except Exception as error:  # parsers of untrusted bytes raise anything
        # Pillow's own text names an address in memory.
        known = isinstance(error, UnidentifiedImageError)
        raise PictureError(
            f"{name} is no picture that can be read" + ("" if known else f": {error}"),
            "not a picture" if content else "empty",
        ) from error
    with opened:
        _check_size(*opened.size, name, max_pixels)
        with _decoding(name):
            yield opened


def take_eight_bits(picture: Image.Image, name: str = "picture") -> Image.Image:
    """Reduces a grey picture of 16 bits to its upper 8 bits; returns others unchanged.

    A transparent grey value becomes an alpha channel.

    Raises:
      PictureError: pixels of mode I or F, whose range is unknown.
    """
    if picture.mode.startswith("I;16"):
        pixels = np.asarray(picture)
        grey = Image.fromarray((pixels >> 8).astype(np.uint8))
        if (transparent := picture.info.get("transparency")) is not None:
            opaque = np.uint8(255) * (pixels != transparent)
            grey.putalpha(Image.fromarray(opaque))
        return grey
    if picture.mode in ("I", "F"):
        raise PictureError(
            f"{name} has pixels of mode {picture.mode!r}, whose range is unknown;"
            " convert it to 8 bits",
            "unsupported",
        )
    return picture


def is_transparent(picture: Image.Image) -> bool:
    """Returns whether an opened picture has an alpha channel or transparent colours."""
    return picture.mode in ALPHA or "transparency" in picture.info


def take_colours(picture: Image.Image, name: str = "picture") -> Image.Image:
    """Converts an opened picture to 8-bit RGB, or to RGBA if it is transparent.

    Raises:
      PictureError: pixels of mode I or F, whose range is unknown.
    """
    picture = take_eight_bits(picture, name)
    if picture.mode == "La":  # Pillow converts it to no other mode
        picture = picture.convert("LA")
    return picture.convert("RGBA" if is_transparent(picture) else "RGB")


def make_thumbnail(content: bytes, side: int) -> Image.Image:
    """Reads a picture file and shrinks its longer side to at most `side` pixels.

    Returns:
      An RGB image, or an RGBA image for a picture with transparency.

    Raises:
      PictureError: the errors of `read_picture`.
    """
    picture = Image.fromarray(read_picture(content, least=(side, side)))
    picture.thumbnail((side, side))
    return picture


def small_jpeg(content: bytes, side: int, quality: int) -> bytes:
    """Returns the result of `make_thumbnail`, laid on white, as a JPEG file."""
    small = lay_on_white(make_thumbnail(content, side))
    return encode_jpeg(np.asarray(small), quality)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes uint8 (H, W, 3) as a JPEG file with halved chroma, without the lock.

    Args:
      pixels: the picture.
      quality: 1 to 100.
    """
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")


def lay_on_white(picture: Image.Image) -> Image.Image:
    """Blends an RGBA picture onto white; returns an RGB one unchanged."""
    if picture.mode == "RGB":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _read_jpeg(
    content: bytes,
    name: str,
    max_pixels: int,
    least: tuple[int, int] | None,
    buffer: Callable[[int], np.ndarray] | None,
) -> np.ndarray | None:
    """Decodes a JPEG file in grey or colour; returns None if Pillow must read it."""
    if not content.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        _check_content(content, name)  # before Pillow reads the metadata
        header = jpeg_header(content)
        has_metadata = any(sign in header for sign in ORIENTED)
        orientation = _file_orientation(content) if has_metadata else 1
        if colours not in ("Gray", "YCbCr", "RGB") or orientation is None:
            return None
        _check_size(width, height, name, max_pixels)
        options: dict = {}
        if least:
            rows, columns = least if orientation < 5 else least[::-1]
            options = {"min_height": rows, "min_width": columns, "min_factor": 2}
        if buffer:
            options["buffer"] = buffer(3 * height * width)
        pixels = simplejpeg.decode_jpeg(content, "RGB", **options)
    except PictureError:
        raise
    except ValueError:
        # The file is unusual or damaged. Pillow reads it or says what is wrong.
        return None
    return turn_pixels(pixels, orientation)


def _file_orientation(content: bytes) -> int | None:
    """Returns the Exif orientation of a file, or None if Pillow cannot open it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return read_orientation(opened)
    except Exception:  # parsers of untrusted bytes raise anything; Pillow reports it
        return None


def _read_with_pillow(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    with open_picture(content, name, max_pixels) as opened:
        return _to_array(opened, name)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width} x {height} pixels; the limit is {max_pixels:,} in all",
            "too large",
        )
    if max(width, height) > MAX_SIDE:
        raise PictureError(
            f"{name} is {width} x {height} pixels; the limit is {MAX_SIDE:,} on a side",
            "too large",
        )


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise PictureError(
            f"{name} is a file of {size:,} bytes; the limit is {MAX_BYTES:,}",
            "too large",
        )


def _check_content(content: bytes, name: str) -> None:
    _check_bytes(len(content), name)
    if excess := find_excess(content):
        raise PictureError(f"{name} {excess}", "too complex")


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns every error inside the `with` statement into a PictureError."""
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
    """Decodes an opened picture to upright 8-bit pixels; see `read_picture`."""
    return np.asarray(take_colours(turn_upright(picture), name))


def _check_array(pixels: np.ndarray, name: str) -> np.ndarray:
    """Checks an array of pixels and gives grey pixels (H, W) three equal channels."""
    shape = pixels.shape
    known = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not known or 0 in shape:
        raise InputError(
            f"{name} is {pixels.dtype} {shape}; wanted uint8 (H, W), (H, W, 3) or"
            " (H, W, 4)"
        )
    return np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
