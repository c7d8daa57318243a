"""Checks of untrusted picture files, made before they are decoded."""

import base64
import binascii
import sys

from align_jax.errors import InputError
from align_jax.pictures import FORMATS, PictureError, open_picture

MAX_PIXELS = 25_000_000  # of an uploaded picture


def read_upload(content: str) -> bytes:
    """Decodes base64, and checks the picture file, which is returned still encoded.

    Raises:
      InputError: the text is no base64, the file is no picture, or the picture has too
        many pixels or is beyond a limit of `picture_limits`.
    """
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the picture is no base64: {error}") from error
    pixels = count_pixels(file)
    if pixels > MAX_PIXELS:
        raise InputError(f"the picture has {pixels:,} pixels; at most {MAX_PIXELS:,}")
    return file


def count_pixels(file: bytes) -> int:
    """Returns height times width from the header of a picture file.

    Raises:
      InputError: the file is no picture of one of `FORMATS`, is beyond a limit of
        `picture_limits`, or Pillow refuses its number of pixels.
    """
    try:
        with open_picture(file, "the picture", max_pixels=sys.maxsize) as picture:
            return picture.width * picture.height
    except PictureError as error:
        if error.reason == "too complex":
            raise
        if error.reason == "too large":  # beyond the size that Pillow opens
            message = f"the picture has more than {MAX_PIXELS:,} pixels"
            raise InputError(message) from error
        known = ", ".join(FORMATS)
        message = f"the file is no picture that can be read ({known})"
        raise InputError(message) from error
