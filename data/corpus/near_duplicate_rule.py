"""A rule that drops near-duplicates of evaluation images, by perceptual hash."""

import pathlib
from collections.abc import Callable

import ibis
import pyarrow as pa
from ibis.expr.types import BooleanValue

from data.corpus.config import CorpusConfig
from data.corpus.stage_tables import StageTables
from data.pictures.evaluation_images import has_hashes, read_hashes
from data.pictures.near_duplicates import hash_distances


class NearDuplicateRule:
    """Drops pictures whose hash is nearly that of an evaluation image.

    The hashes differ in at most `max_hash_distance` bits; see `PictureRule`.
    """

    meaning = "the picture is nearly one of an evaluation set"
    bound = ""
    withheld = False
    columns: tuple[pa.Field, ...] = (pa.field("near_duplicate", pa.bool_()),)

    def __init__(self, config: CorpusConfig) -> None:
        """Stores the fields of the config that the rule needs."""
        self.max_distance = config.pictures.max_hash_distance
        self.evaluation_images = config.evaluation_images

    def off(self) -> str:
        """Returns why the rule is off, or an empty string if it is on.

        Raises:
          InputError: the table of evaluation images cannot be opened.
        """
        if self.max_distance < 0:
            return "config.pictures.max_hash_distance is below 0"
        if not self.evaluation_images:
            return "config.evaluation_images is empty"
        if not has_hashes(self.evaluation_images):
            return f"{self.evaluation_images} has neither a column phash nor image"
        return ""

    def check(self) -> None:
        """Does nothing, because the method `off` checks all that the rule needs."""

    def prepare(self, stages: StageTables, shards: int) -> None:
        """Does nothing: the stage `evaluation` holds the hashes."""

    def open_shard(
        self, stages: pathlib.Path, index: int, threads: int | None
    ) -> Callable[[pa.Table], list[pa.Array]]:
        """Returns a function that finds near-duplicates of evaluation images by hash.

        The function takes a table of N pictures with the column `phash`. It returns a
        list of one boolean array (N,), true where the hash of an evaluation image
        differs in at most `max_hash_distance` bits.

        Args:
          stages: folder of the stages; its `evaluation.parquet` has the hashes.
          index: index of the shard, not used.
          threads: number of threads, not used.
        """
        hashes = read_hashes(stages / "evaluation.parquet")

        def score(images: pa.Table) -> list[pa.Array]:
            distances = hash_distances(images["phash"].to_numpy(), hashes)
            return [pa.array(distances <= self.max_distance)]

        return score

    def breaks(self, scores: ibis.Table) -> BooleanValue:
        """Returns an expression that is true where a pair breaks the rule."""
        return scores.near_duplicate
