"""The rules of a filter as Ibis expressions.

A filter keeps a row if each of its rules does. A row without the fact that a rule needs
is dropped. To add a rule, add a field to `FilterBounds` and one `Rule` to `RULES`.
"""

import dataclasses
from collections.abc import Callable

import ibis
from ibis import Table
from ibis.expr.types import BooleanValue, NumericValue

from data.curation.config import FilterBounds
from data.curation.facts import COLUMN

ROW = ("shard", "row", "upper", "lower", "key")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule that a filter can have.

    Attributes:
      meaning: description of a row that the rule drops, for the report.
      field: field of `FilterBounds` that turns the rule on.
      keeps: function from the facts and the bounds to a boolean expression, true where
        the rule keeps a row. Null counts as false.
      bound: field of `FilterBounds` whose value the report shows; `field` by default.
    """

    meaning: str
    field: str
    keeps: Callable[[Table, FilterBounds], BooleanValue]
    bound: str = ""

    def is_on(self, bounds: FilterBounds) -> bool:
        """Returns whether a filter has the rule."""
        return bool(getattr(bounds, self.field))

    def describe(self, bounds: FilterBounds) -> str:
        """Returns the meaning with the bound's value."""
        value = getattr(bounds, self.bound or self.field)
        if isinstance(value, bool):
            return self.meaning
        if isinstance(value, tuple):
            value = ", ".join(value)
        return f"{self.meaning} {value}"


def shorter_side(facts: Table) -> NumericValue:
    """Returns the shorter side of each picture in pixels; null if one is unknown."""
    known = facts.width.notnull() & facts.height.notnull()  # engines' `least` skips it
    least = ibis.least(facts.width, facts.height)
    return ibis.ifelse(known, least, ibis.null("float64"))


def aspect_ratio(facts: Table) -> NumericValue:
    """Returns longer side / shorter side of each picture; null for a side below 1."""
    shorter = shorter_side(facts)
    positive = ibis.ifelse(shorter >= 1, shorter, ibis.null("float64"))
    return ibis.greatest(facts.width, facts.height) / positive


def score_of(facts: Table, bounds: FilterBounds) -> NumericValue:
    """Returns the scores that a filter bounds."""
    return facts[COLUMN + bounds.score]


# If a row breaks several rules, the report counts the first one in this order. The
# clusters of a row are computed only if the rules before keep it.
RULES: dict[str, Rule] = {
    "language": Rule(
        "the text's language is none of",
        "languages",
        lambda facts, bounds: facts.language.isin(bounds.languages),
    ),
    "words": Rule(
        "words fewer than",
        "min_words",
        lambda facts, bounds: facts.words >= bounds.min_words,
    ),
    "tokens": Rule(
        "fastText's tokens fewer than",
        "min_tokens",
        lambda facts, bounds: facts.tokens >= bounds.min_tokens,
    ),
    "characters": Rule(
        "characters fewer than",
        "min_characters",
        lambda facts, bounds: facts.characters >= bounds.min_characters,
    ),
    "shorter_side": Rule(
        "shorter side, pixels, less than",
        "min_shorter_side",
        lambda facts, bounds: shorter_side(facts) >= bounds.min_shorter_side,
    ),
    "aspect_ratio": Rule(
        "longer side / shorter side more than",
        "max_aspect_ratio",
        lambda facts, bounds: aspect_ratio(facts) <= bounds.max_aspect_ratio,
    ),
    "score": Rule(
        "score less than",
        "score",
        lambda facts, bounds: score_of(facts, bounds) >= bounds.min_score,
        bound="min_score",
    ),
    "text_entities": Rule(
        "no word of the text is an entity",
        "text_entities",
        lambda facts, _: facts.entity,
    ),
    "subset": Rule(
        "the uid is not in the subset of",
        "subset",
        lambda facts, _: facts.listed,
    ),
    "image_clusters": Rule(
        "the picture's cluster is none of the target's",
        "image_clusters",
        lambda facts, _: facts.targeted,
    ),
}


def list_rules(bounds: FilterBounds) -> dict[str, Rule]:
    """Returns the rules that a filter has, by name, in order."""
    return {name: rule for name, rule in RULES.items() if rule.is_on(bounds)}


def flag_rows(facts: Table, bounds: FilterBounds) -> Table:
    """Adds a boolean column for each rule of a filter, true where it drops a row.

    Clusters drop a row only if no other rule does, because only then they are known.

    Args:
      facts: facts about the rows, with `listed` and `targeted` if a rule uses them.
      bounds: rules of the filter; `min_score` instead of `score_fraction`.

    Returns:
      The columns ROW and one for each rule, in order.
    """
    columns = {
        name: ~rule.keeps(facts, bounds).fill_null(False)
        for name, rule in list_rules(bounds).items()
    }
    if bounds.image_clusters and len(columns) > 1:
        *others, last = columns
        columns[last] &= ~ibis.or_(*(columns[name] for name in others))
    return facts.select(*ROW, **columns)
