"""Examples for the report: queries of an evaluation with a model's best answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

EVENLY = 12  # queries picked evenly, whatever their ranks
ENDS = 6  # queries with the worst ranks, and as many with the best
ANSWERS = 5  # answers shown for each query


class Item(NamedTuple):
    """A picture, a text or a class as the report shows it.

    Attributes:
      text: the text, the name of the class, or a text that describes the picture.
      picture: bytes of the picture's file; None for a text or a class.
    """

    text: str
    picture: bytes | None = None


class Answer(NamedTuple):
    """A candidate, its score (a cosine or a logit), and whether it is a right one."""

    item: Item
    score: float
    right: bool


class Example(NamedTuple):
    """A query and its best answers.

    Attributes:
      chosen: reason for showing this query, one of those of `choose_queries`.
      query: the query.
      answers: candidates of the highest scores, the highest first.
      rank: rank of the best right candidate among all candidates, from 1; None if
        unknown.
      right: the right candidate of the highest score; None if unknown.
    """

    chosen: str
    query: Item
    answers: list[Answer]
    rank: int | None
    right: Item | None


class Side(NamedTuple):
    """All queries, or all candidates.

    Attributes:
      embeddings: (N, D) embeddings.
      show: function from row numbers of `embeddings` to {row number: item to show}.
    """

    embeddings: np.ndarray
    show: Callable[[Sequence[int]], Mapping[int, Item]]


def make_examples(
    queries: Side,
    candidates: Side,
    pairs: np.ndarray,
    ranks: np.ndarray,
    flags: np.ndarray | None = None,
    exclude_itself: bool = False,
    first: np.ndarray | None = None,
) -> Iterator[Example]:
    """Yields the queries of `choose_queries`, each with its `ANSWERS` best candidates.

    The score is the inner product of the embeddings. In a tie, wrong candidates come
    first.

    Args:
      queries: all queries.
      candidates: all candidates.
      pairs: (P, 2) indices of query and candidate of all right pairs.
      ranks: (Q,) rank of each query's best right candidate, from 0, see `pair_ranks`; a
        query with a negative rank is not shown.
      flags: (Q,) bools, whether a query may be shown; None for all.
      exclude_itself: whether queries and candidates are the same items, so that a query
        is not an answer to itself.
      first: (C,) index of the first candidate that counts as equal to each, since equal
        candidates come in their order, see `class_ranks`; None if none are equal.
    """
    shown = ranks >= 0 if flags is None else flags & (ranks >= 0)
    chosen = choose_queries(shown, ranks)
    if first is None:
        first = np.arange(len(candidates.embeddings))
    asked = queries.show([row for _, row in chosen])
    for why, row in chosen:
        right = pairs[pairs[:, 0] == row, 1]
        scores = (candidates.embeddings @ queries.embeddings[row])[first]  # (C,)
        if exclude_itself:
            scores[row] = -np.inf
        is_right = np.isin(np.arange(len(scores)), right)
        ties = np.isin(first, first[right])  # right, or equal to a right one
        best = np.lexsort((ties, -scores))[:ANSWERS].tolist()
        best_right = int(right[np.argmax(scores[right])])
        items = candidates.show([*best, best_right])
        answers = [Answer(items[i], float(scores[i]), bool(is_right[i])) for i in best]
        yield Example(why, asked[row], answers, 1 + int(ranks[row]), items[best_right])


def show_each(show: Callable[[int], Item]) -> Callable[[Sequence[int]], dict]:
    """Makes the function `show` of a `Side` from a function that shows one item."""
    return lambda indices: {index: show(index) for index in indices}


def choose_queries(flags: np.ndarray, ranks: np.ndarray) -> list[tuple[str, int]]:
    """Picks up to `EVENLY` queries evenly, then the worst and the best of the others.

    Args:
      flags: (N,) bools, whether a query may be picked.
      ranks: (N,) ranks of the queries; the lowest is the best.

    Returns:
      Pairs of the reason ("picked evenly", "one of the worst", "one of the best") and
      the query's index. Up to `ENDS` queries are worst, and as many are best.
    """
    even = spread(flags, EVENLY)
    others = np.setdiff1d(np.flatnonzero(flags), even)
    order = others[np.argsort(ranks[others], kind="stable")].tolist()
    ends = min(2 * ENDS, len(order)) // 2
    return [
        *(("picked evenly", query) for query in even),
        *(("one of the worst", query) for query in order[::-1][:ends]),
        *(("one of the best", query) for query in order[:ends]),
    ]


def spread(flags: np.ndarray, count: int) -> list[int]:
    """Returns up to `count` indices of true `flags` (N,), evenly from first to last."""
    flagged = np.flatnonzero(flags)
    picked = np.linspace(0, len(flagged) - 1, min(count, len(flagged)))
    return flagged[picked.round().astype(int)].tolist()
