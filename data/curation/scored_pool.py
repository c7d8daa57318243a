"""Makes a pool in DataComp's format from pictures with texts and uids, by a model.

A shard of the source becomes two files in DIR/pool: NNNNN.parquet with the columns of
POOL and the score, the cosine of a picture and its text; and NNNNN.npz with the
embeddings of the same rows, float16. A picture that cannot be read has no score, and
its embedding is 0. Several shards at a time are copied to DIR/stages and embedded by
one process. A killed run continues with the first missing file.
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from align_jax.config import claim_folder
from align_jax.errors import InputError
from align_jax.locks import locked
from data.corpus.build_files import count_drops, name_drops, remember_shards
from data.corpus.config import EngineConfig
from data.corpus.engines import DuckDB
from data.curation.pool import read_rows
from data.pictures.embeddings import check_model, embed_pictures, read_pair_embeddings
from data.pictures.images import describe_images
from data.records.stages import materialise, materialise_shard
from data.sources.config import SourceConfig
from data.sources.files import SourceShard
from data.sources.source import check_uids, read_shard

SHARDS_AT_ONCE = 64  # whose pictures are on disk a second time
FIELD = "--model"
POOL = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("original_width", pa.int32()),  # pixels; 0 if the picture cannot be decoded
        ("original_height", pa.int32()),
    ]
)
TO_EMBED = pa.schema(
    [
        ("image_id", pa.string()),  # the uid
        ("image", pa.binary()),
        ("texts", pa.list_(pa.string())),
        *[field for field in POOL if field.name != "uid"],
    ]
)


@dataclasses.dataclass(frozen=True)
class ScoredPool:
    """A pool to make.

    Attributes:
      source: source of the pairs, of a kind that gives uids.
      model: path of a run or of a folder of weights, for `align_jax.load`.
      name: name N of the model; the columns are N_similarity_score, N_img and N_txt.
      batch_size: number of pictures that the model embeds at a time.
      workers: number of processes that read pictures; 0 means one per core.
    """

    source: SourceConfig
    model: str
    name: str
    batch_size: int = 128
    workers: int = 0


def score_pool(config: ScoredPool, folder: pathlib.Path) -> dict[str, int]:
    """Makes the pool, or its missing files.

    Args:
      config: config of the pool.
      folder: output folder DIR, made if missing.

    Returns:
      The numbers of "pairs" and of those "without a score", and the number of the
      source's rows that gave no pair, by reason.

    Raises:
      InputError: the source or the model cannot be used, no row of the source gives a
        pair, a file of the pool is damaged, or the folder belongs to another pool.
    """
    check_uids(config.source.kind, "for a pool")
    check_model(config.model, FIELD)
    described = {"source": dataclasses.asdict(config.source), "name": config.name}
    stages = folder / "stages"
    with places.writing(folder), locked(folder):
        claim_folder(folder, described)
        shards = remember_shards(config.source, stages / "shards.json")
        engine = DuckDB(EngineConfig(workers=config.workers), stages / "spill")
        with contextlib.closing(engine):
            for start in range(0, len(shards), SHARDS_AT_ONCE):
                part = enumerate(shards[start : start + SHARDS_AT_ONCE], start)
                left = {n: s for n, s in part if not _is_written(folder, n)}
                if left:
                    _score_shards(config, folder, left, engine)
    pairs = unscored = 0
    for path in (pool_file(folder, index) for index in range(len(shards))):
        for batch in read_rows(path, [score_name(config)]):
            pairs += len(batch)
            unscored += batch[0].null_count
    if not pairs:
        raise InputError(
            f"{config.source.path} gave no pair with a uid: {name_drops(stages)};"
            " wanted uids of 32 hexadecimal digits"
        )
    return {"pairs": pairs, "without a score": unscored, **count_drops(stages)}


def _is_written(folder: pathlib.Path, index: int) -> bool:
    """Returns whether both files of a shard exist."""
    table = pool_file(folder, index)
    return table.exists() and table.with_suffix(".npz").exists()


def _score_shards(
    config: ScoredPool,
    folder: pathlib.Path,
    shards: dict[int, SourceShard],
    engine: DuckDB,
) -> None:
    """Makes the files of some shards, which are given by their indices."""
    stages = folder / "stages"
    copies, embeddings = stages / "to_embed", stages / "embeddings"
    engine.map(
        [
            functools.partial(copy_shard, config.source, shard, stages, index)
            for index, shard in shards.items()
        ],
        "pictures to embed",
        "picture",
    )
    embed_pictures(
        config.model, copies, embeddings, config.batch_size, texts=True, field=FIELD
    )
    tasks = [functools.partial(write_pool, config, folder, index) for index in shards]
    engine.map(tasks, "pool", "pair")
    places.remove(copies)
    for path in embeddings.glob("*.parquet"):  # model.json stays
        places.remove(path)


def pool_file(folder: pathlib.Path, index: int) -> pathlib.Path:
    """Returns the path of a shard's table in the pool."""
    return folder / "pool" / f"{index:05}.parquet"


