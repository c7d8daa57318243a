"""The models' look at the pictures that survived every cheaper rule."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.corpus.config import PictureConfig
from data.corpus.embedding_rule import COMPARED, compare_shard
from data.corpus.survivors import read_survivors
from data.pictures.evaluation_images import read_hashes
from data.pictures.near_duplicates import hash_distances
from data.pictures.nsfw import load_scorer
from data.records.stages import materialise

SCORES = pa.schema(
    [
        ("image_id", pa.string()),
        ("nsfw", pa.float32()),
        ("near_duplicate", pa.bool_()),
        ("cosine", pa.float32()),
        ("near_embedding", pa.bool_()),
    ]
)


def score_shard(
    config: PictureConfig, stages: pathlib.Path, index: int, threads: int | None = None
) -> int:
    """Writes the scores of a shard's surviving pictures, whole or not at all.

    Args:
      config: which models.
      stages: folder of the stages; reads `images`, `survivors`, `evaluation` and what
        `data.corpus.embedding_rule` wrote.
      index: of the shard.
      threads: of the NSFW model; None takes one a core.

    Returns:
      The number of pictures.
    """

    def write(temporary: pathlib.Path) -> None:
        hashes = compared = None
        if config.max_hash_distance >= 0:
            hashes = read_hashes(stages / "evaluation.parquet")
        if config.embedding_model:
            compared = compare_shard(stages, index)
        with pq.ParquetWriter(temporary, SCORES) as writer:
            for images in read_survivors(stages, index, ["image", "phash"]):
                scores = score_images(images, config, hashes, compared, threads)
                writer.write_table(scores)

    path = stages / "scores" / f"{index:05}.parquet"
    materialise(path, write)
    return pq.read_metadata(path).num_rows


def score_images(
    images: pa.Table,
    config: PictureConfig,
    hashes: np.ndarray | None,
    compared: pa.Table | None = None,
    threads: int | None = None,
) -> pa.Table:
    """Scores pictures; a pure function of its arguments.

    Args:
      images: columns image_id, image, phash.
      config: which models.
      hashes: (M,) int64 of the evaluation images; None turns the rule off.
      compared: of schema COMPARED, from `compare_shard`; None turns the rule off.
      threads: of the NSFW model; None takes one a core.

    Returns:
      A table of schema SCORES, null where a rule is off or a model found nothing.
    """
    nsfw, near = pa.nulls(len(images), pa.float32()), pa.nulls(len(images), pa.bool_())
    if config.nsfw_model and len(images):
        scores = _scorer(config.nsfw_model, threads)(images["image"].to_pylist())
        nsfw = pa.array(scores, pa.float32(), from_pandas=True)
    if hashes is not None and len(images):
        distances = hash_distances(images["phash"].to_numpy(), hashes)
        near = pa.array(distances <= config.max_hash_distance)
    if compared is None:
        compared = COMPARED.empty_table()
    places = pa.compute.index_in(images["image_id"], compared["image_id"])
    found = compared.select(["cosine", "near_embedding"]).take(places)
    columns = [images["image_id"], nsfw, near, *found.columns]
    return pa.Table.from_arrays(columns, schema=SCORES)


@functools.cache
def _scorer(name: str, threads: int | None) -> Callable[[list[bytes]], np.ndarray]:
    """The model, loaded once a process."""
    return load_scorer(name, threads)
