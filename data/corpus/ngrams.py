"""Ibis expressions that count texts and their n-grams over all pairs.

A unigram is a token between white space in the normalised text. A bigram is two
neighbouring unigrams.
"""

import ibis
from ibis import Table


def unigrams_of(pairs: Table) -> ibis.expr.types.ArrayValue:
    """Returns the unigrams of each text; an empty text has one empty unigram."""
    return pairs.text.split(" ")


def count_texts(pairs: Table) -> Table:
    """Lists the distinct texts: columns `text`, `pairs`, `images`.

    `pairs` is the number of pairs that have the text, `images` the number of distinct
    images among them.
    """
    return pairs.group_by("text").agg(
        pairs=pairs.count(), images=pairs.image_id.nunique()
    )


def list_ngrams(texts: Table, column: str) -> Table:
    """Lists the unigrams and bigrams: columns `column` and `ngram`.

    Args:
      texts: table from `count_texts`.
      column: column of `texts` that each occurrence of an n-gram takes over.
    """
    words = texts.mutate(words=unigrams_of(texts))
    unigrams = words.select(column, ngram=words.words.unnest())
    neighbours = words.mutate(
        pair=ibis.range(0, words.words.length() - 1).map(
            lambda i: words.words[i] + " " + words.words[i + 1]
        )
    )
    return unigrams.union(neighbours.select(column, ngram=neighbours.pair.unnest()))


def count_ngrams(occurrences: Table) -> Table:
    """Counts n-grams over all pairs: columns `ngram`, `count`.

    Args:
      occurrences: table from `list_ngrams` with the column `pairs`; an n-gram in a text
        counts once for each pair that has the text.
    """
    pairs = occurrences.pairs.sum().cast("int64")
    return occurrences.group_by("ngram").agg(count=pairs)


def vocabulary_cut(ngrams: Table, budget: int) -> ibis.expr.types.IntegerScalar:
    """Returns the smallest count that at most `budget` n-grams have or exceed.

    N-grams of equal count are kept or dropped together, so every engine finds the same
    cut. The result is null if more than `budget` n-grams have the highest count.

    Args:
      ngrams: table from `count_ngrams`.
      budget: maximum number of frequent n-grams.
    """
    by_count = ngrams.group_by("count").agg(ngrams=ngrams.count())
    window = ibis.window(order_by=by_count["count"].desc(), following=0)
    kept = by_count.mutate(total=by_count.ngrams.sum().over(window))
    return kept.filter(kept.total <= budget)["count"].min()


def find_rare_texts(texts: Table, ngrams: Table, cut: int) -> Table:
    """Lists the texts with an n-gram whose count is below `cut`: column `text`.

    Args:
      texts: table from `count_texts`.
      ngrams: table from `count_ngrams`.
      cut: smallest count of a frequent n-gram.
    """
    spelled = list_ngrams(texts, "text")
    rare = ngrams.filter(ngrams["count"] < cut)
    return spelled.semi_join(rare, "ngram").select("text").distinct()
