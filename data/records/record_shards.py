"""Writes one shard of records from its rows, in any process of the engine."""

import io
import pathlib

import pyarrow.parquet as pq
from PIL import Image

from align_jax.pictures import open_picture, take_eight_bits, turn_upright
from data.records.records import make_example, shard_name, write_shard

JPEG_QUALITY = 95
# Pillow modes that a reduced picture keeps, by file format.
MODES = {"JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "RGB", "RGBA")}


def write_record_shard(
    rows: pathlib.Path,
    folder: pathlib.Path,
    name: str,
    index: int,
    shards: int,
    max_image_side: int,
    file_format: str,
) -> int:
    """Sorts a shard's rows by key and writes them as records.

    Args:
      rows: folder of Parquet files with the columns key, text, image_id and image.
      folder: folder of the dataset.
      name: name of the dataset.
      index: index of the shard.
      shards: number of all shards.
      max_image_side: longest side in pixels; a larger picture is reduced. 0 keeps all.
      file_format: a name in `RECORD_FORMATS`.

    Returns:
      The number of records.
    """
    order = [("key", "ascending"), ("text", "ascending"), ("image_id", "ascending")]
    columns = ["key", "text", "image_id", "image"]
    table = pq.read_table(rows, columns=columns, partitioning=None).sort_by(order)
    examples = (
        make_example(
            image=reduce_image(row["image"], max_image_side),
            text=row["text"].encode(),
            image_id=row["image_id"].encode(),
            key=row["key"],
        )
        for batch in table.to_batches(max_chunksize=256)
        for row in batch.to_pylist()
    )
    path = folder / shard_name(name, "train", index, shards, file_format)
    write_shard(path, examples, file_format)
    return len(table)


def reduce_image(image: bytes, max_side: int) -> bytes:
    """Returns a picture file as it is, or reduced to `max_side` pixels.

    Only a picture with a longer side is reduced, and none if `max_side` is 0. A reduced
    JPEG stays a JPEG, any other picture becomes a PNG. It is stored upright.

    Raises:
      PictureError: the picture cannot be decoded.
    """
    if not max_side:
        return image
    with open_picture(image) as picture:
        if max(picture.size) <= max_side:
            return image
        kind = "JPEG" if picture.format == "JPEG" else "PNG"
        if picture.mode not in MODES[kind]:
            picture = take_eight_bits(turn_upright(picture))
        if picture.mode not in MODES[kind]:
            transparent = picture.mode in ("P", "PA")
            picture = picture.convert("RGBA" if transparent else "RGB")
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        # The new file has no Exif orientation, so the pixels are turned.
        turn_upright(picture).save(file, kind, quality=JPEG_QUALITY)
        return file.getvalue()
