"""Ranks of the right classes of pictures, where two classes may be equal."""

import numpy as np
from jax.sharding import Mesh

from align_jax.evaluation.ranking import ROUNDING, check_finite, pair_ranks

ROWS = 1 << 10  # rows that are compared with all others at a time


def class_ranks(
    images: np.ndarray, classes: np.ndarray, truth: np.ndarray, mesh: Mesh
) -> np.ndarray:
    """Ranks each picture's right class among all classes.

    A rank is that of `pair_ranks`, but classes of equal embeddings come in their order,
    as argmax and top k have it. So a picture of the second of two classes of one name
    has rank 1 at best.

    Args:
      images: (N, D) float32 embeddings of unit length.
      classes: (K, D) float32 embeddings of unit length.
      truth: (N,) index of each picture's right class.
      mesh: the devices.

    Returns:
      Ranks (N,), from 0.

    Raises:
      FloatingPointError: an embedding is not finite.
    """
    check_finite(classes, "column")
    first = first_equals(classes)
    later, seen = np.zeros_like(first), np.zeros_like(first)
    for k in range(len(first))[::-1]:  # count the equal classes after each
        later[k] = seen[first[k]]
        seen[first[k]] += 1
    pairs = np.stack([np.arange(len(truth)), truth], 1)
    ranks, _ = pair_ranks(images, classes[first], pairs, mesh)
    return ranks - later[truth]  # equal classes are ties, which `pair_ranks` counted


def first_equals(rows: np.ndarray) -> np.ndarray:
    """Returns, for each row (R, D), the index of the first row that equals it, (R,).

    Rows at a distance up to `ROUNDING` are equal: their cosines with any vector are
    ties.
    """
    exact = rows.astype(np.float64)
    squares = np.square(exact).sum(1)
    found = []
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        distances = squares[part, None] + squares[None] - 2 * exact[part] @ exact.T
        found.append((distances <= ROUNDING**2).argmax(1))
    return np.concatenate(found)
