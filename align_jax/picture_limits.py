"""Limits of picture files, checked on their bytes before a decoder sees them.

A few kilobytes can make a decoder work for minutes or allocate gigabytes. The functions
here walk a file's markers, chunks or fields and decode nothing.
"""

import re
import struct
from collections.abc import Callable, Iterator

MAX_BYTES = 64 * 2**20  # of a file
MAX_SIDE = 65_535  # pixels, the largest that JPEG knows

# Each scan of a JPEG file is a pass over all its pixels. The usual progressive files
# have ten scans; small pictures may have more.
MAX_SCANS, SCANS_OF_ANY_SIZE, SCANNED_PIXELS = 100, 20, 2_000_000_000
MAX_SEGMENTS = 2_000  # metadata blocks of a JPEG or PNG file
MAX_TILES = 100_000  # tiles or strips of a TIFF, data chunks of a PNG, blocks of a GIF
# Tiles may be larger than a small picture, and Pillow decodes BMP runs in Python.
MAX_TILE_PIXELS = MAX_RUN_PIXELS = 2**22

MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
SCAN = b"\xff\xda"
START_OF_SCAN, START_OF_IMAGE, END_OF_IMAGE, BARE = 0xDA, 0xD8, 0xD9, 0x01
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frames that may have one scan only

# TIFF tags, and the struct codes of the types that hold one integer.
WIDTH, HEIGHT, STRIP_ROWS, TILE_WIDTH, TILE_HEIGHT = 256, 257, 278, 322, 323
LISTS = {273: "strips", 279: "strips", 324: "tiles", 325: "tiles"}
INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}
INTEGERS |= {16: "Q", 17: "q", 18: "Q"}


def find_excess(content: bytes) -> str:
    """Returns the limit that a picture file exceeds, or an empty string.

    The result completes a sentence that begins with the picture's name. A damaged file
    is within the limits as far as it can be read; decoders judge the damage.

    Args:
      content: bytes of a file of any format.
    """
    for signature, check in CHECKS.items():
        if content.startswith(signature):
            try:
                return check(content)
            except (struct.error, IndexError, OverflowError):
                return ""  # the file ends early
    return ""


def allowed_scans(pixels: int) -> int:
    """Returns the largest number of scans of a JPEG file of some number of pixels."""
    scans = SCANNED_PIXELS // max(pixels, 1)
    return max(SCANS_OF_ANY_SIZE, min(MAX_SCANS, scans))


def jpeg_header(content: bytes) -> bytes:
    """Returns the part of a JPEG file before its first scan."""
    for marker, start in _jpeg_markers(content):
        if marker == START_OF_SCAN:
            return content[:start]
    return content


