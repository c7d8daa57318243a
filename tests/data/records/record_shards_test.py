import io

import numpy as np
import pytest
from PIL import Image

from align_jax.pictures import read_picture
from data.records.record_shards import JPEG_QUALITY, reduce_image

ROWS, COLUMNS = np.ogrid[:90, :160]
RED = Image.fromarray((ROWS * 0 + COLUMNS * 255 // 160).astype(np.uint8))
GREEN = Image.fromarray((ROWS * 255 // 90 + COLUMNS * 0).astype(np.uint8))
PICTURE = Image.merge("RGB", [RED, GREEN, RED])


def save(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_a_small_picture_is_untouched():
    for content in (save(PICTURE, "WEBP"), save(PICTURE, "JPEG")):
        assert reduce_image(content, 0) == reduce_image(content, 160) == content


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG")]
)
def test_a_reduced_picture_is_pillows_thumbnail_in_its_format(mode, kind):
    content = save(PICTURE.convert(mode), kind)
    small = Image.open(io.BytesIO(content))
    small.thumbnail((64, 64), Image.Resampling.LANCZOS)
    assert reduce_image(content, 64) == save(small, kind, quality=JPEG_QUALITY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_reduced_picture_shows_what_the_whole_one_shows(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = save(PICTURE, kind, exif=exif)
    whole, reduced = read_picture(content), read_picture(reduce_image(content, 80))
    assert whole.shape == (160, 90, 3)
    assert reduced.shape == (80, 45, 3)
    assert np.abs(whole[::2, ::2].astype(int) - reduced).mean() < 6


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "PA", "I;16", "P", "1"])
def test_every_kind_of_pixels_is_stored(mode):
    picture = PICTURE.convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    content = save(picture, "TIFF")
    whole, reduced = read_picture(content), read_picture(reduce_image(content, 40))
    assert reduced.shape[:2] == (23, 40)
    colours = whole[..., :3].mean((0, 1)), reduced[..., :3].mean((0, 1))
    assert np.abs(colours[0] - colours[1]).max() < 4
