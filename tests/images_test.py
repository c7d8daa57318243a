import io

from PIL import Image

from data.images import IMAGES, describe_images


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


def test_no_pictures_give_an_empty_table():
    assert describe_images([], []).schema == IMAGES