def _jpeg_markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields (marker, offset behind it) of a JPEG file, to the end of its picture."""
    at = 2
    while found := MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            return
        if marker not in (START_OF_IMAGE, BARE):
            yield marker, at
            at += max(2, int.from_bytes(content[at : at + 2]))


def _jpeg_excess(content: bytes) -> str:
    scans = segments = pixels = frame = components = 0
    for marker, at in _jpeg_markers(content):
        if marker in START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", content, at + 3)
            frame, pixels = marker, max(pixels, height * width)
        if marker != START_OF_SCAN:
            segments += 1
        elif scans or frame not in SEQUENTIAL or content[at + 2] < components:
            # Searching the pixels for markers is slow, and seldom needed.
            if not scans and content.count(SCAN) <= SCANS_OF_ANY_SIZE:
                break
            scans += 1
        else:
            break  # one scan has all colours
        if scans > (most := allowed_scans(pixels)):
            return f"has more than {most} scans"
        if segments > MAX_SEGMENTS:
            return f"has more than {MAX_SEGMENTS:,} segments"
    return ""


def _png_excess(content: bytes) -> str:
    data = others = 0
    at = 8
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        is_data = kind in (b"IDAT", b"fdAT", b"fcTL")
        data += is_data
        others += not is_data
        if data > MAX_TILES:
            return f"has more than {MAX_TILES:,} chunks of pixels"
        if others > MAX_SEGMENTS:
            return f"has more than {MAX_SEGMENTS:,} chunks of metadata"
        at += 12 + length
    return ""


def _gif_excess(content: bytes) -> str:
    """Counts the blocks before the first frame; Pillow reads each in Python."""
    flags = content[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while at < len(content) and content[at : at + 1] not in (b",", b";"):
        is_extension = content[at : at + 1] == b"!"
        at += 2 if is_extension else 1
        blocks += 1
        while is_extension and (length := content[at]) and blocks <= MAX_TILES:
            at += 1 + length
            blocks += 1
        at += is_extension
        if blocks > MAX_TILES:
            return f"has more than {MAX_TILES:,} blocks before its first frame"
    return ""


def _bmp_excess(content: bytes) -> str:
    width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18)
    if compression in (1, 2) and abs(width * height) > MAX_RUN_PIXELS:
        return f"has run lengths; the limit is {MAX_RUN_PIXELS:,} pixels"
    return ""


def _tiff_excess(content: bytes) -> str:
    # Pillow and libtiff disagree about which files are BigTIFF, so both are tried.
    for is_big in {content[2] == 43, 43 in content[2:4]}:
        if excess := _directory_excess(_first_directory(content, is_big)):
            return excess
    return ""


def _directory_excess(fields: dict[int, tuple[int, int]]) -> str:
    """Checks the first directory's fields, which are (count, integer) by tag."""

    def value(tag: int, default: int) -> int:
        count, found = fields.get(tag, (0, 0))
        return found if count == 1 and found > 0 else default

    width, height = value(WIDTH, 1), value(HEIGHT, 1)
    for tag, parts in LISTS.items():
        if fields.get(tag, (0, 0))[0] > MAX_TILES:
            return f"has more than {MAX_TILES:,} {parts}"
    if TILE_WIDTH in fields or TILE_HEIGHT in fields:
        columns, rows = value(TILE_WIDTH, width), value(TILE_HEIGHT, height)
        if columns * rows > max(width * height, MAX_TILE_PIXELS):
            return f"has tiles of {columns} x {rows} pixels for {width} x {height}"
        if -(-width // columns) * -(-height // rows) > MAX_TILES:
            return f"has more than {MAX_TILES:,} tiles"
    elif -(-height // value(STRIP_ROWS, height)) > MAX_TILES:
        return f"has more than {MAX_TILES:,} strips"
    return ""


def _first_directory(content: bytes, is_big: bool) -> dict[int, tuple[int, int]]:
    """Reads (count, integer) of a TIFF file's fields, by tag; 0 for no integer.

    A tag that occurs several times has the largest of its counts and integers, since
    decoders differ in which one they take.
    """
    order = "<" if content[:2] == b"II" else ">"
    at = struct.unpack_from(order + "IQ"[is_big], content, (4, 8)[is_big])[0]
    entries = struct.unpack_from(order + "HQ"[is_big], content, at)[0]
    at += (2, 8)[is_big]
    entry = struct.Struct(order + ("HHI4s", "HHQ8s")[is_big])
    fields: dict[int, tuple[int, int]] = {}
    for _ in range(min(entries, 2**16)):
        if at + entry.size > len(content):
            break
        tag, kind, count, inline = entry.unpack_from(content, at)
        at += entry.size
        code = INTEGERS.get(kind, "")
        fits = code and struct.calcsize(f"={code}") <= len(inline)
        integer = struct.unpack_from(order + code, inline)[0] if fits else 0
        earlier = fields.get(tag, (0, 0))
        fields[tag] = (max(count, earlier[0]), max(integer, earlier[1]))
    return fields


CHECKS: dict[bytes, Callable[[bytes], str]] = {
    b"\xff\xd8": _jpeg_excess,
    b"\x89PNG\r\n\x1a\n": _png_excess,
    b"GIF8": _gif_excess,
    b"BM": _bmp_excess,
    b"II": _tiff_excess,
    b"MM": _tiff_excess,
}
