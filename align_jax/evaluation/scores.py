"""Scores of evaluations, from ranks, labels and ratings; on the host."""

import math

import numpy as np
import scipy.stats

CUTS = (1, 5, 10)  # at which retrieval is scored


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share of queries whose best positive is among the first k; ranks (Q,)."""
    return float(np.mean(ranks < k))


def chance_recall(right: np.ndarray, candidates: int, k: int) -> float:
    """Expected recall at k of a random order.

    A query with m right ones among C candidates misses with probability
    C(C - m, k) / C(C, k).

    Args:
      right: (Q,) right candidates of each query.
      candidates: how many there are.
      k: the cut.
    """
    k = min(k, candidates)
    every = math.comb(candidates, k)
    counts, queries = np.unique(right, return_counts=True)
    misses = [math.comb(candidates - int(m), k) / every for m in counts]
    return float(1.0 - np.average(misses, weights=queries))


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the share that is right; both (N,)."""
    _, classes = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(classes, right) / np.bincount(classes)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of (N,) and (N,); 0 where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(a, b).statistic)


def sampled_correlation(
    queries: np.ndarray,
    ratings: np.ndarray,
    scores: np.ndarray,
    estimates: int,
    seed: int,
) -> tuple[float, float]:
    """Sampled Spearman bootstrap correlation (arXiv 2004.15020).

    A query's items were chosen together, so they do not count as independent: each
    estimate draws half of the queries, one rated item for each, and correlates those.

    Args:
      queries: (P,) number of the query that a rating belongs to.
      ratings: (P,) given by people.
      scores: (P,) given by the model.
      estimates: how many.
      seed: of the draws.

    Returns:
      Mean and standard deviation over the estimates.

    Raises:
      ValueError: there are less than four queries, of which half could be correlated.
    """
    order = queries.argsort(kind="stable")
    _, starts, counts = np.unique(queries[order], return_index=True, return_counts=True)
    if len(starts) < 4:
        raise ValueError(f"{len(starts)} queries; wanted at least 4")
    random = np.random.default_rng(seed)
    found = []
    for _ in range(estimates):
        drawn = random.permutation(len(starts))[: len(starts) // 2]
        items = order[starts[drawn] + random.integers(counts[drawn])]
        found.append(rank_correlation(ratings[items], scores[items]))
    return float(np.mean(found)), float(np.std(found))
