"""The paper's filters (arXiv 2102.05918, section 3) as Ibis expressions.

Every rule is evaluated on the raw pairs, so the report can say both how many pairs
break it and for how many it is the first one broken. A unigram is a token of the
normalised text between white space; a bigram is two neighbours. The paper states
neither, nor the order of its filters.
"""

import dataclasses

import ibis
from ibis import Table
from ibis.expr.types import BooleanValue


@dataclasses.dataclass(frozen=True)
class RuleBounds:
    """The bound of each rule; the defaults are the paper's.

    Attributes:
      languages: languages of the alt-texts to keep; empty keeps all, as the paper's
        multilingual corpus does.
      min_shorter_side: pixels; the shorter side must be greater.
      max_aspect_ratio: longer side / shorter side must be smaller.
      max_texts_per_image: distinct alt-texts of one image.
      max_images_per_text: distinct images that share an alt-text.
      frequent_ngrams: a text may hold only the most frequent unigrams and bigrams,
        at most this many of both together.
      min_unigrams: of an alt-text.
      max_unigrams: of an alt-text.
    """

    languages: tuple[str, ...] = ("en",)
    min_shorter_side: int = 200
    max_aspect_ratio: int = 3
    max_texts_per_image: int = 1000
    max_images_per_text: int = 10
    frequent_ngrams: int = 100_000_000
    min_unigrams: int = 3
    max_unigrams: int = 20


def unigrams_of(pairs: Table) -> ibis.expr.types.ArrayValue:
    """The text's unigrams."""
    return pairs.text.split(" ")


def count_texts(pairs: Table) -> Table:
    """Lists the distinct texts: columns `text`, `pairs`, `images` (distinct ones)."""
    return pairs.group_by("text").agg(
        pairs=pairs.count(), images=pairs.image_id.nunique()
    )


def count_ngrams(texts: Table) -> Table:
    """Counts unigrams and bigrams over all pairs: columns `ngram`, `count`.

    Args:
      texts: from `count_texts`; an n-gram of it counts once for each of its pairs.
    """
    ngrams = _ngrams(texts, "pairs")
    return ngrams.group_by("ngram").agg(count=ngrams.pairs.sum().cast("int64"))


def vocabulary_cut(ngrams: Table, budget: int) -> ibis.expr.types.IntegerScalar:
    """Smallest count c such that at most `budget` n-grams are counted c or more times.

    Ties are kept or dropped together, so every engine finds the same cut.
    """
    by_count = ngrams.group_by("count").agg(ngrams=ngrams.count())
    window = ibis.window(order_by=by_count["count"].desc(), following=0)
    kept = by_count.mutate(total=by_count.ngrams.sum().over(window))
    return kept.filter(kept.total <= budget)["count"].min()


def find_rare_texts(texts: Table, ngrams: Table, cut: int) -> Table:
    """Lists the texts with an n-gram that is counted fewer than `cut` times."""
    spelled = _ngrams(texts, "text")
    rare = ngrams.filter(ngrams["count"] < cut)
    return spelled.semi_join(rare, "ngram").select("text").distinct()


def flag_pairs(
    pairs: Table,
    pictures: Table,
    texts: Table,
    rare_texts: Table,
    evaluation_images: Table,
    bounds: RuleBounds,
) -> Table:
    """Adds a boolean column per rule that needs no model, true where a pair breaks it.

    Args:
      pairs: columns image_id, text, language.
      pictures: columns image_id, width, height, error; null where only an address is
        known.
      texts: columns text, images, from `count_texts`.
      rare_texts: column text, from `find_rare_texts`.
      evaluation_images: column image_id.
      bounds: of the rules.

    Returns:
      The pairs with the columns of `rule_columns`, in that order.
    """
    many = pairs.count() > bounds.max_texts_per_image  # else there is nothing to count
    busy = pairs.group_by("image_id").having(many).agg(texts=pairs.text.nunique())
    evaluated = evaluation_images.distinct().mutate(evaluated=True)
    sizes = pictures.select("image_id", "width", "height", "error")
    joined = (
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
    rules = rule_columns(joined, bounds)
    return joined.mutate(**rules).select(*pairs.columns, *rules)


def rule_columns(joined: Table, bounds: RuleBounds) -> dict[str, BooleanValue]:
    """The rules in the order in which the report names the first one broken."""
    shorter = ibis.least(joined.width, joined.height).cast("int64")
    longer = ibis.greatest(joined.width, joined.height).cast("int64")
    unigrams = unigrams_of(joined).length()
    too_small = shorter <= bounds.min_shorter_side
    many_texts = joined.texts > bounds.max_texts_per_image
    too_wide = longer >= bounds.max_aspect_ratio * shorter
    rules = {
        "no_image": joined.width.isnull(),
        "undecodable": joined.error.notnull(),
        "shorter_side": too_small.fill_null(False),
        "aspect_ratio": too_wide.fill_null(False),
        "texts_per_image": many_texts.fill_null(False),
        "evaluation_image": joined.evaluated.fill_null(False),
        "images_per_text": joined.images > bounds.max_images_per_text,
        "rare_ngram": joined.rare.fill_null(False),
        "too_short": (joined.text == "") | (unigrams < bounds.min_unigrams),
        "too_long": unigrams > bounds.max_unigrams,
    }
    if bounds.languages:
        known = joined.language.fill_null("").isin(bounds.languages)
        rules = {"other_language": ~known, **rules}
    return rules


def judge_pairs(flagged: Table, scores: Table | None, max_nsfw: float) -> Table:
    """Adds the rules that looked at pictures, which only survivors were scored for.

    Args:
      flagged: from `flag_pairs`.
      scores: columns image_id, nsfw, near_duplicate, near_embedding; null where not
        looked at. None where these rules are off.
      max_nsfw: a picture of a higher probability is pornographic.
    """
    if scores is None:
        off = ibis.literal(False)
        return flagged.mutate(pornographic=off, near_duplicate=off, near_embedding=off)
    judged = flagged.left_join(scores, "image_id")
    rules = {
        "pornographic": (judged.nsfw > max_nsfw).fill_null(False),
        "near_duplicate": judged.near_duplicate.fill_null(False),
        "near_embedding": judged.near_embedding.fill_null(False),
    }
    return judged.select(*flagged.columns, **rules)


def _ngrams(texts: Table, column: str) -> Table:
    """One row an occurrence: `column` of the texts, and `ngram`."""
    words = texts.mutate(words=unigrams_of(texts))
    unigrams = words.select(column, ngram=words.words.unnest())
    neighbours = words.mutate(
        pair=ibis.range(0, words.words.length() - 1).map(
            lambda i: words.words[i] + " " + words.words[i + 1]
        )
    )
    return unigrams.union(neighbours.select(column, ngram=neighbours.pair.unnest()))
