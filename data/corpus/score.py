"""Scores the pictures that survived every cheaper rule, one shard at a time."""

import pathlib
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from data.corpus.picture_rules import PictureRule, PictureScorer
from data.corpus.survivors import read_survivors
from data.records.stages import materialise_shard


def score_shard(
    rules: Mapping[str, PictureRule],
    schema: pa.Schema,
    stages: pathlib.Path,
    index: int,
    threads: int | None = None,
) -> int:
    """Writes the scores of a shard's surviving pictures to the stage `scores`.

    The file is written atomically, and an existing file is kept.

    Args:
      rules: picture rules that are on.
      schema: schema of the scores, from `scores_schema` of all picture rules.
      stages: folder of the stages; `images` and `survivors` must exist.
      index: index of the shard.
      threads: number of threads of a model; None means one per core.

    Returns:
      The number of pictures.
    """

    def write(temporary: pathlib.Path) -> None:
        scorers = {
            name: rule.open_shard(stages=stages, index=index, threads=threads)
            for name, rule in rules.items()
        }
        with pq.ParquetWriter(temporary, schema) as writer:
            for images in read_survivors(stages, index, ["image", "phash"]):
                writer.write_table(score_images(images, rules, scorers, schema))

    return materialise_shard(stages, "scores", index, write)


def score_images(
    images: pa.Table,
    rules: Mapping[str, PictureRule],
    scorers: Mapping[str, PictureScorer],
    schema: pa.Schema,
) -> pa.Table:
    """Scores pictures by the rules that are on.

    Args:
      images: columns image_id, image, phash.
      rules: picture rules that are on.
      scorers: scorers of the same rules, opened for the shard of the pictures.
      schema: schema of the result.

    Returns:
      A table of the schema, null where a rule is off or could not score a picture.
    """
    columns = {"image_id": images["image_id"]}
    for name, rule in rules.items() if len(images) else ():
        names = [field.name for field in rule.columns]
        columns |= zip(names, scorers[name](images), strict=True)
    nothing = [pa.nulls(len(images), field.type) for field in schema]
    arrays = [
        columns.get(field.name, empty)
        for field, empty in zip(schema, nothing, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
