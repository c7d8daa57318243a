"""The config of a corpus: typed classes for the literal fields of a config file."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

from align_jax.config import choose, read_config
from align_jax.errors import InputError
from align_jax.ranges import Count, Natural, ProperShare, Range, Seed, Share
from data.corpus.rules import RuleBounds
from data.records.formats import RECORD_FORMATS
from data.sources.config import SourceConfig
from data.sources.source import choose_source

WORDPIECE = "wordpiece"
VOCABULARY_KINDS = (WORDPIECE, "unigram", "bpe")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Settings of the engine that computes the corpus.

    Attributes:
      kind: a name in `data.corpus.engines.ENGINES`.
      workers: number of processes, and of DuckDB's threads; 0 means one per core. Spark
        uses the numbers of its session.
      memory_limit: memory of DuckDB, or of the driver of a Spark session that the
        engine starts, as in "4GB". Data beyond the limit are spilled to disk.
      spark_master: address of Spark's master, used if no session is active.
      embedding_batch_size: number of pictures that a model embeds at a time, on this
        machine or on Spark's driver.
    """

    kind: str = "duckdb"
    workers: Natural = 0
    memory_limit: str = "4GB"
    spark_master: str = "local[*]"
    embedding_batch_size: Count = 128

    def __post_init__(self) -> None:
        """Raises InputError if the memory limit is no size."""
        if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", self.memory_limit):
            raise InputError(
                f"config.engine.memory_limit is {self.memory_limit!r}; wanted a number"
                " and a unit, as in '4GB'"
            )

    @property
    def memory_bytes(self) -> float:
        """The memory limit in bytes; GB is 10^9 and GiB is 2^30."""
        number = self.memory_limit.rstrip("KMGTiB ")
        unit = self.memory_limit.removeprefix(number).strip()
        base = 2**10 if "i" in unit else 10**3
        return float(number) * base ** ("KMGT".index(unit[0]) + 1)


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Settings of the picture rules, which see the pictures that no other rule dropped.

    The paper is arXiv 2102.05918; its near-duplicate method is in Appendix A.

    Attributes:
      nsfw_model: a name in `data.pictures.nsfw.SCORERS`; empty turns the rule off.
      max_nsfw: probability above which a picture is dropped; the paper states neither
        its classifier nor its threshold.
      max_hash_distance: number of bits out of 64. A picture is dropped if its hash
        differs from an evaluation image's in at most this many bits; -1 turns the rule
        off.
      embedding_model: path of a run or of a folder of weights, for `align_jax.load`;
        empty turns the rule off.
      max_cosine: cosine with an evaluation image's embedding above which a picture is
        dropped. The paper's 0.975 holds for the paper's model; measure the bound for
        your model with `benchmarks.near_duplicates`.
      clusters: number of k-means clusters; the paper says 4K.
      nearest_clusters: number of clusters that each picture belongs to.
      shared_clusters: number of clusters that a picture and an evaluation image must
        share to be compared.
      cluster_sample: number of pictures that k-means uses; the paper uses all. Each
        takes 4 bytes of memory times the width of the embedding.
    """

    nsfw_model: str = ""
    max_nsfw: Share = 0.8
    max_hash_distance: Annotated[int, Range(least=-1, most=64)] = 4
    embedding_model: str = ""
    max_cosine: ProperShare = 0.975
    clusters: Count = 4096
    nearest_clusters: Count = 10
    shared_clusters: Count = 3
    cluster_sample: Count = 262_144

    def __post_init__(self) -> None:
        """Raises InputError if the numbers of clusters do not fit each other."""
        bounds = ("shared_clusters", "nearest_clusters", "clusters", "cluster_sample")
        values = [1, *(getattr(self, name) for name in bounds)]
        if values != sorted(values):
            found = ", ".join(f"{name}={getattr(self, name)}" for name in bounds)
            raise InputError(
                f"config.pictures has {found}; wanted them from 1 on in rising order"
            )


@dataclasses.dataclass(frozen=True)
class CopiesConfig:
    """Settings of the rule on near-copies within the corpus; see `data.corpus.copies`.

    Attributes:
      max_hash_distance: number of bits out of 64. A picture is dropped if its hash
        differs from a better picture's in at most this many bits; -1 turns the rule
        off.
      max_cosine: cosine of the embeddings by `config.embeddings.model` above which a
        picture is a copy of a better one; 0 turns the rule off.
      clusters: number of k-means clusters; only pictures of one cluster are compared.
      nearest_clusters: number of clusters that each picture belongs to.
      cluster_sample: number of pictures that k-means uses. Each takes 4 bytes of memory
        times the width of the embedding.
    """

    max_hash_distance: Annotated[int, Range(least=-1, most=8)] = -1
    max_cosine: ProperShare = 0.0
    clusters: Count = 4096
    nearest_clusters: Count = 2
    cluster_sample: Count = 262_144


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Embeddings of the pairs that no rule dropped, and the rule on their likeness.

    `data.corpus.pair_scores` has the rule on the likeness of a picture and its text.

    Attributes:
      model: path of a run or of a folder of weights, for `align_jax.load`; empty for no
        embeddings.
      min_score: smallest cosine of a picture and its text to keep; None is off.
      score_fraction: share f of the N pairs; keeps the scores that are at least the one
        at index int(N f) in falling order, counted from 0; 0 is off.
    """

    model: str = ""
    min_score: Annotated[float, Range(least=-1, most=1)] | None = None
    score_fraction: ProperShare = 0.0

    def __post_init__(self) -> None:
        """Raises InputError if the model and the bounds do not fit each other."""
        if self.bounds > (1 if self.model else 0):
            raise InputError(
                f"config.embeddings has model={self.model!r},"
                f" min_score={self.min_score}, score_fraction={self.score_fraction};"
                " wanted one of the two bounds at most, and none without a model"
            )

    @property
    def bounds(self) -> int:
        """The number of bounds of the score, 0 if the rule is off."""
        return (self.min_score is not None) + bool(self.score_fraction)


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """Settings of the balance of concepts, which sees the pairs that no rule dropped.

    The balance is MetaCLIP's (arXiv 2309.16671); see `data.corpus.concepts`.

    Attributes:
      entries: file of the concept list, an entry a line or a JSON list of strings;
        empty turns the balance off.
      pairs_per_entry: number of pairs, t. MetaCLIP uses 20,000 for 400 million pairs.
      tail_share: share of all matches that the entries of counts up to t have; if it is
        not 0, it decides t in place of `pairs_per_entry`.
      column: "alt_text" searches the texts of the source, where case counts; "text"
        searches the normalised texts, which are in lower case.
    """

    entries: str = ""
    pairs_per_entry: Count = 20_000
    tail_share: ProperShare = 0.0
    column: str = "alt_text"

    def __post_init__(self) -> None:
        """Raises InputError if the column is unknown."""
        choose(
            dict.fromkeys(("alt_text", "text")), self.column, "config.balance.column"
        )


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Captions of pictures, which records hold beside the texts of the source.

    Attributes:
      path: file, folder or glob of Parquet and CSV files with the two columns; empty
        for no captions.
      id_column: column of the pictures' ids: the first 32 hexadecimal digits of the
        SHA-256 of a picture's file. An id occurs once in all files.
      text_column: column of the captions, a text or, in Parquet, a list of texts.
      feature: name of the captions in the records, a list of texts.
    """

    path: str = ""
    id_column: str = "image_id"
    text_column: str = "caption"
    feature: str = "synthetic"

    def __post_init__(self) -> None:
        """Raises InputError if the feature's name is invalid or taken."""
        taken = self.feature in ("image", "text", "image_id", "key")
        if taken or not re.fullmatch(r"[A-Za-z]\w*", self.feature, re.ASCII):
            raise InputError(
                f"config.captions.feature is {self.feature!r}; wanted letters, digits"
                " and underscores, a letter first, and no name of another feature"
            )


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The whole config of a corpus.

    Attributes:
      name: name of the dataset; the shards' names start with it.
      seed: seed of the shuffle and of k-means.
      ingest: source of the raw pairs.
      rules: bounds of the paper's filters.
      vocabulary_size: upper bound of the number of tokens (paper: 100,000).
      vocabulary_kind: "wordpiece", BERT's, as in the paper; "unigram" or "bpe" for a
        model of SentencePiece, whose package `sentencepiece` learns it.
      evaluation_images: Parquet file of pictures that must not be trained on; empty for
        none. It has the column `image_id`. To find near-duplicates, it needs `phash` or
        `image` for the rule by hash and `image` for the rule by embedding.
      pictures: settings of the rules that look at pictures.
      copies: settings of the rule on near-copies within the corpus, which is off by
        default.
      embeddings: embeddings of pairs, and the rule on the likeness of pictures and
        texts, which is off by default.
      balance: settings of the balance of concepts, which is off by default.
      captions: captions of pictures beside the texts, none by default.
      engine: settings of the engine.
      max_characters: number of characters after which a normalised text is cut.
      shards: number of record files; 0 makes files of about `shard_megabytes`.
      shard_megabytes: approximate size of a record file in units of 10^6 bytes, before
        pictures are reduced; used if `shards` is 0.
      max_image_side: longest side in pixels; a larger picture is reduced and encoded
        again. 0 keeps all pictures as they are.
      record_format: "tfrecord", which training reads, or "array_record" for Grain.
    """

    name: str
    seed: Seed
    ingest: SourceConfig
    rules: RuleBounds
    vocabulary_size: Count
    evaluation_images: str = ""
    pictures: PictureConfig = PictureConfig()
    copies: CopiesConfig = CopiesConfig()
    embeddings: EmbeddingConfig = EmbeddingConfig()
    balance: BalanceConfig = BalanceConfig()
    captions: CaptionConfig = CaptionConfig()
    engine: EngineConfig = EngineConfig()
    max_characters: Count = 1000
    shards: Natural = 0
    shard_megabytes: Count = 150
    max_image_side: Natural = 0
    record_format: str = "tfrecord"
    vocabulary_kind: str = WORDPIECE

    def __post_init__(self) -> None:
        """Raises InputError if a name is invalid or unknown."""
        if not re.fullmatch(r"[A-Za-z]\w*", self.name, re.ASCII):
            raise InputError(
                f"config.name is {self.name!r}; wanted letters, digits and underscores,"
                " a letter first, as in TFDS's file names"
            )
        used = bool(self.embeddings.bounds or self.copies.max_cosine)
        if used != bool(self.embeddings.model):
            raise InputError(
                f"config.embeddings.model is {self.embeddings.model!r}; wanted a model"
                " if config.embeddings has a bound of the score or"
                " config.copies.max_cosine is not 0, else none"
            )
        choose_source(self.ingest.kind)
        formats = dict.fromkeys(RECORD_FORMATS)
        choose(formats, self.record_format, "config.record_format")
        kinds = dict.fromkeys(VOCABULARY_KINDS)
        choose(kinds, self.vocabulary_kind, "config.vocabulary_kind")


def described(config: Any) -> dict[str, Any]:
    """Returns the fields that decide the result: the config as a dict, no `engine`.

    Args:
      config: config of a corpus or of a curation.
    """
    fields = dataclasses.asdict(config)
    del fields["engine"]
    return fields


def with_defaults(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults to the fields that `described` returned in an earlier version.

    Args:
      cls: class of the config.
      fields: fields of the earlier version.

    Raises:
      InputError: a field is missing, unknown or wrong.
    """
    return described(read_config(cls, fields))
