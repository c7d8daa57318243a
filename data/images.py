"""The image stage: what the rules need to know of every picture."""

import io
import warnings

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

# A header that promises more pixels than this is refused before decoding.
MAX_PIXELS = 100_000_000

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
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("error", pa.string()),
    ]
)


def describe_images(image_ids: list[str], images: list[bytes]) -> pa.Table:
    """Measures pictures; a pure function of its arguments.

    Args:
      image_ids: names of the pictures.
      images: their files' bytes.

    Returns:
      A table of schema IMAGES. Where a picture cannot be decoded, `error` says why
      and width and height are 0.
    """
    rows = []
    for image_id, image in zip(image_ids, images, strict=True):
        width, height, kind, error = _measure(image)
        rows.append((image_id, image, width, height, kind, error))
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 6
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, IMAGES, strict=True)],
        schema=IMAGES,
    )


def _measure(image: bytes) -> tuple[int, int, str | None, str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image)) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    return 0, 0, picture.format, f"{width} x {height} is too large"
                picture.load()
                return width, height, picture.format, None
    except UNREADABLE as error:
        return 0, 0, None, f"{type(error).__name__}: {error}"[:200]
