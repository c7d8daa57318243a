import io

import numpy as np
import pytest
from PIL import Image

from align_jax.errors import InputError
from align_jax.pictures import read_picture
from data.pictures.images import IMAGES, describe_images, hash_greys, shrink


def encode(size, kind="PNG"):
    return save(Image.new("RGB", size), kind)


def save(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def draw():
    """Draws a picture of 90 x 60 pixels with spots."""
    spots = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((90, 60))


def test_pictures_are_measured_and_broken_ones_are_rows():
    whole = encode((40, 30), "JPEG")
    images = [encode((5, 7)), whole, whole[: len(whole) // 2], b"", b"GIF89a"]
    table = describe_images([*"abcde"], images)
    assert table.schema == IMAGES
    rows = table.to_pylist()
    assert [(r["width"], r["height"], r["format"]) for r in rows[:2]] == [
        (5, 7, "PNG"),
        (40, 30, "JPEG"),
    ]
    assert [r["error"] is None for r in rows] == [True, True, False, False, False]
    assert [r["image"] for r in rows] == images


def test_a_bomb_is_refused_before_decoding():
    png = bytearray(encode((1, 1)))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = __import__("zlib").crc32(bytes(png[12:29])).to_bytes(4, "big")
    (row,) = describe_images(["bomb"], [bytes(png)]).to_pylist()
    assert (row["width"], row["height"]) == (0, 0)
    assert "is too large" in row["error"]


@pytest.mark.filterwarnings("ignore:::PIL")
def test_a_picture_that_training_refuses_for_its_size_is_refused():
    large = save(Image.new("1", (10_000, 9_000)), "PNG")
    (row,) = describe_images(["large"], [large]).to_pylist()
    assert "10000 x 9000 pixels; the limit is 89,478,485 in all" in row["error"]
    assert (row["width"], row["height"], row["phash"]) == (0, 0, None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_measured_as_it_is_shown(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = draw()
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    files = [save(picture, kind, **options), save(lying, kind, exif=exif, **options)]
    shown, turned = describe_images(["shown", "turned"], files).to_pylist()
    assert (turned["width"], turned["height"]) == (90, 60)
    assert (shown["width"], shown["height"]) == (90, 60)
    assert (shown["phash"] ^ turned["phash"]).bit_count() <= 2 * (kind == "JPEG")
    (as_it_lies,) = describe_images(["lying"], [save(lying, kind)]).to_pylist()
    assert (shown["phash"] ^ as_it_lies["phash"]).bit_count() > 12


def test_sixteen_bits_have_the_hash_of_their_upper_eight():
    grey = draw().convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    files = [save(grey, "PNG"), save(wide, "PNG")]
    first, second = describe_images(["grey", "wide"], files)["phash"].to_pylist()
    assert first == second


def test_what_training_cannot_read_is_broken_here_too():
    picture = draw()
    files = [save(picture, "JPEG"), save(picture, "PNG", exif=b"\0\x08\0\x02\x01")]
    files += [save(picture.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr")]
    refused = [save(picture.convert(mode), "TIFF") for mode in ("F", "I")]
    refused += [save(picture, "EPS"), save(picture, "GIF")[:200], b"\xff\xd8\xff"]
    for content, error in zip(
        files + refused,
        describe_images([""] * 9, files + refused)["error"].to_pylist(),
        strict=True,
    ):
        if content in refused:
            with pytest.raises(InputError):
                read_picture(content)
            assert error
        else:
            read_picture(content)
            assert error is None


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "AVIF", "BMP"])
def test_a_picture_with_damaged_pixels_is_broken_in_the_corpus_too(kind):
    whole = bytearray(save(draw(), kind))
    del whole[len(whole) * 2 // 3 :]
    with pytest.raises(InputError):
        read_picture(bytes(whole))
    (row,) = describe_images(["cut"], [bytes(whole)]).to_pylist()
    assert row["error"]
    assert (row["width"], row["format"], row["phash"]) == (0, None, None)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_no_damage_ends_the_stage():
    random = np.random.default_rng(0)
    files = []
    for kind, mode in (("AVIF", "RGB"), ("BLP", "P"), ("DDS", "RGB"), ("TIFF", "RGB")):
        whole = save(Image.new(mode, (32, 32)), kind)
        for _ in range(100):
            content = bytearray(whole)
            for place in random.integers(0, min(len(whole), 300), 4):
                content[place] = random.choice([0, 128, 255])
            files.append(bytes(content))
    errors = describe_images([""] * len(files), files)["error"]
    assert 0 < errors.null_count < len(files)


def test_no_pictures_give_an_empty_table():
    assert describe_images([], []).schema == IMAGES


def test_where_only_the_address_is_known_nothing_else_is():
    (row,) = describe_images(["x"], [None]).to_pylist()
    assert row.pop("image_id") == "x"
    assert set(row.values()) == {None}


def test_a_perceptual_hash_outlives_size_and_compression():
    noise = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    one, other = (Image.fromarray(n).resize((300, 200)) for n in noise)
    whole, unlike = hash_greys([shrink(one), shrink(other)]).tolist()
    assert -(2**63) <= whole < 2**63
    file = io.BytesIO()
    one.resize((150, 100)).save(file, "JPEG", quality=60)
    (row,) = describe_images(["x"], [file.getvalue()]).to_pylist()
    assert (row["phash"] ^ whole).bit_count() <= 2
    assert (unlike ^ whole).bit_count() > 12


def test_the_bytes_of_every_file_are_counted():
    files = [encode((5, 7)), b"broken"]
    assert describe_images(["a", "b"], files)["bytes"].to_pylist() == [*map(len, files)]
