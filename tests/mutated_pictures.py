"""Small pictures of every accepted format, and damaged copies of them for fuzzing."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDES = 40, 24  # width and height of the pictures
HEAD = 200  # bytes that hold most fields of a header
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 4000, 9000)
# Formats that Pillow reads, or a program behind it, and that are not accepted.
STUBS = (
    b"%PDF-1.4\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n%%EndComments\n",
    b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x18\0\0\0\x28\0\x08\0\3",
    b"SIMPLE  =                    T",
    b"\x89HDF\r\n\x1a\n",
    b"GRIB\0\0\0\1",
    b"BUFR\0\0\0\1",
    b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x28\0\x18\0",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"#EXTM3U\n",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
)


def draw_pictures() -> dict[str, bytes]:
    """Draws files of every accepted format, in many modes and with metadata, by name.

    The names of files whose format is not accepted begin with "no ".
    """
    drawn = np.random.default_rng(0).integers(0, 256, (6, 10, 4), dtype=np.uint8)
    rgba = Image.fromarray(drawn).resize(SIDES)
    rgb, grey, palette = (rgba.convert(mode) for mode in ("RGB", "L", "P"))
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [palette.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    pictures = {
        "JPEG": [(rgb, {}), (grey, {}), (rgb.convert("CMYK"), {})],
        "PNG": [(rgb, {}), (rgba, {}), (palette, {"transparency": 3}), (wide, {})],
        "GIF": [(palette, {}), (palette, frames), (grey, {"transparency": 9})],
        "WEBP": [(rgb, {}), (rgba, {"lossless": True}), (rgba, frames)],
        "BMP": [(rgb, {}), (palette, {}), (grey.convert("1"), {})],
        "TIFF": [(rgb.convert(mode), {}) for mode in ("CMYK", "YCbCr", "F", "I", "PA")],
        "AVIF": [(rgb, {}), (rgba, {"speed": 10})],
    }
    pictures["JPEG"] += [(rgb, {"progressive": True}), (rgb, {"exif": exif})]
    pictures["PNG"] += [(rgb, {"exif": exif}), (grey.convert("1"), {})]
    pictures["WEBP"] += [(rgb, {"exif": exif})]
    pictures["AVIF"] += [(rgb, {"exif": exif})]
    pictures["TIFF"] += [(rgba, {"exif": exif}), (wide, {}), (rgb, {"big_tiff": True})]
    for method in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        pictures["TIFF"] += [(rgb, {"compression": method})]
    pictures["TIFF"] += [(grey.convert("1"), {"compression": "group4"})]
    files = {}
    for kind, drawings in pictures.items():
        for number, (picture, options) in enumerate(drawings):
            files[f"{kind} {number}"] = encode(picture, kind, **options)
    files["BMP of runs"] = runs()
    files["TIFF of tiles"] = tiles(drawn[..., 0])
    for kind in (
        "EPS",
        "PPM",
        "ICO",
        "DDS",
        "TGA",
        "PCX",
        "SGI",
        "XBM",
        "JPEG2000",
    ):
        picture = grey.convert("1") if kind == "XBM" else rgb
        files[f"no {kind}"] = encode(picture, kind)
    return files | {f"no stub {i}": stub * 3 for i, stub in enumerate(STUBS)}


def mutate(files: dict[str, bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yields damaged copies of files, the same for the same seed.

    One in ten is a copy of a file whose format is not accepted.
    """
    chance, contents = random.Random(seed), list(files.values())
    accepted = [files[name] for name in files if not name.startswith("no ")]
    for number in range(count):
        choices = accepted if number % 10 else contents
        content = bytearray(choices[number % len(choices)])
        for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 3, 8))):
            chance.choice(MUTATIONS)(content, chance, contents)
        if content.startswith(b"\x89PNG") and chance.random() < 0.7:
            mend_checksums(content)
        yield bytes(content)


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    """Returns a picture as a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def runs() -> bytes:
    """Makes a BMP file of 8 bits with run lengths."""
    width, height = SIDES
    data = b"".join(bytes([width, row, 0, 0]) for row in range(height)) + b"\0\1"
    start = 54 + 1024
    head = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    fields = (40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    head += struct.pack("<IiiHHIIiiII", *fields)
    return head + bytes(range(256)) * 4 + data


def tiles(grey: np.ndarray) -> bytes:
    """Makes an uncompressed TIFF file of grey pixels with one tile of 16 x 16."""
    height, width = grey.shape
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    tags |= {322: 16, 323: 16, 324: 256, 325: 256}
    content = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, value in sorted(tags.items()):
        content += struct.pack("<HHII", tag, 4, 1, value)
    tile = np.zeros((16, 16), np.uint8)
    tile[:height, :width] = grey
    return (content + bytes(4)).ljust(256, b"\0") + tile.tobytes()


def mend_checksums(content: bytearray) -> None:
    """Gives the chunks of a PNG file the checksums of their bytes."""
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4


def _place(content: bytearray, chance: random.Random) -> int:
    most = len(content) if chance.random() < 0.5 else min(HEAD, len(content))
    return chance.randrange(max(most, 1))


def _flip(content: bytearray, chance: random.Random, _: list[bytes]) -> None:
    if content:
        content[_place(content, chance)] ^= 1 << chance.randrange(8)


def _set(content: bytearray, chance: random.Random, _: list[bytes]) -> None:
    size, order = chance.choice((1, 2, 4)), chance.choice(("little", "big"))
    at = _place(content, chance)
    value = chance.choice(EXTREMES) & (1 << 8 * size) - 1
    content[at : at + size] = value.to_bytes(size, order)


def _cut(content: bytearray, chance: random.Random, _: list[bytes]) -> None:
    del content[_place(content, chance) :]


def _remove(content: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = _place(content, chance)
    del content[at : at + chance.choice((1, 2, 8, 64))]


def _repeat(content: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = _place(content, chance)
    content[at:at] = content[at : at + chance.choice((4, 16, 128))] * chance.choice(
        (1, 9)
    )


def _splice(content: bytearray, chance: random.Random, others: list[bytes]) -> None:
    other = chance.choice(others)
    content[_place(content, chance) :] = other[chance.randrange(len(other)) :]


MUTATIONS = (_flip, _flip, _flip, _set, _set, _set, _cut, _remove, _repeat, _splice)