def score_name(config: ScoredPool) -> str:
    """Returns the name of the column of scores."""
    return f"{config.name}_similarity_score"


def copy_shard(
    source: SourceConfig, shard: SourceShard, stages: pathlib.Path, index: int
) -> int:
    """Writes a shard's pairs to the stages `to_embed` and `drops`, atomically.

    A file that exists is kept.

    Args:
      source: config of the source.
      shard: part of the source to read.
      stages: folder of the stages.
      index: index of the shard.

    Returns:
      The number of pairs.
    """
    drops: collections.Counter[str] = collections.Counter()

    def write(temporary: pathlib.Path) -> None:
        with pq.ParquetWriter(temporary, TO_EMBED, compression="none") as writer:
            for batch in read_shard(source, shard, drops, uids=True):
                ids, images = batch["uid"], batch["image"]
                measured = describe_images(ids.to_pylist(), images.to_pylist())
                texts = batch["alt_text"]
                starts = pa.array(range(len(batch) + 1), pa.int32())
                lists = pa.ListArray.from_arrays(starts, texts)
                sizes = [measured[n].combine_chunks() for n in ("width", "height")]
                columns = [ids, images, lists, batch["url"], texts, *sizes]
                writer.write_table(pa.Table.from_arrays(columns, schema=TO_EMBED))
        path = stages / "drops" / f"{index:05}.json"
        places.make_folder(path.parent)
        places.write_json(path, dict(drops))

    return materialise_shard(stages, "to_embed", index, write)


def write_pool(config: ScoredPool, folder: pathlib.Path, index: int) -> int:
    """Writes the two files of a shard, atomically, the table last.

    Args:
      config: config of the pool.
      folder: output folder.
      index: index of the shard.

    Returns:
      The number of pairs.
    """
    name = f"{index:05}.parquet"
    found = read_pair_embeddings(folder / "stages" / "embeddings" / name)
    names = [field.name for field in TO_EMBED if field.name not in ("image", "texts")]
    rows = pq.read_table(folder / "stages" / "to_embed" / name, columns=names)
    if not np.array_equal(found.owners, np.arange(len(rows))):
        raise InputError(f"{folder} is damaged: {name} has other rows than were copied")
    scores = np.einsum("nd,nd->n", found.images, found.texts)

    def write_arrays(temporary: pathlib.Path) -> None:
        arrays = {"img": np.nan_to_num(found.images), "txt": found.texts}
        named = {f"{config.name}_{n}": a.astype("f2") for n, a in arrays.items()}
        with temporary.open("wb") as file:
            np.savez(file, **named)

    def write_table(temporary: pathlib.Path) -> None:
        table = rows.rename_columns(POOL.names)
        column = pa.array(scores, from_pandas=True)  # NaN becomes null
        pq.write_table(table.append_column(score_name(config), column), temporary)

    table = pool_file(folder, index)
    materialise(table.with_suffix(".npz"), write_arrays)
    materialise(table, write_table)
    return len(rows)
