import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from align_jax.errors import InputError
from align_jax.picture_limits import MAX_SEGMENTS, MAX_TILES, allowed_scans
from align_jax.pictures import PictureError, open_picture, read_picture
from align_jax.search.collection import Folder
from data.pictures.images import describe_images

NOISE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def encode(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """Makes a grey progressive JPEG; all its scans after the first are empty."""
    content = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    content += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    content += segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\0")
    content += segment(0xC4, b"\x10" + bytes([0, 3] + [0] * 14) + b"\0\xe0\x11")
    content += segment(0xDA, b"\1\1\0\0\0\0") + b"\0"
    return content + segment(0xDA, b"\1\1\0\1\x3f\0") * (scans - 1) + b"\xff\xd9"


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def tiff(fields: dict[int, tuple], order: str = "<", is_big: bool = False) -> bytes:
    """Makes a TIFF file of fields (type, count, value); the values need 4 bytes."""
    mark = {"<": b"II", ">": b"MM"}[order]
    number, size = ("Q", 16) if is_big else ("I", 8)
    head = (43, 8, 0, 16) if is_big else (42, 8)
    content = mark + struct.pack(order + ("HHHQ" if is_big else "HI"), *head)
    content += struct.pack(order + ("Q" if is_big else "H"), len(fields))
    for tag, (kind, count, value) in sorted(fields.items()):
        code = {3: "H", 4: "I"}[kind] if count == 1 else number
        value = struct.pack(order + code, value).ljust(struct.calcsize(number), b"\0")
        content += struct.pack(order + f"HH{number}", tag, kind, count) + value
    return content + bytes(size)


GREY = {258: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1), 259: (3, 1, 5)}
SMALL = {256: (3, 1, 16), 257: (3, 1, 16), **GREY}
TILED = {**SMALL, 324: (4, 1, 8), 325: (4, 1, 8)}
TALL = {**GREY, 256: (3, 1, 1), 257: (4, 1, 60_000_000), 279: (4, 1, 8)}
PNG_HEAD = b"\x89PNG\r\n\x1a\n" + chunk(
    b"IHDR", struct.pack(">IIBBBBB", *[1] * 2, 8, *[0] * 4)
)
GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
BMP_HEAD = struct.pack("<2sIIIIiiHHI", b"BM", 0, 0, 54, 40, 9000, 9000, 1, 8, 1)
BOMBS = {
    "scans": (jpeg_of_scans(4000, 1500), "more than 100 scans"),
    "scans of a large picture": (jpeg_of_scans(9000, 30), "more than 24 scans"),
    "segments": (
        b"\xff\xd8" + segment(0xE1, b"") * (MAX_SEGMENTS + 1) + encode("JPEG")[2:],
        "more than 2,000 segments",
    ),
    "segments of an oriented picture": (
        b"\xff\xd8"
        + segment(0xE1, b"Exif\0\0")
        + segment(0xFE, b"") * 500_000
        + encode("JPEG")[2:],
        "more than 2,000 segments",
    ),
    "tiles": (
        tiff({**TILED, 322: (4, 1, 20_000), 323: (4, 1, 20_000)}),
        "tiles of 20000 x 20000 pixels for 16 x 16",
    ),
    "tiles in the other order of bytes": (
        tiff({**TILED, 322: (3, 1, 60_000), 323: (3, 1, 60_000)}, ">"),
        "tiles of 60000 x 60000 pixels for 16 x 16",
    ),
    "tiles of a BigTIFF": (
        tiff({**TILED, 322: (4, 1, 20_000), 323: (4, 1, 20_000)}, "<", True),
        "tiles of 20000 x 20000 pixels for 16 x 16",
    ),
    "tiny tiles": (
        tiff({**TALL, 322: (3, 1, 1), 323: (3, 1, 1)}),
        "more than 100,000 tiles",
    ),
    "strips": (tiff({**TALL, 278: (3, 1, 1)}), "more than 100,000 strips"),
    "offsets": (
        tiff({**SMALL, 273: (4, 10**6, 8)}) + bytes(4 * 10**6),
        "more than 100,000 strips",
    ),
    "chunks": (
        PNG_HEAD + chunk(b"tEXt", b"a\0b") * (MAX_SEGMENTS + 1),
        "more than 2,000 chunks of metadata",
    ),
    "chunks of pixels": (
        PNG_HEAD + chunk(b"IDAT") * (MAX_TILES + 1),
        "more than 100,000 chunks of pixels",
    ),
    "blocks": (
        GIF_HEAD + b"!\xfe" + b"\1a" * MAX_TILES + b"\0",
        "more than 100,000 blocks",
    ),
    "extensions": (GIF_HEAD + b"!\xfe\0" * (MAX_TILES + 1), "more than 100,000 blocks"),
    "run lengths": (BMP_HEAD + bytes(20) + b"\1\1\0\0" * 9000, "4,194,304 pixels"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_costs_far_more_than_its_size_is_refused_at_once(name):
    content, message = BOMBS[name]
    begun = time.process_time()
    with pytest.raises(PictureError, match=message) as refused:
        read_picture(content)
    assert refused.value.reason == "too complex"
    with pytest.raises(PictureError, match=message), open_picture(content):
        pass
    (row,) = describe_images(["a"], [content]).to_pylist()
    assert message in row["error"]
    assert time.process_time() - begun < 1


def test_small_pictures_may_have_more_scans_than_large_ones():
    assert allowed_scans(4000 * 4000) == 100
    assert allowed_scans(89_478_485) == 22
    assert allowed_scans(10**9) == 20
    assert read_picture(jpeg_of_scans(64, 100)).shape == (64, 64, 3)


def test_a_sequential_file_may_have_one_scan_of_all_colours_or_several():
    content = encode("JPEG")
    behind = content[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 500 + content[-2:]
    with pytest.raises(PictureError, match="is broken"):  # at the second scan
        read_picture(behind)
    divided = content.replace(
        b"\xff\xda\0\x0c\3", b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 101
    )
    with pytest.raises(PictureError, match="more than 100 scans"):
        read_picture(divided)


def test_only_the_markers_of_the_first_picture_of_a_file_count():
    whole = read_picture(encode("JPEG", progressive=True))
    thumbnail = jpeg_of_scans(8, 500)
    trailer = encode("JPEG", progressive=True) + b"\xff\xda" * 500
    stuffed = encode("JPEG", progressive=True, comment=b"\xff\xda" * 500)
    hidden = encode("JPEG", progressive=True, exif=b"Exif\0\0" + thumbnail)
    for content in (trailer, stuffed, hidden):
        np.testing.assert_array_equal(read_picture(content), whole)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_the_limits_leave_what_programs_write(kind):
    assert read_picture(encode(kind)).shape == (64, 48, 3)


def test_tiles_may_be_larger_than_a_small_picture():
    small = {**SMALL, 259: (3, 1, 1), 322: (3, 1, 1024), 323: (3, 1, 1024)}
    content = tiff({**small, 324: (4, 1, 256), 325: (4, 1, 2**20)})
    content = content.ljust(256, b"\0") + b"\x07" * 2**20
    assert (read_picture(content) == 7).all()


def test_the_bytes_of_a_file_and_the_sides_of_a_picture_are_bounded(
    tmp_path, monkeypatch
):
    path = tmp_path / "large.png"
    path.write_bytes(encode("PNG"))
    monkeypatch.setattr("align_jax.pictures.MAX_BYTES", 1000)
    for form in (path, path.read_bytes()):
        with pytest.raises(InputError, match="bytes; the limit is 1,000"):
            read_picture(form)
    (entry,) = Folder(str(tmp_path))
    with pytest.raises(InputError, match=r"large\.png is a file of .* 1,000"):
        read_picture(entry.picture)
    file = io.BytesIO()
    Image.new("1", (65_536, 1)).save(file, "PNG")
    with pytest.raises(PictureError, match="the limit is 65,535 on a side"):
        read_picture(file.getvalue())
