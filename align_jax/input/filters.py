"""Weights with which Pillow's bilinear and bicubic filters sum pixels (Resample.c)."""

import math

import numba
import numpy as np

BITS = 22  # bits of a weight: 32 minus 8 of the pixel minus 2 of headroom
TAPS = 3  # weights that every output pixel has; those it does not need are 0
SHARPNESS = -0.5  # Pillow's `a` in Keys' cubic convolution (1981), equation 15

PixelWeights = tuple[np.ndarray, np.ndarray, np.ndarray]  # see `weigh`

# Runs without the interpreter lock. Cached on disk, because compiling takes seconds.
compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


@compiled
def _cubic(distance: float) -> float:
    """Returns the cubic filter at a distance of 0 or more, in Pillow's order."""
    x = distance
    if x < 1.0:
        return ((SHARPNESS + 2.0) * x - (SHARPNESS + 3.0)) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * SHARPNESS
    return 0.0


@compiled
def weigh(
    size: int,
    begin: float,
    extent: float,
    out_size: int,
    first: int,
    count: int,
    antialias: bool,
    cubic: bool,
    backwards: bool,
) -> PixelWeights:
    """Computes the weights of one direction.

    Args:
      size: number of input pixels.
      begin: position where the part that is resized begins, in input pixels.
      extent: length of this part, in input pixels.
      out_size: number of pixels that the part is resized to.
      first: index of the first output pixel wanted.
      count: number of output pixels wanted.
      antialias: whether to widen the filter by the reduction.
      cubic: whether the filter is a cubic, whose weights may be negative, instead of a
        triangle.
      backwards: whether the last output pixel comes first.

    Returns:
      For each output pixel the index of its first input pixel (count,), the number of
      its input pixels (count,) and their weights (count, most) in units of 2**-BITS,
      with `TAPS` or more columns, of which the unused ones are 0.
    """
    scale = extent / out_size
    stretch = max(scale, 1.0) if antialias else 1.0
    support = 2.0 * stretch if cubic else stretch
    starts = np.empty(count, np.int64)
    numbers = np.empty(count, np.int64)
    row = np.empty(math.ceil(support) * 2 + 1)
    weights = np.zeros((count, max(len(row), TAPS)), np.int32)
    for i in range(count):
        centre = begin + (first + i + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        number = min(int(centre + support + 0.5), size) - start
        place = count - 1 - i if backwards else i
        total = 0.0
        for k in range(number):
            # As in Pillow: a product with 1 / stretch, and this order of the sum.
            distance = abs((k + start - centre + 0.5) * (1.0 / stretch))
            row[k] = _cubic(distance) if cubic else max(1.0 - distance, 0.0)
            total += row[k]
        for k in range(number):
            weight = row[k] / total * (1 << BITS)
            weights[place, k] = int(weight + (0.5 if weight >= 0 else -0.5))
        starts[place], numbers[place] = start, number
    return starts, numbers, weights
