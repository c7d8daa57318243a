"""One shard of records from its rows, in whichever process it falls to."""

import io
import pathlib

import pyarrow.parquet as pq
from PIL import Image

from align_jax.pictures import open_picture, take_eight_bits, turn_upright
from data.records.records import make_example, shard_name, write_shard

JPEG_QUALITY = 95
# Pillow's modes that a reduced picture keeps, by its file format.
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
    """Sorts a shard's rows by their keys and writes them.

    Args:
      rows: folder of Parquet files with the columns key, text, image_id and image.
      folder: of the dataset.
      name: of the dataset.
      index: of the shard.
      shards: number of all.
      max_image_side: pixels; a picture with a longer side is reduced. 0 keeps all.
      file_format: a name in `records.WRITERS`.

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
    """Gives a picture file back as it is, or reduced to a side of `max_side` pixels.

    A reduced picture keeps its format where that is JPEG or PNG, else becomes PNG. It
    is stored upright.

    Raises:
      PictureError: it cannot be decoded.
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
        # The new file has no Exif data that would turn it.
        turn_upright(picture).save(file, kind, quality=JPEG_QUALITY)
        return file.getvalue()
