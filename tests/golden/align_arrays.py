"""Weights and inputs of the golden comparison, computed wherever they are needed."""

import math
import zlib

import numpy as np

TOKENS = np.array(
    [[2, 5, 6, 7, 3, 0, 0, 0], [2, 4, 3, 0, 0, 0, 0, 0], [2, 9, 8, 7, 6, 5, 4, 3]]
)


def weight(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Draws a tensor of an `AlignModel` by its name, far from a new model's.

    Swish and squeeze-and-excite shrink what a convolution returns, so its kernel gets a
    gain. With 1, the embeddings would not depend on the picture. With 1.4 in the 55
    blocks of B7, they would be chaotic: rounding errors would decide them.
    """
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(draw.integers(1, 1000))
    if name == "temperature":
        return np.array(0.07, np.float32)
    if name.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = draw.normal(float(name.endswith("weight")), 0.1, shape)
    elif "embeddings.weight" in name:
        values = draw.normal(0.0, 0.1, shape)
    else:
        factor = gain if len(shape) == 4 else 1.0
        values = draw.normal(0.0, factor * math.prod(shape[1:]) ** -0.5, shape)
    return values.astype(np.float32)


def pixels(size: int) -> np.ndarray:
    """Draws three pictures (3, size, size, 3) in [-1, 1]."""
    draw = np.random.default_rng(size)
    return draw.uniform(-1.0, 1.0, (3, size, size, 3)).astype(np.float32)
