"""Writes raw image-text pairs as normalised tables, one source shard at a time.

Texts are normalised once, here, because SQL engines disagree on lower-casing.
"""

import collections
import hashlib
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from align_jax.texts import normalise
from data.corpus.build_files import ROWS
from data.pictures.images import IMAGES, describe_images
from data.records.stages import materialise
from data.sources.config import SourceConfig
from data.sources.files import SourceShard
from data.sources.source import read_shard

PAIRS = pa.schema(
    [
        ("image_id", pa.string()),
        ("url", pa.string()),
        ("alt_text", pa.string()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("key", pa.int64()),
    ]
)

SHARD = pa.field("shard", pa.int32())  # index of the picture's source shard

# Pictures are compressed already, and a file holds each picture once.
COMPRESSION = {name: "NONE" if name == "image" else "SNAPPY" for name in IMAGES.names}
WITH_DICTIONARY = [name for name in IMAGES.names if name != "image"]


def identify(image: bytes) -> str:
    """Returns a picture's id: the first 32 hex digits of the SHA-256 of its bytes."""
    return hashlib.sha256(image).hexdigest()[:32]


def shuffle_key(seed: int, image_id: str, text: str) -> int:
    """Returns a signed 64-bit key; sorting by it shuffles, differently per seed."""
    content = f"{seed}\0{image_id}\0{text}".encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def ingest_shard(
    source: SourceConfig,
    shard: SourceShard,
    seed: int,
    max_characters: int,
    stages: pathlib.Path,
    index: int,
) -> int:
    """Writes a source shard to the stages `pairs`, `images` and `drops`, atomically.

    A shard that is written already is kept. A picture that occurs several times in the
    shard is written once.

    Args:
      source: config of the source.
      shard: part of the source to read.
      seed: seed of the shuffle keys.
      max_characters: number of characters after which a normalised text is cut.
      stages: folder of the stages.
      index: index of the shard among all shards, from 0.

    Returns:
      The number of pairs.
    """
    pairs_path = stages / "pairs" / f"{index:05}.parquet"
    if pairs_path.exists():  # written last
        return pq.read_metadata(pairs_path).num_rows
    images_path = stages / "images" / f"{index:05}.parquet"
    drops: collections.Counter[str] = collections.Counter()
    places.make_folder(images_path.parent)
    seen: set[str] = set()

    def write_drops(path: pathlib.Path) -> None:
        places.write_text(path, json.dumps(drops, sort_keys=True))

    def write(path: pathlib.Path) -> None:
        count = 0
        with (
            places.replacing(images_path) as images_temporary,
            pq.ParquetWriter(path, PAIRS) as pair_writer,
            pq.ParquetWriter(
                images_temporary,
                IMAGES.append(SHARD),
                compression=COMPRESSION,
                use_dictionary=WITH_DICTIONARY,
            ) as image_writer,
        ):
            for batch in read_shard(source, shard, drops):
                pairs, pictures = _normalise_batch(batch, seed, max_characters)
                pair_writer.write_table(pairs)
                new = [name for name in pictures if name not in seen]
                seen.update(new)
                table = describe_images(new, [pictures[name] for name in new])
                shards = pa.array([index] * len(new), SHARD.type)
                image_writer.write_table(table.append_column(SHARD, shards))
                count += len(batch)
            rows = str(count + drops.total())
            pair_writer.add_key_value_metadata({ROWS: rows})
        materialise(stages / "drops" / f"{index:05}.json", write_drops)

    materialise(pairs_path, write)
    return pq.read_metadata(pairs_path).num_rows


def _normalise_batch(
    batch: pa.RecordBatch, seed: int, max_characters: int
) -> tuple[pa.Table, dict[str, bytes | None]]:
    """Returns a table of schema PAIRS, and the pictures' bytes by image_id.

    If a pair has no picture bytes, the bytes are None and its image_id is a hash of its
    URL.
    """
    pictures: dict[str, bytes | None] = {}
    rows = []
    for row in batch.to_pylist():
        image, alt_text = row["image"], row["alt_text"] or ""
        image_id = identify((row["url"] or "").encode() if image is None else image)
        text = normalise(alt_text, max_characters)
        pictures[image_id] = image
        key = shuffle_key(seed, image_id, text)
        rows.append((image_id, row["url"], alt_text, text, row["language"], key))
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [
        pa.array(c, f.type)
        for c, f in zip(columns or [[]] * len(PAIRS), PAIRS, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=PAIRS), pictures
