"""The config of a corpus, from the literal fields of a config file."""

import dataclasses
import re

from align_jax.errors import InputError
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from data.sources.source import choose_source

RECORD_FORMATS = ("tfrecord", "array_record")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Where the corpus is computed.

    Attributes:
      kind: a name in `data.corpus.engines.ENGINES`.
      workers: processes and threads; 0 takes one a core.
      memory_limit: of the SQL engine, as in "4GB"; beyond it, it spills to disk.
      spark_master: of Spark, where no session is active.
      embedding_batch_size: pictures that `config.pictures.embedding_model` embeds at a
        time, on this machine or Spark's driver.
    """

    kind: str = "duckdb"
    workers: int = 0
    memory_limit: str = "4GB"
    spark_master: str = "local[*]"
    embedding_batch_size: int = 128

    def __post_init__(self) -> None:
        """Raises InputError for a field out of its range."""
        for name, smallest in (("workers", 0), ("embedding_batch_size", 1)):
            value = getattr(self, name)
            if value < smallest:
                raise InputError(
                    f"config.engine.{name} is {value}; wanted {smallest} or more"
                )
        if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", self.memory_limit):
            raise InputError(
                f"config.engine.memory_limit is {self.memory_limit!r}; wanted a number"
                " and a unit, as in '4GB'"
            )


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Rules that look at the pictures which survive all others.

    Attributes:
      nsfw_model: a name in `data.pictures.nsfw.SCORERS`; empty turns the rule off.
      max_nsfw: a picture of a higher probability is dropped; the paper states neither
        its classifier nor its threshold.
      max_hash_distance: a picture whose perceptual hash differs in at most this many
        of 64 bits from an evaluation image's is dropped; -1 turns the rule off.
      embedding_model: what `align_jax.load` reads: a run, a folder of weights; empty
        turns the rule off.
      max_cosine: a picture whose embedding has a greater cosine with an evaluation
        image's is dropped. The paper's 0.975 is of a model of its own: see
        `benchmarks.near_duplicates` for one that fits yours.
      clusters: of k-means; the paper says 4K.
      nearest_clusters: that a picture belongs to.
      shared_clusters: that a picture and an evaluation image must both belong to, to
        be compared at all.
      cluster_sample: pictures that k-means sees; the paper takes all. 4 bytes x the
        embedding's width each in memory.
    """

    nsfw_model: str = ""
    max_nsfw: float = 0.8
    max_hash_distance: int = 4
    embedding_model: str = ""
    max_cosine: float = 0.975
    clusters: int = 4096
    nearest_clusters: int = 10
    shared_clusters: int = 3
    cluster_sample: int = 262_144

    def __post_init__(self) -> None:
        """Raises InputError for a field out of its range."""
        if not 0 <= self.max_cosine < 1:
            raise InputError(
                f"config.pictures.max_cosine is {self.max_cosine}; wanted 0 to less"
                " than 1"
            )
        bounds = ("shared_clusters", "nearest_clusters", "clusters", "cluster_sample")
        values = [1, *(getattr(self, name) for name in bounds)]
        if values != sorted(values):
            found = ", ".join(f"{name}={getattr(self, name)}" for name in bounds)
            raise InputError(
                f"config.pictures has {found}; wanted them from 1 on in rising order"
            )
        if not -1 <= self.max_hash_distance <= 64:
            raise InputError(
                f"config.pictures.max_hash_distance is {self.max_hash_distance}; wanted"
                " -1 (off) to 64 bits"
            )


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """A corpus.

    Attributes:
      name: of the dataset; first part of the shards' names.
      seed: of the shuffle.
      ingest: where raw pairs come from.
      rules: bounds of the paper's filters.
      vocabulary_size: upper bound of the WordPiece vocabulary (paper: 100,000).
      evaluation_images: Parquet file of pictures that must not be trained on: columns
        `image_id`, and `phash` or `image` to find near-duplicates; empty for none.
      pictures: rules that look at the pictures.
      engine: where it is computed.
      max_characters: a longer text is cut after normalisation.
      shards: record files; 0 makes as many as fill `shard_megabytes`.
      shard_megabytes: of a record file, about.
      max_image_side: pixels; a picture with a longer side is reduced and encoded anew;
        0 leaves all pictures as they are.
      record_format: "tfrecord", which training reads, or "array_record" for Grain.
    """

    name: str
    seed: int
    ingest: SourceConfig
    rules: RuleBounds
    vocabulary_size: int
    evaluation_images: str = ""
    pictures: PictureConfig = PictureConfig()
    engine: EngineConfig = EngineConfig()
    max_characters: int = 1000
    shards: int = 0
    shard_megabytes: int = 150
    max_image_side: int = 0
    record_format: str = "tfrecord"

    def __post_init__(self) -> None:
        """Raises InputError for a field out of its range."""
        choose_source(self.ingest.kind)
        if self.record_format not in RECORD_FORMATS:
            raise InputError(
                f"config.record_format is {self.record_format!r}; known:"
                f" {', '.join(RECORD_FORMATS)}"
            )
        least = {
            "vocabulary_size": 1,
            "max_characters": 1,
            "shards": 0,
            "shard_megabytes": 1,
            "max_image_side": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise InputError(f"config.{name} is {value}; wanted {smallest} or more")
