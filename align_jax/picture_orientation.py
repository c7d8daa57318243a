"""Turns pictures upright, as their Exif orientation says."""

import numpy as np
from PIL import ExifTags, Image

# The operation that turns a picture of each Exif orientation upright: `UPRIGHT` for
# arrays of pixels, `TURNS` for Pillow's images.
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
# The keys under which Pillow keeps metadata that may hold an orientation.
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Returns width and height that an opened picture has after `turn_upright`."""
    width, height = picture.size
    # For a TIFF, Pillow reports the size after turning.
    turned = picture.format != "TIFF" and read_orientation(picture) >= 5
    return (height, width) if turned else (width, height)


def turn_upright(picture: Image.Image) -> Image.Image:
    """Decodes an opened picture and turns it as its Exif orientation says.

    A damaged orientation, or one outside 1 to 8, is ignored. A picture that is turned
    loses its Exif and XMP metadata.
    """
    picture.load()  # before Exif data are read: loading a TIFF turns it
    turn = TURNS.get(read_orientation(picture))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for name in METADATA:  # their orientation does not fit the turned picture
        turned.info.pop(name, None)
    return turned


def turn_pixels(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W) or (H, W, C) of an orientation upright, as a view of them."""
    return UPRIGHT[orientation](pixels) if orientation in UPRIGHT else pixels


def read_orientation(picture: Image.Image) -> int:
    """Returns the Exif orientation, 1 to 8; 1 if it is absent or damaged.

    A PNG file is decoded, since its metadata may follow the pixels. The errors of that
    are raised.
    """
    if picture.format == "PNG":
        picture.load()
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found) if found in range(1, 9) else 1
    except Exception:  # damaged metadata, which do not affect the pixels
        return 1
