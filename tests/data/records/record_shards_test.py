import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from align_jax.pictures import read_picture
from data.pictures.images import describe_images
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


def in_lab(picture: Image.Image) -> Image.Image:
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "PA", "I;16", "P", "1", "LAB"])
def test_every_kind_of_pixels_is_stored(mode):
    picture = PICTURE.convert({"I;16": "L", "LAB": "RGB"}.get(mode, mode))
    if mode == "LAB":
        picture = in_lab(picture)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    content = save(picture, "TIFF")
    whole, reduced = read_picture(content), read_picture(reduce_image(content, 40))
    assert reduced.shape[:2] == (23, 40)
    colours = whole[..., :3].mean((0, 1)), reduced[..., :3].mean((0, 1))
    assert np.abs(colours[0] - colours[1]).max() < 4


@pytest.mark.parametrize("mode", ["LAB", "RGB", "1", "L"])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_a_picture_without_alpha_gets_none(mode, kind):
    if (mode, kind) == ("LAB", "PNG"):
        pytest.skip("PNG has no such pixels")
    content = save(in_lab(PICTURE) if mode == "LAB" else PICTURE.convert(mode), kind)
    for file in (content, reduce_image(content, 40)):
        assert read_picture(file).shape[2] == 3
    (error,) = describe_images(["a"], [content])["error"].to_pylist()
    assert error is None


def test_a_picture_of_one_bit_is_reduced_to_greys():
    """Every second column is white, so that the nearest pixels would be all equal."""
    pixels = np.zeros((90, 160), bool)
    pixels[:, ::2] = True
    for kind in ("PNG", "TIFF"):
        content = save(Image.fromarray(pixels), kind)
        assert Image.open(io.BytesIO(content)).mode == "1"
        reduced = read_picture(reduce_image(content, 40))
        assert np.abs(reduced.astype(int) - 127.5).max() < 25


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16", "P"])
def test_transparent_colours_become_alpha_when_a_picture_is_reduced(mode):
    picture = Image.new("RGB", (160, 90))
    picture.paste((255, 255, 255), (0, 0, 80, 90))
    key: int | tuple = 0
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        picture = Image.fromarray(grey)
    else:
        picture = picture.convert(mode)
        key = (0, 0, 0) if mode == "RGB" else picture.getpixel((159, 0))
    content = save(picture, "PNG", transparency=key)
    for file in (content, reduce_image(content, 40)):
        alpha = read_picture(file)[..., 3]
        assert (alpha[:, : alpha.shape[1] // 2 - 3] == 255).all()
        assert (alpha[:, alpha.shape[1] // 2 + 3 :] == 0).all()
