"""Writes one shard of records from its rows, in any process of the engine."""

import io
import pathlib
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from align_jax.picture_orientation import turn_upright
from align_jax.pictures import (
    JPEG,
    PictureError,
    is_transparent,
    open_picture,
    read_picture,
    take_colours,
)
from data.records.records import make_example, shard_name, write_shard

JPEG_QUALITY = 95
# Pillow modes that a reduced picture keeps, by file format.
MODES = {"JPEG": ("L", "RGB", "CMYK"), "PNG": ("L", "LA", "RGB", "RGBA")}


def write_record_shard(
    rows: pathlib.Path,
    folder: pathlib.Path,
    name: str,
    index: int,
    shards: int,
    max_image_side: int,
    file_format: str,
    captions: str = "",
) -> int:
    """Sorts a shard's rows by key and writes them as records of the split "train".

    An existing file of the shard is kept.

    Args:
      rows: folder of the shard's rows, as Parquet files with the columns key, text,
        image_id and image, and captions if the records have some.
      folder: output folder, the folder of the dataset.
      name: name of the dataset.
      index: index of the shard, from 0.
      shards: number of all shards.
      max_image_side: longest side in pixels, see `reduce_image`; 0 reduces no picture.
      file_format: a name in `RECORD_FORMATS`.
      captions: name of the feature of captions; empty for none.

    Returns:
      The number of records.

    Raises:
      PictureError: `max_image_side` is not 0 and a picture cannot be decoded.
    """
    order = [("key", "ascending"), ("text", "ascending"), ("image_id", "ascending")]
    columns = ["key", "text", "image_id", "image", *(["captions"] if captions else [])]
    table = pq.read_table(rows, columns=columns, partitioning=None).sort_by(order)
    examples = (
        make_example(
            image=reduce_image(row["image"], max_image_side),
            text=row["text"].encode(),
            image_id=row["image_id"].encode(),
            key=row["key"],
            **_encode_captions(row, captions),
        )
        for batch in table.to_batches(max_chunksize=256)
        for row in batch.to_pylist()
    )
    path = folder / shard_name(name, "train", index, shards, file_format)
    write_shard(path, examples, file_format)
    return len(table)


def _encode_captions(row: dict[str, Any], name: str) -> dict[str, list[bytes]]:
    """Returns a row's captions as the feature `name`, or nothing for an empty name."""
    return {name: [t.encode() for t in row["captions"] or []]} if name else {}


def reduce_image(image: bytes, max_side: int) -> bytes:
    """Reduces a picture file so that its longer side is at most `max_side` pixels.

    A picture that is small enough is returned unchanged; so is every picture if
    `max_side` is 0. A reduced JPEG file stays a JPEG file, any other format becomes
    PNG. A reduced picture is stored upright and keeps its aspect ratio.

    Raises:
      PictureError: the picture cannot be opened, or cannot be decoded to reduce it.
    """
    if not max_side:
        return image
    try:
        return _reduce_file(image, max_side)
    except PictureError:  # metadata that cannot be saved, or a JPEG that Pillow refuses
        picture = Image.fromarray(read_picture(image))
    if max(picture.size) <= max_side:
        return image
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "JPEG" if image.startswith(JPEG) else "PNG"
    picture.save(file, kind, quality=JPEG_QUALITY)
    return file.getvalue()


def _reduce_file(image: bytes, max_side: int) -> bytes:
    """Works as `reduce_image`, with the metadata that Pillow keeps."""
    with open_picture(image) as picture:
        if max(picture.size) <= max_side:
            return image
        kind = "JPEG" if image.startswith(JPEG) else "PNG"
        if "transparency" in picture.info or picture.mode not in MODES[kind]:
            picture = turn_upright(picture)
            # A picture of one bit is reduced to greys.
            is_bits = picture.mode == "1" and not is_transparent(picture)
            picture = picture.convert("L") if is_bits else take_colours(picture)
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        # The new file has no Exif orientation, so the pixels are turned.
        turn_upright(picture).save(file, kind, quality=JPEG_QUALITY)
        return file.getvalue()
