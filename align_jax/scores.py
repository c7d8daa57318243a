"""Scores of retrieval and classification: pure numpy, ties counted against the model.

A candidate that scores as high as the right one is ranked before it, so an encoder
that maps everything to one point scores 0. Non-finite scores are an error: they would
compare as false and look like a perfect rank.
"""

import math

import numpy as np


def positive_ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Rank of each query's best positive.

    Args:
      scores: (Q, C) similarity of every query and candidate.
      positives: (Q, C) true where the candidate is right; at least one a row.

    Returns:
      (Q,) number of wrong candidates that score at least as high as the best right
      one; 0 is the top.

    Raises:
      FloatingPointError: a score is not finite.
      ValueError: shapes differ, or a row has no positive.
    """
    if scores.shape != positives.shape:
        raise ValueError(f"scores {scores.shape} and positives {positives.shape}")
    if not np.isfinite(scores).all():
        bad = np.count_nonzero(~np.isfinite(scores))
        raise FloatingPointError(f"{bad} of {scores.size} scores are not finite")
    if not positives.any(1).all():
        raise ValueError(f"query {int(positives.any(1).argmin())} has no positive")
    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    return np.count_nonzero(~positives & (scores >= best), axis=1)


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share of queries whose best positive is among the first k; ranks (Q,)."""
    return float(np.mean(ranks < k))


def chance_recall(positives: np.ndarray, k: int) -> float:
    """Expected recall at k of a random order; positives (Q, C).

    A query with m positives among C candidates misses with probability
    C(C - m, k) / C(C, k).
    """
    candidates = positives.shape[1]
    k = min(k, candidates)
    every = math.comb(candidates, k)
    counts, queries = np.unique(positives.sum(1), return_counts=True)
    misses = [math.comb(candidates - int(m), k) / every for m in counts]
    return float(1.0 - np.average(misses, weights=queries))
