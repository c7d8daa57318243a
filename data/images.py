"""The image stage: what the rules need to know of every picture."""

import io
import warnings

import numpy as np
import pyarrow as pa
import scipy.fft
from PIL import Image, UnidentifiedImageError

# A header that promises more pixels than this is refused before decoding.
MAX_PIXELS = 100_000_000

HASH_SIDE = 96  # pixels that are enough for a hash; a JPEG is computed near that size

# What Pillow raises for a file that is broken, cut short or no picture at all.
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
)

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
    """Measures pictures; a pure function of its arguments.

    Args:
      image_ids: names of the pictures.
      images: their files' bytes; None where only an address is known.

    Returns:
      A table of schema IMAGES. Where a picture cannot be decoded, `error` says why,
      width and height are 0 and there is no hash. Where there are no bytes, all but
      the name is null.
    """
    rows = [
        (image_id, image, *_measure(image))
        for image_id, image in zip(image_ids, images, strict=True)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.Table.from_arrays(
        [
            pa.array(c, f.type)
            for c, f in zip(columns or [[]] * len(IMAGES), IMAGES, strict=True)
        ],
        schema=IMAGES,
    )


def perceptual_hash(picture: Image.Image) -> int:
    """The 64-bit hash of a picture, as a signed integer.

    Of its lowest 8 x 8 frequencies (a DCT of 32 x 32 grey pixels), which are above
    their median. Pictures that look alike differ in few bits: `data.near_duplicates`.
    """
    grey = picture.convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    frequencies = scipy.fft.dctn(np.asarray(grey, np.float32))[:8, :8]
    bits = frequencies > np.median(frequencies)
    return int(np.packbits(bits).view(">i8")[0])


def _measure(image: bytes | None) -> tuple:
    """Bytes, width, height, format, hash and error of one file."""
    if image is None:
        return (None,) * 6
    size = len(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image)) as picture:
                width, height = picture.size
                kind = picture.format
                if width * height > MAX_PIXELS:
                    return size, 0, 0, kind, None, f"{width} x {height} is too large"
                # The whole file is read, so one cut short is found, but a JPEG is
                # computed at an eighth of its size where that is enough.
                picture.draft("L", (HASH_SIDE, HASH_SIDE))
                return size, width, height, kind, perceptual_hash(picture), None
    except UNREADABLE as error:
        return size, 0, 0, None, None, f"{type(error).__name__}: {error}"[:200]
