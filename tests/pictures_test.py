import io
import pathlib
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from align_jax import pictures
from align_jax.errors import InputError
from align_jax.picture_orientation import shown_size, turn_upright
from align_jax.pictures import (
    PictureError,
    lay_on_white,
    make_thumbnail,
    open_picture,
    read_picture,
)

DRAW = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(12) * 9, np.arange(16) * 7).astype(np.uint8)
COLOUR = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], -1)


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def both(encoded: bytes) -> np.ndarray:
    """Reads the pixels of a file and asserts that Pillow alone reads the same."""
    pixels = read_picture(encoded)
    assert pixels.dtype == np.uint8
    expected = pictures._read_with_pillow(encoded, "picture", 10**6)
    np.testing.assert_array_equal(pixels, expected)
    return pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_give_their_pixels(kind):
    np.testing.assert_array_equal(both(encode(Image.fromarray(COLOUR), kind)), COLOUR)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("GIF", {}),
    ],
)
def test_lossy_files_are_near_their_pixels(kind, options):
    pixels = both(encode(Image.fromarray(COLOUR), kind, **options))
    assert np.abs(pixels.astype(int) - COLOUR).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_grey_becomes_three_channels(kind):
    pixels = both(encode(Image.fromarray(SMOOTH), kind, quality=100))
    assert pixels.shape == (12, 16, 3)
    assert np.ptp(pixels, axis=-1).max() == 0
    assert np.abs(pixels[..., 0].astype(int) - SMOOTH).max() <= 2


def test_transparency_is_kept():
    alpha = np.dstack([COLOUR, SMOOTH])
    rgba = Image.fromarray(alpha)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(both(encode(rgba, kind)), alpha)
    lossless = both(encode(rgba, "WEBP", lossless=True, exact=True))
    np.testing.assert_array_equal(lossless, alpha)
    grey = both(encode(rgba.convert("LA"), "PNG"))
    np.testing.assert_array_equal(grey[..., 3], SMOOTH)
    assert np.ptp(grey[..., :3], axis=-1).max() == 0
    palette = Image.fromarray(COLOUR).quantize(8)
    encoded = encode(palette, "PNG", transparency=3)
    hidden = np.asarray(palette) == 3
    np.testing.assert_array_equal(both(encoded)[..., 3], np.where(hidden, 0, 255))


def test_sixteen_bits_become_eight():
    wide = Image.fromarray(SMOOTH.astype(np.uint16) * 257)
    np.testing.assert_array_equal(both(encode(wide, "PNG"))[..., 0], SMOOTH)
    np.testing.assert_array_equal(read_picture(wide)[..., 0], SMOOTH)


