"""Measures pictures for the rules: size, format, perceptual hash and readability."""

import numpy as np
import pyarrow as pa
import scipy.fft
from PIL import Image

from align_jax.picture_orientation import shown_size, turn_upright
from align_jax.pictures import (
    PictureError,
    open_picture,
    read_picture,
    take_colours,
    take_eight_bits,
)

HASH_SIDE = 96  # pixels that suffice for a hash; a JPEG is decoded near this size
GREY_SIDE = 32  # side in pixels of the grey picture that is hashed
# The lowest 8 rows of a cosine transform, as integers. So a hash is exact: the same on
# every machine and in every batch size.
COSINES = np.rint(
    scipy.fft.dct(np.eye(GREY_SIDE), axis=0, norm="ortho")[:8] * 2**14
).astype(np.int64)

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("phash", pa.int64()),
        ("error", pa.string()),
    ]
)


def describe_images(image_ids: list[str], images: list[bytes | None]) -> pa.Table:
    """Measures pictures.

    Args:
      image_ids: ids of the pictures.
      images: bytes of the pictures' files; None if only an address is known.

    Returns:
      A table of schema IMAGES: `bytes` is the size of the file; width and height are
      the pixels of the upright picture. If a picture cannot be decoded, `error` is
      `PictureError.reason`, ": " and the message, width and height are 0, format and
      hash are null. For a picture of None, all columns but `image_id` are null.
    """
    measured = [_measure(image) for image in images]
    greys = [grey for *_, grey in measured]
    hashed = [i for i, grey in enumerate(greys) if grey is not None]
    hashes: list[int | None] = [None] * len(images)
    for i, value in zip(hashed, hash_greys([greys[i] for i in hashed]), strict=True):
        hashes[i] = int(value)
    sizes, widths, heights, formats, errors, _ = [
        list(column) for column in zip(*measured, strict=True)
    ] or [[]] * 6
    columns = [image_ids, images, sizes, widths, heights, formats, hashes, errors]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, IMAGES, strict=True)]
    return pa.Table.from_arrays(arrays, schema=IMAGES)


def hash_greys(greys: list[np.ndarray]) -> np.ndarray:
    """Returns the 64-bit perceptual hashes (N,) of N pictures, as signed integers.

    Each bit says whether one of the picture's lowest 8 x 8 frequencies, by a DCT, is
    above their median. Pictures that look alike differ in few bits;
    `data.pictures.near_duplicates` compares them.

    Args:
      greys: N pictures as `shrink` returns them.
    """
    pixels = np.array(greys, np.int64).reshape(-1, GREY_SIDE, GREY_SIDE)
    frequencies = (COSINES @ pixels @ COSINES.T).reshape(-1, 64)
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">i8")[:, 0].astype(np.int64)


def shrink(picture: Image.Image) -> np.ndarray:
    """Returns the grey uint8 pixels (32, 32) that stand for a picture in its hash."""
    size = (GREY_SIDE, GREY_SIDE)
    return np.asarray(picture.convert("L").resize(size, Image.Resampling.BILINEAR))


def _measure(image: bytes | None) -> tuple:
    """Returns bytes (a number), width, height, format, error and grey pixels of a file.

    All are None if `image` is None; the grey pixels are None if decoding fails.
    """
    if image is None:
        return (None,) * 6
    size = len(image)
    try:
        with open_picture(image) as picture:
            width, height = shown_size(picture)
            # The file is read to its end, so a cut file is noticed. A JPEG is decoded
            # at down to an eighth of its size if that suffices for the hash.
            picture.draft("L", (HASH_SIDE, HASH_SIDE))
            upright = take_eight_bits(turn_upright(picture))
            # Pillow converts these modes to colours, but not to grey.
            if upright.mode in ("LAB", "La"):
                upright = take_colours(upright)
            grey = shrink(upright)
            return size, width, height, picture.format, None, grey
    except PictureError as error:
        return _measure_pixels(image, f"{error.reason}: {error}")


def _measure_pixels(image: bytes, why: str) -> tuple:
    """Measures a file that Pillow refuses as `_measure` does.

    Training reads some JPEG files with libjpeg-turbo that Pillow refuses.

    Args:
      image: bytes of the file.
      why: reason and message of Pillow's refusal.
    """
    try:
        pixels = read_picture(image)
    except PictureError:
        return len(image), 0, 0, None, why[:200], None
    height, width, _ = pixels.shape
    return len(image), width, height, "JPEG", None, shrink(Image.fromarray(pixels))
