"""Scores of evaluations, computed on the host from ranks, labels and ratings."""

import math

import numpy as np
import scipy.stats

CUTS = (1, 5, 10)  # values of k in recall at k


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Returns the share, in [0, 1], of queries with a right candidate in the first k.

    Args:
      ranks: (Q,) rank of each query's best right candidate, from 0. A negative rank
        would count as a hit: leave out queries without a right candidate.
      k: number of best candidates among which a right one counts.
    """
    return float(np.mean(ranks < k))


def chance_recall(right: np.ndarray, candidates: int, k: int) -> float:
    """Returns the expected recall at k if the candidates are in random order.

    A query with m right candidates among n misses with probability
    binomial(n - m, k) / binomial(n, k).

    Args:
      right: (Q,) number of right candidates of each query.
      candidates: number n of candidates.
      k: number of best candidates among which a right one counts.
    """
    k = min(k, candidates)
    every = math.comb(candidates, k)
    counts, queries = np.unique(right, return_counts=True)
    misses = [math.comb(candidates - int(m), k) / every for m in counts]
    return float(1.0 - np.average(misses, weights=queries))


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
    """Returns the unweighted mean of the accuracies of the classes in `labels`.

    Args:
      right: (N,) bools, whether the prediction for each picture is right.
      labels: (N,) class of each picture.
    """
    _, classes = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(classes, right) / np.bincount(classes)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Spearman's correlation of a (N,) and b (N,).

    It is 0 if a or b is constant or N is less than 2.
    """
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

    The rated items of one query are not independent, since they were chosen together.
    Each estimate therefore draws half of the queries, takes one rated item of each, and
    correlates ratings and scores of these items.

    Args:
      queries: (P,) integer that identifies the query of each rating.
      ratings: (P,) ratings by people.
      scores: (P,) scores by the model.
      estimates: number of estimates.
      seed: seed of the draws.

    Returns:
      Mean and standard deviation over the estimates.

    Raises:
      ValueError: fewer than four distinct queries; half of them would be one item.
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
