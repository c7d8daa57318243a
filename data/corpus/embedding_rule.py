"""A rule that drops near-duplicates of evaluation images, by embedding.

The method is the paper's Appendix A (arXiv 2102.05918), with any image tower. The
survivors are the pictures of the pairs that break no rule of `RULES`. One process
embeds them and the evaluation images: stage `embeddings`. Then `near_duplicates.npz`
indexes the evaluation images by clusters of the survivors, and each shard's survivors
are compared with the evaluation images. With the engine Spark, embedding and k-means
run on the driver's machine, everything else on its executors.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator

import faiss
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import BooleanValue

from align_jax import places
from align_jax.errors import InputError
from data.corpus.config import CorpusConfig, PictureConfig
from data.corpus.stage_tables import StageTables
from data.corpus.survivors import read_survivors
from data.pictures.embeddings import check_model, embed_pictures, read_embeddings
from data.pictures.evaluation_images import open_evaluation
from data.pictures.near_duplicates import NearDuplicates
from data.records.stages import materialise, materialise_shard

TO_EMBED = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
INDEX = "near_duplicates.npz"
EVALUATION_FILE = "evaluation.parquet"  # the evaluation images, beside the shards


class NearEmbeddingRule:
    """Drops pictures whose cosine with an evaluation image is above `max_cosine`.

    `PictureRule` describes the members.
    """

    meaning = "cosine with an evaluation image more than"
    bound = "max_cosine"
    withheld = False
    columns: tuple[pa.Field, ...] = (
        pa.field("cosine", pa.float32()),
        pa.field("near_embedding", pa.bool_()),
    )

    def __init__(self, config: CorpusConfig) -> None:
        """Stores the fields of the config that the rule needs."""
        self.model = config.pictures.embedding_model
        self.evaluation_images = config.evaluation_images

    def off(self) -> str:
        """Returns why the rule is off, or an empty string if it is on."""
        return "" if self.model else "config.pictures.embedding_model is empty"

    def check(self) -> None:
        """Raises InputError if evaluation pictures or a usable model are missing.

        The model is loaded in a separate process, see `check_model`.
        """
        wanted = "config.pictures.embedding_model needs the evaluation images' files"
        if not self.evaluation_images:
            raise InputError(f"{wanted}, but config.evaluation_images is empty")
        file = open_evaluation(self.evaluation_images)
        names = file.schema_arrow.names
        if "image" not in names or not file.metadata.num_rows:
            raise InputError(
                f"{wanted}, but {self.evaluation_images} (config.evaluation_images) has"
                f" {file.metadata.num_rows} rows and the columns {names}; wanted"
                " `image`"
            )
        check_model(self.model)

    def prepare(self, stages: StageTables, shards: int) -> None:
        """Embeds survivors and evaluation images; indexes the latter in the file INDEX.

        Nothing is embedded if INDEX exists.

        Raises:
          InputError: the model fails, or no evaluation image can be embedded.
        """
        folder, config = stages.folder, stages.config
        if not (folder / INDEX).exists():
            tasks = [
                functools.partial(copy_survivors, folder, index)
                for index in range(shards)
            ]
            stages.engine.map(tasks, "pictures to embed", "picture")
            materialise(
                folder / "to_embed" / EVALUATION_FILE,
                lambda path: _copy_evaluation(self.evaluation_images, path),
            )
            embed_pictures(
                self.model,
                folder / "to_embed",
                folder / "embeddings",
                config.engine.embedding_batch_size,
            )
            _, evaluation = read_embeddings(folder / "embeddings" / EVALUATION_FILE)
            if not len(evaluation):
                raise InputError(
                    f"none of the pictures of {self.evaluation_images}"
                    " (config.evaluation_images) can be embedded"
                )
            _build_index(evaluation, stages, config.pictures).save(folder / INDEX)
        places.remove(folder / "to_embed")

    def open_shard(
        self, stages: pathlib.Path, index: int, threads: int | None
    ) -> Callable[[pa.Table], list[pa.ChunkedArray]]:
        """Returns a function from pictures to their cosines and near-duplicate flags.

        A picture without an embedding gets nulls.

        Args:
          stages: folder of the stages; INDEX and `embeddings` must exist.
          index: index of the shard.
          threads: number of threads, not used.
        """
        compared = compare_shard(stages, index)

        def score(images: pa.Table) -> list[pa.ChunkedArray]:
            rows = pa.compute.index_in(images["image_id"], compared["image_id"])
            names = [field.name for field in self.columns]
            return compared.select(names).take(rows).columns

        return score

    def breaks(self, scores: ibis.Table) -> BooleanValue:
        """Returns an expression that is true where a pair breaks the rule."""
        return scores.near_embedding


COMPARED = pa.schema([("image_id", pa.string()), *NearEmbeddingRule.columns])


def copy_survivors(stages: pathlib.Path, index: int) -> int:
    """Copies a shard's surviving pictures to a Parquet file of the folder `to_embed`.

    The file is written atomically, and an existing file is kept.

    Args:
      stages: folder of the stages.
      index: index of the shard.

    Returns:
      The number of pictures.
    """

    def write(temporary: pathlib.Path) -> None:
        with pq.ParquetWriter(temporary, TO_EMBED, compression="none") as writer:
            for table in read_survivors(stages, index, ["image"]):
                writer.write_table(table)

    return materialise_shard(stages, "to_embed", index, write)


def compare_shard(stages: pathlib.Path, index: int) -> pa.Table:
    """Compares a shard's surviving pictures with the evaluation images.

    Args:
      stages: folder of the stages; INDEX and `embeddings` must exist.
      index: index of the shard.

    Returns:
      A table of schema COMPARED, without the pictures that could not be embedded.
      `near_embedding` is whether `cosine` is above `max_cosine`.
    """
    found = NearDuplicates.load(stages / INDEX)
    path = stages / "embeddings" / f"{index:05}.parquet"
    names, embeddings = read_embeddings(path)
    with one_thread():
        cosines, near = found.query(embeddings)
    columns = [names, pa.array(cosines), pa.array(near)]
    return pa.Table.from_arrays(columns, schema=COMPARED)


def count_not_embedded(stages: StageTables) -> dict[str, int]:
    """Counts the pictures that were not compared because they could not be embedded.

    Returns:
      {"pictures": number of survivors, "evaluation_images": number of evaluation
      images}.
    """
    scores = stages.shards("scores")
    missing = stages.engine.execute(scores.cosine.isnull().sum())
    evaluation = pq.read_table(stages.folder / "embeddings" / EVALUATION_FILE)
    return {
        "pictures": int(missing or 0),
        "evaluation_images": evaluation["embedding"].null_count,
    }


def _copy_evaluation(source: str, path: pathlib.Path) -> None:
    file = open_evaluation(source)
    with pq.ParquetWriter(path, TO_EMBED, compression="none") as writer:
        for batch in file.iter_batches(256, columns=TO_EMBED.names):
            table = pa.Table.from_batches([batch]).select(TO_EMBED.names)
            writer.write_table(table.cast(TO_EMBED))


def _build_index(
    evaluation: np.ndarray, stages: StageTables, config: PictureConfig
) -> NearDuplicates:
    folder = stages.folder / "embeddings"
    sample = read_sample(
        stages, stages.table("survivors"), folder, config.cluster_sample
    )
    return NearDuplicates.build(
        evaluation,
        sample if len(sample) else evaluation,  # no pictures are left to compare
        clusters=config.clusters,
        nearest=config.nearest_clusters,
        share=config.shared_clusters,
        threshold=config.max_cosine,
        seed=stages.config.seed,
    )


def read_sample(
    stages: StageTables, pictures: ibis.Table, folder: pathlib.Path, bound: int
) -> np.ndarray:
    """Returns embeddings (N, D) of the `bound` pictures of lowest image_id, or fewer.

    An image_id is a hash, so these pictures are a random sample. The sample and its
    order do not depend on the number of processes.

    Args:
      stages: stages of the build.
      pictures: embedded pictures, each once, with the column image_id.
      folder: folder of the embeddings, beside which EVALUATION_FILE may lie.
      bound: maximum number N.
    """
    lowest = pictures.order_by("image_id").limit(bound)
    last = stages.engine.execute(lowest.aggregate(last=lowest.image_id.max()))
    last = last["last"].iloc[0]
    names, vectors = [], []
    for path in sorted(folder.glob("*.parquet")):
        if path.name == EVALUATION_FILE or not isinstance(last, str):
            continue
        found, embeddings = read_embeddings(path)
        low = pa.compute.less_equal(found, last).to_numpy(zero_copy_only=False)
        names.append(found.to_numpy(zero_copy_only=False)[low])
        vectors.append(embeddings[low])
    if not names:
        return np.zeros((0, 0), np.float32)
    order = np.argsort(np.concatenate(names), kind="stable")
    return np.concatenate(vectors)[order]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits faiss to one thread inside the `with` statement.

    Each core may already run a process, and any number of processes must compute alike.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
