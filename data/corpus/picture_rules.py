"""Rules that look at the pictures that no rule of `RULES` drops.

To add a rule, write a class that fulfils `PictureRule` and add one line to
`PICTURE_RULES`; its columns, counts, part of the page and "NOT EVALUATED" line follow.
"""

import pathlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import ibis
import pyarrow as pa
from ibis.expr.types import BooleanValue

from align_jax.contracts import check_contract
from align_jax.errors import one_line
from data.corpus.config import CorpusConfig
from data.corpus.embedding_rule import NearEmbeddingRule
from data.corpus.near_duplicate_rule import NearDuplicateRule
from data.corpus.pornographic_rule import PornographicRule
from data.corpus.rules import FACTS, PAIR_COLUMNS, RULES
from data.corpus.stage_tables import StageTables

# Function from N pictures (columns image_id, image, phash) to a rule's columns, (N,).
PictureScorer = Callable[[pa.Table], Sequence[pa.Array | pa.ChunkedArray]]


class PictureRule(Protocol):
    """A rule that looks at the pictures of the pairs that break no cheaper rule.

    A build makes one object of each rule. If the rule is off, the rule scores no
    picture and `breaks` sees nulls. The object is pickled to be sent to other processes
    and machines, so its attributes must be picklable.

    Attributes:
      meaning: description of a pair that breaks the rule, for the page.
      bound: field of config.pictures whose value the page shows after the meaning;
        empty for none.
      withheld: whether the page hides the pictures that the rule dropped.
      columns: fields that the rule adds to the stage `scores`, null where a picture
        was not scored; no two rules may share a field name.
    """

    meaning: str
    bound: str
    withheld: bool
    columns: tuple[pa.Field, ...]

    def __init__(self, config: CorpusConfig) -> None:
        """Stores the fields of the config that the rule needs; opens nothing."""

    def off(self) -> str:
        """Returns why the rule is off, or an empty string if it is on."""

    def check(self) -> None:
        """Raises InputError if something that the rule needs is missing.

        The build calls it before anything is written, if the rule is on.
        """

    def prepare(self, stages: StageTables, shards: int) -> None:
        """Makes the files that all shards need, once, on the driver's machine.

        A killed build is resumed. So files must be written to the folder of the stages
        atomically, and existing files must be kept.

        Args:
          stages: stages of the build, up to `survivors`.
          shards: number of shards of the stage `images`.
        """

    def open_shard(
        self, stages: pathlib.Path, index: int, threads: int | None
    ) -> PictureScorer:
        """Opens the rule for one shard, in the process that scores it.

        Args:
          stages: folder of the stages.
          index: index of the shard.
          threads: number of threads of a model; None means one per core.

        Returns:
          A function from a table of N >= 1 pictures to arrays (N,), one per field of
          `columns`, in order.
        """

    def breaks(self, scores: ibis.Table) -> BooleanValue:
        """Returns an expression that is true where a pair breaks the rule.

        Args:
          scores: pairs with the columns of this rule, null where a picture was not
            scored. A null of the expression counts as false.
        """


# The first broken rule is searched in RULES, then in these rules, in order.
PICTURE_RULES: dict[str, type[PictureRule]] = {
    "pornographic": PornographicRule,
    "near_duplicate": NearDuplicateRule,
    "near_embedding": NearEmbeddingRule,
}


def make_picture_rules(config: CorpusConfig) -> dict[str, PictureRule]:
    """Makes an object of each picture rule, including those that are off.

    Raises:
      TypeError: a class does not fulfil `PictureRule`, or a name is not unique.
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


def check_picture_rules(rules: Mapping[str, PictureRule]) -> None:
    """Checks the rules of `make_picture_rules` as far as it can without a picture.

    Raises:
      TypeError: a rule cannot be pickled, or `breaks` returns no boolean expression. If
        `breaks` uses a column that is not in `scores`, Ibis raises an error.
      InputError: something that a rule needs, and that is on, is missing.
    """
    columns = dict.fromkeys(PAIR_COLUMNS, "string") | {"key": "int64"}
    schema = ibis.Schema.from_pyarrow(scores_schema(rules))
    scores = ibis.table(columns | dict.fromkeys(RULES, "boolean") | dict(schema))
    for name, rule in rules.items():
        expression = rule.breaks(scores)
        if not isinstance(expression, BooleanValue):
            raise TypeError(
                f"breaks of PICTURE_RULES[{name!r}] gives {type(expression).__name__};"
                " wanted a boolean expression"
            )
        if rule.off():
            continue
        rule.check()
        try:
            pickle.dumps(rule)
        except Exception as error:  # whatever an attribute raises
            raise TypeError(
                f"PICTURE_RULES[{name!r}] cannot be sent to other processes:"
                f" {one_line(error)}"
            ) from error


def scores_schema(rules: Mapping[str, PictureRule]) -> pa.Schema:
    """Returns the schema of the stage `scores`; `rules` must be all picture rules."""
    columns = [field for rule in rules.values() for field in rule.columns]
    return pa.schema([("image_id", pa.string()), *columns])


def judge_pairs(
    flagged: ibis.Table,
    scores: ibis.Table | None,
    rules: Mapping[str, PictureRule],
) -> ibis.Table:
    """Adds a boolean column for each picture rule, true where a pair breaks it.

    Args:
      flagged: table from `flag_pairs`.
      scores: table with the columns of `scores_schema`, without the pictures that were
        not scored; None if all picture rules are off.
      rules: all picture rules, in order.
    """
    if scores is None:
        return flagged.mutate(**{name: ibis.literal(False) for name in rules})
    judged = flagged.left_join(scores, "image_id")
    columns = {
        name: rule.breaks(judged).fill_null(False) for name, rule in rules.items()
    }
    return judged.select(*flagged.columns, **columns)
