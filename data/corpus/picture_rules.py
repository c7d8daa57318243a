"""Rules that look at pictures; they see only those that break no rule of `RULES`.

Another such rule is a class that fulfils `PictureRule` and one line in `PICTURE_RULES`:
its columns, counts, place on the page and "NOT EVALUATED" line follow.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import ibis
import pyarrow as pa
from ibis.expr.types import BooleanValue

from align_jax.contracts import check_contract
from data.corpus.config import CorpusConfig
from data.corpus.embedding_rule import NearEmbeddingRule
from data.corpus.near_duplicate_rule import NearDuplicateRule
from data.corpus.pornographic_rule import PornographicRule
from data.corpus.rules import FACTS, RULES
from data.corpus.stage_tables import StageTables

# N pictures, columns image_id, image and phash, to a rule's columns, (N,) each.
PictureScorer = Callable[[pa.Table], Sequence[pa.Array | pa.ChunkedArray]]


class PictureRule(Protocol):
    """A rule that looks at the pictures of the pairs that break no cheaper rule.

    A build makes one object. If the rule is off, no picture is scored and `breaks`
    finds null. The object is sent to other processes and machines, so what it holds
    can be pickled.

    Attributes:
      meaning: the words of the page for what breaks the rule.
      bound: field of config.pictures that the page shows after them; empty for none.
      withheld: whether the page hides the pictures that the rule dropped.
      columns: fields that the rule adds to the stage `scores`, of names that no other
        rule has; null where a picture was not scored.
    """

    meaning: str
    bound: str
    withheld: bool
    columns: tuple[pa.Field, ...]

    def __init__(self, config: CorpusConfig) -> None:
        """Takes the config and opens nothing."""

    def off(self) -> str:
        """Says why the rule is not evaluated; empty if it is."""

    def check(self) -> None:
        """Raises InputError if something that the rule needs is missing.

        It is called before anything is written.
        """

    def prepare(self, stages: StageTables, shards: int) -> None:
        """Makes what all shards need, once, on the driver's machine.

        A file that it writes into the folder of the stages must appear whole or not at
        all, and one that is there must be left alone: a killed build goes on.

        Args:
          stages: of the build, up to `survivors`.
          shards: number of shards of the stage `images`.
        """

    def open_shard(
        self, stages: pathlib.Path, index: int, threads: int | None
    ) -> PictureScorer:
        """Opens the rule for one shard, in the process that scores it.

        Args:
          stages: folder of the stages.
          index: number of the shard.
          threads: threads of a model; None takes one a core.

        Returns:
          A function from at least one picture to the arrays of `columns`.
        """

    def breaks(self, scores: ibis.Table) -> BooleanValue:
        """The expression that is true where a pair breaks the rule.

        Args:
          scores: pairs with the columns of this rule, null where a picture was not
            scored; null counts as false.
        """


# In the order in which the report names the first rule broken, after those of RULES.
PICTURE_RULES: dict[str, type[PictureRule]] = {
    "pornographic": PornographicRule,
    "near_duplicate": NearDuplicateRule,
    "near_embedding": NearEmbeddingRule,
}


def make_picture_rules(config: CorpusConfig) -> dict[str, PictureRule]:
    """Makes all rules, those that are off among them.

    Raises:
      TypeError: a class does not fulfil `PictureRule`, or a name is taken.
    """
    taken = {*FACTS, *RULES}
    for name, rule in PICTURE_RULES.items():
        check_contract(rule, PictureRule, f"PICTURE_RULES[{name!r}]")
        columns = {field.name for field in rule.columns} | {name}
        if columns & taken:
            raise TypeError(
                f"PICTURE_RULES[{name!r}] has the names {sorted(columns & taken)},"
                " which another column or rule has"
            )
        taken |= columns
    return {name: rule(config=config) for name, rule in PICTURE_RULES.items()}


def scores_schema(rules: Mapping[str, PictureRule]) -> pa.Schema:
    """The schema of the stage `scores`."""
    columns = [field for rule in rules.values() for field in rule.columns]
    return pa.schema([("image_id", pa.string()), *columns])


def judge_pairs(
    flagged: ibis.Table,
    scores: ibis.Table | None,
    rules: Mapping[str, PictureRule],
) -> ibis.Table:
    """Adds a column for each rule that looked at pictures.

    Args:
      flagged: from `flag_pairs`.
      scores: columns of `scores_schema`; pictures that were not looked at are missing.
        None where all rules are off.
      rules: all of them, in their order.
    """
    if scores is None:
        return flagged.mutate(**{name: ibis.literal(False) for name in rules})
    judged = flagged.left_join(scores, "image_id")
    columns = {
        name: rule.breaks(judged).fill_null(False) for name, rule in rules.items()
    }
    return judged.select(*flagged.columns, **columns)
