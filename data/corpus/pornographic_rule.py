"""A rule that drops pornographic pictures, scored by the config's model."""

import functools
import pathlib
from collections.abc import Callable

import ibis
import pyarrow as pa
from ibis.expr.types import BooleanValue

from data.corpus.config import CorpusConfig
from data.corpus.stage_tables import StageTables
from data.pictures.nsfw import Scorer, load_scorer


class PornographicRule:
    """Drops pictures whose probability of pornography is above `max_nsfw`.

    `PictureRule` describes the members.
    """

    meaning = "the picture is pornographic"
    bound = ""
    withheld = True
    columns: tuple[pa.Field, ...] = (pa.field("nsfw", pa.float32()),)

    def __init__(self, config: CorpusConfig) -> None:
        """Stores `config.pictures`."""
        self.config = config.pictures

    def off(self) -> str:
        """Returns why the rule is off, or an empty string if it is on."""
        return "" if self.config.nsfw_model else "config.pictures.nsfw_model is empty"

    def check(self) -> None:
        """Raises InputError if the model cannot be loaded."""
        load_scorer(self.config.nsfw_model)

    def prepare(self, stages: StageTables, shards: int) -> None:
        """Does nothing: every process loads the model itself."""

    def open_shard(
        self, stages: pathlib.Path, index: int, threads: int | None
    ) -> Callable[[pa.Table], list[pa.Array]]:
        """Returns a function from pictures to their probabilities of pornography.

        A picture that cannot be decoded gets null. The first call loads the model.
        """

        def score(images: pa.Table) -> list[pa.Array]:
            scores = _scorer(self.config.nsfw_model, threads)
            found = scores(images["image"].to_pylist())
            return [pa.array(found, pa.float32(), from_pandas=True)]

        return score

    def breaks(self, scores: ibis.Table) -> BooleanValue:
        """Returns an expression that is true where a pair breaks the rule."""
        return scores.nsfw > self.config.max_nsfw


@functools.cache
def _scorer(name: str, threads: int | None) -> Scorer:
    """Returns the model, loaded once per process."""
    return load_scorer(name, threads)
