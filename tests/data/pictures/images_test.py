import io

import numpy as np
import pytest
from PIL import Image

from data.pictures import images
from data.pictures.images import IMAGES, describe_images, open_picture, perceptual_hash


def encode(size, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


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
    assert "DecompressionBombError" in row["error"]


def test_a_picture_beyond_the_limit_is_not_opened(monkeypatch):
    with open_picture(encode((4, 5))) as picture:
        assert picture.size == (4, 5)
    monkeypatch.setattr(images, "MAX_PIXELS", 19)
    with (
        pytest.raises(images.UNREADABLE, match="4 x 5 is too large"),
        open_picture(encode((4, 5))),
    ):
        pass


def test_no_pictures_give_an_empty_table():
    assert describe_images([], []).schema == IMAGES


def test_where_only_the_address_is_known_nothing_else_is():
    (row,) = describe_images(["x"], [None]).to_pylist()
    assert row.pop("image_id") == "x"
    assert set(row.values()) == {None}


def test_a_perceptual_hash_outlives_size_and_compression():
    noise = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    one, other = (Image.fromarray(n).resize((300, 200)) for n in noise)
    whole = perceptual_hash(one)
    assert -(2**63) <= whole < 2**63
    file = io.BytesIO()
    one.resize((150, 100)).save(file, "JPEG", quality=60)
    (row,) = describe_images(["x"], [file.getvalue()]).to_pylist()
    assert (row["phash"] ^ whole).bit_count() <= 2
    assert (perceptual_hash(other) ^ whole).bit_count() > 12


def test_the_bytes_of_every_file_are_counted():
    files = [encode((5, 7)), b"broken"]
    assert describe_images(["a", "b"], files)["bytes"].to_pylist() == [*map(len, files)]
