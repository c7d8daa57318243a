"""Reads the pictures that no cheaper rule dropped, one shard at a time."""

import pathlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 256


def read_survivors(
    stages: pathlib.Path, index: int, columns: list[str]
) -> Iterator[pa.Table]:
    """Yields the surviving pictures of a shard, up to 256 rows at a time.

    A survivor is a picture of a pair that breaks no rule of `RULES`. A table may have
    no rows.

    Args:
      stages: folder of the stages; `survivors` and `images` must exist.
      index: index of the shard.
      columns: columns of the stage `images` to read, beside image_id.
    """
    survivors = pq.read_table(
        stages / "survivors.parquet", filters=[("shard", "=", index)]
    )
    images = pq.ParquetFile(stages / "images" / f"{index:05}.parquet")
    for batch in images.iter_batches(BATCH_ROWS, columns=["image_id", *columns]):
        table = pa.Table.from_batches([batch])
        wanted = pa.compute.is_in(table["image_id"], survivors["image_id"])
        yield table.filter(wanted)