def test_cmyk_becomes_the_colour_it_shows():
    flat = np.tile(np.array([200, 80, 40], np.uint8), (16, 16, 1))
    encoded = encode(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(both(encoded).astype(int) - flat).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    flips = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    big = np.kron(COLOUR, np.ones((8, 8, 1), np.uint8))
    stored = np.ascontiguousarray(flips[orientation](big))
    encoded = encode(Image.fromarray(stored), "JPEG", exif=exif, quality=95)
    pixels = both(encoded)
    assert pixels.shape == big.shape
    assert np.abs(pixels.astype(int) - big).mean() < 6


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (both(encoded)[..., :3] == [255, 0, 0]).all()


def test_paths_pictures_and_arrays_are_read(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(COLOUR).save(path)
    for form in (path, str(path), Image.fromarray(COLOUR), COLOUR):
        np.testing.assert_array_equal(read_picture(form), COLOUR)
    np.testing.assert_array_equal(read_picture(SMOOTH)[..., 1], SMOOTH)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_cut_short_is_refused_by_name(kind, tmp_path):
    noise = Image.fromarray(DRAW.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    encoded = encode(noise, kind)
    path = tmp_path / "cut.bin"
    path.write_bytes(encoded[: len(encoded) * 2 // 3])
    with pytest.raises(InputError, match=r"cut\.bin is ") as found:
        read_picture(path)
    assert found.value.reason in ("cut short", "not a picture")


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png is missing"):
        read_picture(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="picture 3 is no picture that can be read"):
        read_picture(b"<html>", "picture 3")
    with pytest.raises(InputError, match=r"float64 \(2, 2, 3\); wanted uint8"):
        read_picture(np.zeros((2, 2, 3)))
    with pytest.raises(InputError, match=r"uint8 \(2, 2, 2\); wanted uint8"):
        read_picture(np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(InputError, match="mode 'F', whose range is unknown"):
        read_picture(Image.new("F", (2, 2)))


def test_a_bomb_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    bomb += struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(
        InputError, match=r"picture is too large: Image size \(3000000000"
    ):
        read_picture(bomb)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_limit_of_pixels_holds_for_every_decoder(kind):
    encoded = encode(Image.fromarray(COLOUR), kind)
    assert read_picture(encoded, max_pixels=192).shape == (12, 16, 3)
    with pytest.raises(InputError, match="16 x 12 pixels; the limit is 191 in all"):
        read_picture(encoded, max_pixels=191)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_damaged_metadata_harm_no_pixel(kind):
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}[kind]
    whole = encode(Image.fromarray(COLOUR), kind, **options)
    exif = b"\0\x08\0\x02\x01\x12\0\x03"
    header = b"" if kind == "PNG" else b"Exif\0\0"
    damaged = encode(Image.fromarray(COLOUR), kind, exif=header + exif, **options)
    assert exif in damaged
    np.testing.assert_array_equal(both(damaged), read_picture(whole))


def with_orientation(kind: int, count: int, value: bytes) -> bytes:
    """Makes a JPEG file whose Exif orientation has a type and a number of values."""
    tag = struct.pack("<HHHI", 1, 0x112, kind, count) + value + bytes(4)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tag
    return encode(Image.fromarray(COLOUR), "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize("least", [None, (11, 11)])
def test_an_orientation_is_a_number_from_1_to_8_or_none(least):
    turned = with_orientation(3, 1, struct.pack("<HH", 6, 0))
    assert read_picture(turned, least=least).shape == (16, 12, 3)
    for odd in (
        with_orientation(2, 4, b"6\0\0\0"),  # a text
        with_orientation(3, 1, struct.pack("<HH", 9, 0)),
    ):
        assert read_picture(odd, least=least).shape == (12, 16, 3)


@pytest.mark.parametrize("least", [None, (11, 11)])
def test_an_orientation_is_found_behind_any_metadata(least):
    turned = with_orientation(3, 1, struct.pack("<HH", 6, 0))
    profile = b"\xff\xe2\x60\0" + bytes(0x60_00 - 2)
    behind = turned[:2] + profile + turned[2:]
    assert read_picture(behind, least=least).shape == (16, 12, 3)
    xmp = b'<x tiff:Orientation="6"/>'
    xmp = encode(Image.fromarray(COLOUR), "JPEG", xmp=xmp)
    assert read_picture(xmp, least=least).shape == (16, 12, 3)


def test_pixels_are_written_to_the_memory_that_is_given():
    memory = np.zeros(COLOUR.size, np.uint8)
    encoded = encode(Image.fromarray(COLOUR), "JPEG")
    pixels = read_picture(encoded, buffer=lambda size: memory[:size])
    assert np.shares_memory(pixels, memory)
    np.testing.assert_array_equal(pixels, read_picture(encoded))


def test_no_other_program_is_started_for_a_picture():
    encoded = encode(Image.fromarray(COLOUR), "EPS")
    assert Image.open(io.BytesIO(encoded)).format == "EPS"
    with pytest.raises(PictureError, match="no picture that can be read"):
        read_picture(encoded)
    with pytest.raises(PictureError), open_picture(encoded):
        pass


def test_a_picture_is_opened_before_it_is_decoded():
    encoded = encode(Image.fromarray(COLOUR), "PNG")
    cut = encoded[: len(encoded) // 2]
    with open_picture(cut) as opened:
        assert (opened.size, opened.format) == ((16, 12), "PNG")
    with pytest.raises(PictureError) as found, open_picture(cut) as opened:
        opened.load()
    assert found.value.reason == "cut short"
    with pytest.raises(PictureError, match="the limit is 191 in all"):
        with open_picture(encoded, max_pixels=191):
            pass
    with pytest.raises(PictureError), open_picture(encoded, formats=("JPEG",)):
        pass


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_an_opened_picture_is_turned_as_one_that_is_read(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(COLOUR), kind, exif=exif)
    expected = read_picture(encoded)
    with open_picture(encoded) as opened:
        assert shown_size(opened) == expected.shape[1::-1]
        turned = turn_upright(opened)
        np.testing.assert_array_equal(np.asarray(turned), expected)
        assert turn_upright(turned).size == turned.size  # only once


def test_a_thumbnail_is_upright_and_transparency_laid_on_white():
    exif = Image.Exif()
    exif[0x0112] = 8
    wide = Image.new("RGB", (400, 200), "red")
    small = make_thumbnail(encode(wide, "JPEG", exif=exif), 100)
    assert (small.size, small.mode) == ((50, 100), "RGB")
    assert make_thumbnail(encode(wide, "PNG"), 500).size == (400, 200)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert lay_on_white(clear).getpixel((0, 0)) == (255, 255, 255)
    assert lay_on_white(small) is small


def test_nothing_else_in_the_house_opens_pictures():
    root = pathlib.Path(__file__).parents[1]
    for package in ("align_jax", "data"):
        for path in (root / package).rglob("*.py"):
            opens = "Image.open(" in path.read_text()
            assert opens == (path == root / "align_jax" / "pictures.py"), path


@pytest.mark.parametrize("content", [b"nonsense", b""])
def test_a_refusal_survives_a_worker_and_names_no_address(content):
    with pytest.raises(PictureError) as refused:
        read_picture(content, "picture 3")
    copy = pickle.loads(pickle.dumps(refused.value))
    assert str(copy) == str(refused.value)
    assert copy.reason == refused.value.reason
    assert "0x" not in str(copy)
