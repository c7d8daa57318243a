"""Pictures as pixels: any file format, upright, 8 bits, alpha kept, size checked first.

`read_picture` is for a file at a time, `decode_picture` for tf.data. Both give the same
pixels: TensorFlow's own decoders take plain JPEG and PNG files, Pillow all else.
"""

import io
import os
import pathlib
import warnings

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from align_jax.errors import InputError

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray

# A header can promise any number of pixels; all of them would be allocated. The limit
# is what Pillow warns from: a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
EXIF = b"Exif\0\0"
HEADER = 4096  # bytes in which Exif data is looked for: it is the first or second part


def read_picture(
    picture: Picture, name: str = "picture", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads one picture.

    Args:
      picture: a path, a file's bytes, a PIL image or a uint8 array (H, W), (H, W, 3)
        or (H, W, 4).
      name: what to call it in messages where it has no path.
      max_pixels: larger ones are refused before they are decoded.

    Returns:
      uint8 (H, W, 3), or (H, W, 4) where it has transparency; the first frame, turned
      as its Exif orientation says.

    Raises:
      InputError: it is missing, broken, cut short, too large or no picture.
    """
    if isinstance(picture, np.ndarray):
        return _check_array(picture, name)
    if isinstance(picture, Image.Image):
        return _to_array(picture, getattr(picture, "filename", "") or name, max_pixels)
    if isinstance(picture, bytes):
        file = io.BytesIO(picture)
    else:
        file, name = pathlib.Path(picture), str(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit follows
            opened = Image.open(file)
    except FileNotFoundError as error:
        raise InputError(f"{name} is missing") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} is no picture that can be read: {error}") from error
    with opened:
        return _to_array(opened, name, max_pixels)


def decode_picture(encoded: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Decodes a file's bytes () to uint8 (H, W, 3 or 4), as `read_picture` does.

    What that refuses ends the pipeline with an error that says what was found.
    """

    def read(content: bytes) -> np.ndarray:
        return read_picture(content, "a record's picture", max_pixels)

    if tf.strings.substr(encoded, 0, len(PNG)) == PNG:
        _check_size(_png_size(encoded), max_pixels)
        pixels = tf.io.decode_png(encoded)  # 1 to 4 channels; 16 bits become 8
        if tf.shape(pixels)[-1] < 3:
            pixels = tf.concat([pixels[..., :1]] * 3 + [pixels[..., 1:]], -1)
    elif _is_plain_jpeg(encoded):
        _check_size(tf.io.extract_jpeg_shape(encoded)[:2], max_pixels)
        pixels = tf.io.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE")
    else:
        pixels = tf.numpy_function(read, [encoded], tf.uint8)
    return tf.ensure_shape(pixels, (None, None, None))


def _is_plain_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file is a JPEG in grey or three colours and without Exif data."""
    if tf.strings.substr(encoded, 0, len(JPEG)) != JPEG:
        return False
    start = tf.io.decode_raw(tf.strings.substr(encoded, 0, HEADER), tf.uint8)
    windows = tf.signal.frame(start, len(EXIF), 1)  # (bytes, 6)
    if tf.reduce_any(tf.reduce_all(windows == tf.constant(list(EXIF), tf.uint8), -1)):
        return False
    return tf.io.extract_jpeg_shape(encoded)[2] <= 3


def _png_size(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width (2,) that a PNG's header states."""
    header = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, False)
    return tf.reverse(header, [0])


def _check_size(size: tf.Tensor, max_pixels: int) -> None:
    """Ends the pipeline where height and width (2,) are more pixels than allowed."""
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    tf.debugging.assert_less_equal(
        pixels, tf.constant(max_pixels, tf.int64), "a record's picture is too large"
    )


def _to_array(picture: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Pixels of an opened picture, which is decoded here; see `read_picture`."""
    width, height = picture.size
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width} x {height} pixels; the limit is {max_pixels:,} in all"
        )
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.mode in ("I", "F"):
            raise InputError(
                f"{name} has pixels of mode {upright.mode!r}, whose range is unknown;"
                " convert it to 8 bits"
            )
        transparent = "A" in upright.getbands() or "transparency" in upright.info
        return np.asarray(upright.convert("RGBA" if transparent else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is broken or cut short: {error}") from error


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
