"""The models' look at the pictures that survived every cheaper rule."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.corpus_config import PictureConfig
from data.evaluation_images import read_hashes
from data.near_duplicates import hash_distances
from data.nsfw import load_scorer
from data.stages import materialise

SCORES = pa.schema(
    [
        ("image_id", pa.string()),
        ("nsfw", pa.float32()),
        ("near_duplicate", pa.bool_()),
    ]
)
BATCH_ROWS = 256


def score_shard(config: PictureConfig, stages: pathlib.Path, index: int) -> int:
    """Writes the scores of a shard's surviving pictures, whole or not at all.

    Args:
      config: which models.
      stages: folder of the stages; reads `survivors` and `evaluation`.
      index: of the shard.

    Returns:
      The number of pictures.
    """
    path = stages / "scores" / f"{index:05}.parquet"
    images = stages / "images" / f"{index:05}.parquet"
    survivors = pq.read_table(
        stages / "survivors.parquet", filters=[("shard", "=", index)]
    )
    wanted = survivors["image_id"]
    hashes = None
    if config.max_hash_distance >= 0:
        hashes = read_hashes(stages / "evaluation.parquet")

    def write(temporary: pathlib.Path) -> None:
        with pq.ParquetWriter(temporary, SCORES) as writer:
            columns = ["image_id", "image", "phash"]
            for batch in pq.ParquetFile(images).iter_batches(
                BATCH_ROWS, columns=columns
            ):
                table = pa.Table.from_batches([batch])
                table = table.filter(pa.compute.is_in(table["image_id"], wanted))
                writer.write_table(score_images(table, config, hashes))

    materialise(path, write)
    return len(wanted)


def score_images(
    images: pa.Table, config: PictureConfig, hashes: np.ndarray | None
) -> pa.Table:
    """Scores pictures; a pure function of its arguments.

    Args:
      images: columns image_id, image, phash.
      config: which models.
      hashes: (M,) int64 of the evaluation images; None turns the rule off.

    Returns:
      A table of schema SCORES, null where a rule is off.
    """
    nsfw, near = pa.nulls(len(images), pa.float32()), pa.nulls(len(images), pa.bool_())
    if config.nsfw_model and len(images):
        scores = _scorer(config.nsfw_model)(images["image"].to_pylist())
        nsfw = pa.array(scores, pa.float32(), from_pandas=True)
    if hashes is not None and len(images):
        distances = hash_distances(images["phash"].to_numpy(), hashes)
        near = pa.array(distances <= config.max_hash_distance)
    return pa.Table.from_arrays([images["image_id"], nsfw, near], schema=SCORES)


@functools.cache
def _scorer(name: str) -> Callable[[list[bytes]], np.ndarray]:
    """The model, loaded once a process."""
    return load_scorer(name)
