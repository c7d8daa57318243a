"""The embeddings of the pairs that no rule dropped, by one model.

Stages, all in the folder of the build's stages:

* `pairs_to_embed/shard=N`: the pairs, by the source shard of their picture.
* `pair_embeddings/N.parquet`: the embeddings of a shard's pictures, and of their texts,
  as `align_jax.embed.shards` writes them. One process embeds all shards, with the
  engine Spark on the driver's machine.
"""

import functools
import pathlib

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align_jax import places
from data.corpus.stage_tables import StageTables
from data.corpus.survivors import BATCH_ROWS
from data.pictures.embeddings import check_model, embed_pictures
from data.records.stages import materialise, materialise_shard

FIELD = "config.embeddings.model"
TEXTS = pa.schema([("image_id", pa.string()), ("texts", pa.list_(pa.string()))])
PICTURES = TEXTS.insert(1, pa.field("image", pa.binary()))


def check_pair_model(model: str) -> None:
    """Raises InputError if the model is missing or cannot embed."""
    check_model(model, FIELD)


def embed_pairs(stages: StageTables, pairs: ibis.Table) -> None:
    """Embeds the pictures of pairs, and their texts if these are scored.

    Nothing is done if the embeddings exist.

    Args:
      stages: stages of the build, up to `distinct`.
      pairs: distinct pairs with the columns image_id and text.
    """
    shards, folder = count_shards(stages.folder), stages.folder
    names = [f"{index:05}.parquet" for index in range(shards)]
    if not all((folder / "pair_embeddings" / name).exists() for name in names):
        pictures = stages.table("pictures").select("image_id", "shard")
        placed = pairs.join(pictures, "image_id").select("image_id", "text", "shard")
        materialise(
            folder / "pairs_to_embed",
            lambda path: stages.engine.save_split(placed, path, "shard", "embed"),
        )
        tasks = [functools.partial(copy_pairs, folder, n) for n in range(shards)]
        stages.engine.map(tasks, "pairs to embed", "picture")
        embed_pictures(
            stages.config.embeddings.model,
            folder / "files_to_embed",
            folder / "pair_embeddings",
            stages.config.engine.embedding_batch_size,
            texts=bool(stages.config.embeddings.bounds),
            field=FIELD,
        )
    places.remove(folder / "files_to_embed")


def count_shards(stages: pathlib.Path) -> int:
    """Returns the number of shards of the stage `images`."""
    return len([*(stages / "images").glob("*.parquet")])


def read_texts(stages: pathlib.Path, index: int) -> pa.Table:
    """Reads the embedded pairs of a shard.

    Returns:
      A table of schema TEXTS: each picture once, with its texts, both in order.
    """
    files = (stages / "pairs_to_embed" / f"shard={index}").glob("*.parquet")
    columns = ["image_id", "text"]
    parts = [pq.read_table(file, columns=columns, partitioning=None) for file in files]
    if not parts:
        return TEXTS.empty_table()
    pairs = pa.concat_tables(parts).sort_by([(name, "ascending") for name in columns])
    # Threads would change the order.
    grouped = pairs.group_by("image_id", use_threads=False).aggregate(
        [("text", "list")]
    )
    return grouped.select(["image_id", "text_list"]).rename_columns(TEXTS.names)


def copy_pairs(stages: pathlib.Path, index: int) -> int:
    """Copies a shard's pictures, with their texts, to a file to embed.

    The file is written atomically, and an existing file is kept.

    Args:
      stages: folder of the stages; `pairs_to_embed` and `images` must exist.
      index: index of the shard.

    Returns:
      The number of pictures.
    """

    def write(temporary: pathlib.Path) -> None:
        texts = read_texts(stages, index)
        images = pq.ParquetFile(stages / "images" / f"{index:05}.parquet")
        with pq.ParquetWriter(temporary, PICTURES, compression="none") as writer:
            for batch in images.iter_batches(BATCH_ROWS, columns=PICTURES.names[:2]):
                rows = pc.index_in(batch["image_id"], texts["image_id"])
                batch, rows = batch.filter(rows.is_valid()), rows.drop_null()
                lists = texts["texts"].take(rows)
                table = pa.table([*batch.columns, lists], names=PICTURES.names)
                writer.write_table(table.cast(PICTURES))

    return materialise_shard(stages, "files_to_embed", index, write)
