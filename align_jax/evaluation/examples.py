"""Some queries of an evaluation with a model's best answers, to be looked at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

EVENLY = 12  # queries that are shown whatever their answers
ENDS = 6  # of the worst, and of the best
ANSWERS = 5


class Item(NamedTuple):
    """What is shown of a picture, a text or a class.

    Attributes:
      text: it, or one that describes the picture.
      picture: a picture's file.
    """

    text: str
    picture: bytes | None = None


class Answer(NamedTuple):
    """A candidate, its cosine with the query or its logit, and whether it is right."""

    item: Item
    score: float
    right: bool


class Example(NamedTuple):
    """A query and its best answers.

    Attributes:
      chosen: why this one is shown.
      query: what was asked.
      answers: best first.
      rank: of the best right answer among all, from 1; None where it is not known.
      right: the best right answer; None where it is not known.
    """

    chosen: str
    query: Item
    answers: list[Answer]
    rank: int | None
    right: Item | None


class Side(NamedTuple):
    """Queries or candidates.

    Attributes:
      embeddings: (N, D).
      show: gives what is shown of some, by their places.
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
) -> Iterator[Example]:
    """Yields some queries with their best answers, wrong ones first among equals.

    Args:
      queries: of which some are shown.
      candidates: all of them.
      pairs: (P, 2), query and candidate of all that is right.
      ranks: (Q,) of each query's best right answer, from 0, see `pair_ranks`.
      flags: (Q,) which may be shown, where something is right; all of those if None.
      exclude_itself: where queries and candidates are the same.
    """
    shown = ranks >= 0 if flags is None else flags & (ranks >= 0)
    chosen = choose_queries(shown, ranks)
    asked = queries.show([row for _, row in chosen])
    for why, row in chosen:
        right = pairs[pairs[:, 0] == row, 1]
        scores = candidates.embeddings @ queries.embeddings[row]  # (C,)
        if exclude_itself:
            scores[row] = -np.inf
        is_right = np.isin(np.arange(len(scores)), right)
        best = np.lexsort((is_right, -scores))[:ANSWERS].tolist()
        best_right = int(right[np.argmax(scores[right])])
        items = candidates.show([*best, best_right])
        answers = [Answer(items[i], float(scores[i]), bool(is_right[i])) for i in best]
        yield Example(why, asked[row], answers, 1 + int(ranks[row]), items[best_right])


def show_each(show: Callable[[int], Item]) -> Callable[[Sequence[int]], dict]:
    """What a `Side` shows, where one is as easily shown as many."""
    return lambda places: {place: show(place) for place in places}


def choose_queries(flags: np.ndarray, ranks: np.ndarray) -> list[tuple[str, int]]:
    """Picks flagged queries (N,) evenly, and of the others some worst and best."""
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
    """Picks up to `count` of the flagged indices (N,), evenly from first to last."""
    flagged = np.flatnonzero(flags)
    picked = np.linspace(0, len(flagged) - 1, min(count, len(flagged)))
    return flagged[picked.round().astype(int)].tolist()
