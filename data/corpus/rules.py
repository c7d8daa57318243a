"""The paper's filters (arXiv 2102.05918, section 3) as Ibis expressions.

Every rule is evaluated on every distinct pair. So the report can say how many pairs
break a rule, and how many break it before any other. The paper defines neither a
unigram (see `data.corpus.ngrams`) nor the order of its filters.

To add a rule, add one `Rule` to `RULES`; its column, counts and part of the page
follow. A rule that looks at pictures is a class; see `data.corpus.picture_rules`.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import ibis
from ibis import Table
from ibis.expr.types import BooleanValue, IntegerValue

from align_jax.ranges import Count, Natural, Range
from data.corpus.ngrams import unigrams_of

PAIR_COLUMNS = ("image_id", "text", "language", "key")  # all other columns are rules

# The facts about a pair that a rule can use. The picture's size and error are null if
# only its address is known; the size is 0 x 0 if it cannot be decoded.
FACTS = ibis.schema(
    {
        "image_id": "string",
        "text": "string",  # normalised
        "language": "string",  # null or empty if unknown
        "key": "int64",  # shuffle key
        "width": "int32",  # pixels
        "height": "int32",  # pixels
        "error": "string",  # why the picture cannot be decoded, else null
        "texts": "int64",  # distinct texts of the picture; null if within the bound
        "images": "int64",  # distinct pictures of the text
        "evaluated": "boolean",  # the picture is an evaluation image, else null
        "rare": "boolean",  # the text has an n-gram that is not frequent, else null
    }
)


@dataclasses.dataclass(frozen=True)
class RuleBounds:
    """The bound of each rule; the defaults are the paper's.

    Attributes:
      languages: language codes of the alt-texts to keep; alt-texts of unknown language
        are dropped. Empty keeps all, as the paper's multilingual corpus does.
      min_shorter_side: pixels that the shorter side must exceed.
      max_aspect_ratio: ratio that longer side / shorter side must stay below.
      max_texts_per_image: maximum number of distinct alt-texts of one image.
      max_images_per_text: maximum number of distinct images that share an alt-text.
      frequent_ngrams: maximum number of frequent unigrams and bigrams, counted
        together; a text with any other n-gram is dropped.
      min_unigrams: minimum number of unigrams of an alt-text.
      max_unigrams: maximum number of unigrams of an alt-text.
    """

    languages: tuple[str, ...] = ("en",)
    min_shorter_side: Natural = 200
    max_aspect_ratio: Annotated[int, Range(least=2)] = 3
    max_texts_per_image: Count = 1000
    max_images_per_text: Count = 10
    frequent_ngrams: Count = 100_000_000
    min_unigrams: Natural = 3
    max_unigrams: Count = 20

    def __post_init__(self) -> None:
        if self.max_unigrams < self.min_unigrams:
            raise ValueError(
                f"max_unigrams is {self.max_unigrams}, below min_unigrams,"
                f" {self.min_unigrams}"
            )


@dataclasses.dataclass(frozen=True)
class Rule:
    """A filter that needs no model.

    Attributes:
      meaning: description of a pair that breaks the rule, for the page.
      breaks: function from a table with the columns FACTS and the bounds to a boolean
        expression, true where a pair breaks the rule; null counts as false. If it
        returns None, the rule is off and the report has no line for it.
      bound: field of `RuleBounds` whose value the page shows after the meaning; empty
        for none.
      withheld: whether the page hides the pictures that the rule dropped.
    """

    meaning: str
    breaks: Callable[[Table, RuleBounds], BooleanValue | None]
    bound: str = ""
    withheld: bool = False


def _is_other_language(facts: Table, bounds: RuleBounds) -> BooleanValue | None:
    if not bounds.languages:
        return None
    return ~facts.language.fill_null("").isin(bounds.languages)


def _is_too_small(facts: Table, bounds: RuleBounds) -> BooleanValue:
    return _shorter_side(facts) <= bounds.min_shorter_side


def _is_too_narrow(facts: Table, bounds: RuleBounds) -> BooleanValue:
    longer = ibis.greatest(facts.width, facts.height).cast("int64")
    return longer >= bounds.max_aspect_ratio * _shorter_side(facts)


def _shorter_side(facts: Table) -> IntegerValue:
    return ibis.least(facts.width, facts.height).cast("int64")


def _is_too_short(facts: Table, bounds: RuleBounds) -> BooleanValue:
    return (facts.text == "") | (unigrams_of(facts).length() < bounds.min_unigrams)


# If a pair breaks several rules, the report counts the first one in this order.
RULES: dict[str, Rule] = {
    "other_language": Rule(
        "the text is in no language to keep", _is_other_language, "languages"
    ),
    "no_image": Rule("there is no picture", lambda facts, _: facts.width.isnull()),
    "undecodable": Rule(
        "the picture cannot be decoded", lambda facts, _: facts.error.notnull()
    ),
    "shorter_side": Rule(
        "shorter side, pixels, at most", _is_too_small, "min_shorter_side"
    ),
    "aspect_ratio": Rule(
        "longer side / shorter side at least", _is_too_narrow, "max_aspect_ratio"
    ),
    "texts_per_image": Rule(
        "picture's distinct texts more than",
        lambda facts, bounds: facts.texts > bounds.max_texts_per_image,
        "max_texts_per_image",
    ),
    "evaluation_image": Rule(
        "the picture is one of an evaluation set", lambda facts, _: facts.evaluated
    ),
    "images_per_text": Rule(
        "text's distinct pictures more than",
        lambda facts, bounds: facts.images > bounds.max_images_per_text,
        "max_images_per_text",
    ),
    "rare_ngram": Rule(
        "an n-gram outside the most frequent",
        lambda facts, _: facts.rare,
        "frequent_ngrams",
    ),
    "too_short": Rule("unigrams fewer than", _is_too_short, "min_unigrams"),
    "too_long": Rule(
        "unigrams more than",
        lambda facts, bounds: unigrams_of(facts).length() > bounds.max_unigrams,
        "max_unigrams",
    ),
}


def count_refusals(pictures: Table) -> Table:
    """Counts the pictures that cannot be decoded, by the reason: `reason`, `pictures`.

    Args:
      pictures: pictures with the column error, see `data.pictures.images`.
    """
    refused = pictures.filter(pictures.error.notnull())
    reason = refused.error.split(": ")[0].name("reason")
    return refused.group_by(reason).agg(pictures=refused.count())


def check_rules(bounds: RuleBounds) -> None:
    """Raises TypeError if a rule has the name of a fact or returns a wrong type.

    A rule returns a boolean expression, or None if it is off. If a rule uses a column
    that is not in FACTS, Ibis raises an error.
    """
    for name, expression in _expressions(ibis.table(FACTS), bounds).items():
        if name in FACTS or not isinstance(expression, BooleanValue):
            raise TypeError(
                f"rule {name!r} of RULES gives {type(expression).__name__}; wanted a"
                f" boolean expression, and a name other than {', '.join(FACTS)}"
            )


def flag_pairs(
    *,
    pairs: Table,
    pictures: Table,
    texts: Table,
    rare_texts: Table,
    evaluation_images: Table,
    bounds: RuleBounds,
) -> Table:
    """Adds a boolean column for each of RULES, true where a pair breaks the rule.

    Args:
      pairs: distinct pairs with the columns PAIR_COLUMNS.
      pictures: columns image_id, width, height, error; the last three are null if only
        the picture's address is known.
      texts: columns text, images, from `count_texts`.
      rare_texts: column text, from `find_rare_texts`.
      evaluation_images: column image_id.
      bounds: bounds of the rules.

    Returns:
      The pairs with a column for each of RULES that is on, in that order.
    """
    # A picture in no more pairs than the bound cannot have more texts than the bound.
    many = pairs.count() > bounds.max_texts_per_image
    busy = pairs.group_by("image_id").having(many).agg(texts=pairs.text.nunique())
    evaluated = evaluation_images.distinct().mutate(evaluated=True)
    sizes = pictures.select("image_id", "width", "height", "error")
    facts = (
        pairs.left_join(sizes, "image_id")
        .drop("image_id_right")
        .left_join(busy, "image_id")
        .drop("image_id_right")
        .left_join(evaluated, "image_id")
        .drop("image_id_right")
        .left_join(texts.select("text", "images"), "text")
        .drop("text_right")
        .left_join(rare_texts.mutate(rare=True), "text")
        .drop("text_right")
    )
    rules = {
        name: expression.fill_null(False)
        for name, expression in _expressions(facts, bounds).items()
    }
    return facts.mutate(**rules).select(*pairs.columns, *rules)


def _expressions(facts: Table, bounds: RuleBounds) -> dict[str, BooleanValue]:
    """Returns the expressions of the rules that are on, in order."""
    expressions = {name: rule.breaks(facts, bounds) for name, rule in RULES.items()}
    return {name: found for name, found in expressions.items() if found is not None}
