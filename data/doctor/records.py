"""Reads a dataset's shards for the doctor: framing, records and their contents.

The doctor keeps 32 bytes per record of any size: three hashes and an offset.
"""

import array
import contextlib
import dataclasses
import hashlib
import pathlib
import struct
import tempfile
from collections.abc import Callable, Iterator

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.lib.io import tf_record

from align_jax import places
from align_jax.errors import one_line
from data.corpus.ingest import identify
from data.pictures.images import describe_images

HEADER, FOOTER = 12, 4  # bytes of TFRecord's framing around a record
DECODED_TOGETHER = 64  # pictures
COPIED_BYTES = 16 * 2**20  # of a file in a bucket, read together
TEXT_NAMES = ("text", "texts", "caption", "captions")


@dataclasses.dataclass
class ShardScan:
    """Facts about one shard; the arrays have one element per readable record.

    Attributes:
      name: name of the file.
      offsets: offset of each record in bytes (ArrayRecord: its number).
      ids: hash of each `image_id`, or of the picture if it has none.
      pictures: hash of each picture's bytes.
      pairs: hash of each image id together with the texts.
      decoded: number of pictures that were decoded.
      damaged: list of (offset, reason), for each record that could not be read.
      undecodable: list of (offset, reason), for each picture that cannot be decoded.
      empty_texts: offsets of the records that have an empty text or no text.
      unordered: offset of the first record whose key is below the key before it.
      first_key: first key of the shard; None without keys.
      last_key: last key of the shard; None without keys.
    """

    name: str
    offsets: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    ids: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    pictures: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    pairs: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    decoded: int = 0
    damaged: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    undecodable: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    empty_texts: list[int] = dataclasses.field(default_factory=list)
    unordered: int | None = None
    first_key: int | None = None
    last_key: int | None = None


def scan_shard(
    path: pathlib.Path,
    read: "ShardReader",
    decode_every: int,
    earlier: int,
    progress: Callable[[int], object],
) -> ShardScan:
    """Reads a shard to its end, past damaged records if possible.

    Args:
      path: path of the shard.
      read: reader of the shard's format, as those of `READERS`.
      decode_every: distance in records between decoded pictures; 0 decodes none.
      earlier: number of records in the shards before this one, so that decoded pictures
        are evenly spread over all shards.
      progress: function that is called with 1 for every readable record.

    Returns:
      The facts about the shard.
    """
    scan = ShardScan(path.name)
    waiting: list[tuple[int, bytes]] = []
    for offset, record in read(path, scan.damaged):
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            scan.damaged.append((offset, "not a tf.train.Example"))
            continue
        image = _add(scan, offset, features)
        progress(1)
        number = earlier + len(scan.offsets) - 1
        if decode_every and number % decode_every == 0:
            waiting.append((offset, image))
        if len(waiting) == DECODED_TOGETHER:
            _decode(scan, waiting)
    _decode(scan, waiting)
    return scan


@contextlib.contextmanager
def local_copy(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a local file for libraries that read no URLs.

    A local path is returned unchanged. A file in a bucket is copied to the folder of
    temporary files, and the copy is removed at the end.
    """
    if not places.is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, path.name)
        with copy.open("wb") as target, places.opening(path) as source:
            for part in iter(lambda: source.read(COPIED_BYTES), b""):
                with places.writing(copy):
                    target.write(part)
        yield copy


def hash_of(content: bytes) -> int:
    """Returns the BLAKE2b hash of 64 bits, as an unsigned integer."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _add(scan: ShardScan, offset: int, features: dict) -> bytes:
    """Adds a record's hashes, key and texts to the scan; returns its picture."""
    image = b"".join(features["image"].bytes_list.value[:1])
    content_id = identify(image).encode()
    image_id = b"".join(features["image_id"].bytes_list.value[:1]) or content_id
    texts = [
        text
        for name in sorted(features)
        if name.split("/")[-1] in TEXT_NAMES or name.startswith("texts_")
        for text in features[name].bytes_list.value
    ]
    scan.offsets.append(offset)
    scan.ids.append(hash_of(image_id))
    scan.pictures.append(hash_of(content_id))
    scan.pairs.append(hash_of(b"\0".join([image_id, *texts])))
    if not texts or not all(text.strip() for text in texts):
        scan.empty_texts.append(offset)
    for key in features["key"].int64_list.value[:1]:
        if scan.first_key is None:
            scan.first_key = key
        elif key < scan.last_key and scan.unordered is None:
            scan.unordered = offset
        scan.last_key = key
    return image


def _decode(scan: ShardScan, waiting: list[tuple[int, bytes]]) -> None:
    """Decodes pictures; adds their number and the failures to `scan`.

    Args:
      scan: facts about the shard, which are updated.
      waiting: offset of the record and bytes of each picture's file; emptied.
    """
    table = describe_images([""] * len(waiting), [image for _, image in waiting])
    for (offset, _), error in zip(waiting, table["error"].to_pylist(), strict=True):
        if error:
            scan.undecodable.append((offset, error))
    scan.decoded += len(waiting)
    waiting.clear()


def _read_tfrecord(
    path: pathlib.Path, damaged: list[tuple[int, str]]
) -> Iterator[tuple[int, bytes]]:
    """Yields (offset in bytes, record) of the readable records of a TFRecord file.

    A record with a wrong CRC is added to `damaged` and skipped. A damaged length or a
    cut record is added to `damaged` and ends the reading.
    """
    size, offset = places.size(path) or 0, 0
    reader = tf_record.tf_record_random_reader(str(path))
    with places.opening(path) as file:
        while offset < size:
            try:
                record, following = reader.read(offset)
            except (tf.errors.DataLossError, IndexError):
                file.seek(offset)
                header = file.read(HEADER)
                following = size + 1
                if len(header) == HEADER:
                    length = struct.unpack("<Q", header[:8])[0]
                    following = offset + HEADER + length + FOOTER
                if following > size:
                    reason = "cut short, or a damaged length: the rest is not readable"
                    damaged.append((offset, reason))
                    return
                damaged.append((offset, "its CRC is wrong"))
            else:
                yield offset, record
            offset = following


def _read_array_record(
    path: pathlib.Path, damaged: list[tuple[int, str]]
) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 0, record) of the readable records of an ArrayRecord file.

    A damaged record, or a damaged index, is added to `damaged`.
    """
    from array_record.python import array_record_module

    with local_copy(path) as local:
        try:
            reader = array_record_module.ArrayRecordReader(str(local))
            count = reader.num_records()
        except (RuntimeError, ValueError) as error:
            damaged.append((0, one_line(error)[:100]))
            return
        if not reader.ok():
            damaged.append((0, "cut short: its index is not there"))
        for number in range(count):
            try:
                yield number, reader.read([number])[0]
            except (RuntimeError, ValueError, IndexError) as error:
                damaged.append((number, one_line(error)[:100]))


# A reader yields (offset, record), and lists (offset, reason) of damaged records.
ShardReader = Callable[
    [pathlib.Path, list[tuple[int, str]]], Iterator[tuple[int, bytes]]
]
READERS: dict[str, ShardReader] = {
    "tfrecord": _read_tfrecord,
    "array_record": _read_array_record,
}
