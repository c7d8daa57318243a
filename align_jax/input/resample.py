"""Resizes 8-bit pictures bilinearly, bit for bit as Pillow, several times faster.

Pillow computes an antialiased bilinear resize in integers: every output pixel is a sum
of input pixels times weights of 22 bits, rounded to 8 bits after the horizontal pass
and again after the vertical one (Pillow's Resample.c). The same sums are computed here
on all vector lanes of the processor, compiled by numba, and only for the window that is
kept. The interpreter lock is not held meanwhile, so several threads run at full speed;
the result does not depend on their number.
"""

import math

import numba
import numpy as np

from align_jax.input.scratch import Scratch

BITS = 22  # bits of a weight: 32 minus 8 of the pixel minus 2 of headroom
HALF = 1 << (BITS - 1)
LANES = 64  # rows computed side by side; few enough that their tile stays in the cache
TAPS = 3  # weights that every output pixel has; those it does not need are 0

PixelWeights = tuple[np.ndarray, np.ndarray, np.ndarray]  # see `_weigh`

# Runs without the interpreter lock. Cached on disk, because compiling takes seconds.
compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


def resample(
    pixels: np.ndarray,
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
    part: tuple[float, float, float, float] | None = None,
    antialias: bool = True,
    mirror: bool = False,
    out: np.ndarray | None = None,
    scratch: Scratch | None = None,
) -> np.ndarray:
    """Resizes a picture and returns a window of the result.

    Args:
      pixels: uint8 (H, W, 3).
      size: height and width that `part` is resized to, in pixels.
      window: top, left, height and width of the returned window in the resized picture;
        None for all of it.
      part: top, left, height and width of the part of `pixels` to resize, fractions
        allowed (Pillow's `box`); None for all of it.
      antialias: whether to filter with a triangle as wide as the reduction, as Pillow's
        BILINEAR does. False interpolates between the two nearest pixels, as
        tf.image.resize does.
      mirror: whether to exchange left and right of the returned window.
      out: array for the result; None for a new one.
      scratch: memory for the pixels between the passes; None for new memory.

    Returns:
      uint8 (window height, window width, 3).
    """
    window = window or (0, 0, *size)
    rows, columns, _ = pixels.shape
    part = part or (0.0, 0.0, rows, columns)
    top, left, height, width = window
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    groups = (width + 3) // 4  # four pixels are three int32 words
    between = (scratch or Scratch()).take("between", rows * groups * 12)
    flat = np.ascontiguousarray(pixels).reshape(rows, -1)
    _resample(
        flat,
        # The last row has no byte behind its last pixel.
        np.ndarray((rows - 1, columns), np.uint32, flat, strides=(3 * columns, 3)),
        _weigh(
            size=rows,
            begin=float(part[0]),
            extent=float(part[2]),
            out_size=size[0],
            first=top,
            count=height,
            antialias=antialias,
            backwards=False,
        ),
        _weigh(
            size=columns,
            begin=float(part[1]),
            extent=float(part[3]),
            out_size=size[1],
            first=left,
            count=width,
            antialias=antialias,
            backwards=mirror,
        ),
        between.view(np.int32).reshape(rows, -1),
        out.reshape(height, -1),
    )
    return out


@compiled
def _weigh(
    size: int,
    begin: float,
    extent: float,
    out_size: int,
    first: int,
    count: int,
    antialias: bool,
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
      antialias: whether to widen the triangle by the reduction.
      backwards: whether the last output pixel comes first.

    Returns:
      For each output pixel the index of its first input pixel (count,), the number of
      its input pixels (count,) and their weights (count, most) in units of 2**-BITS,
      with `TAPS` or more columns, of which the unused ones are 0.
    """
    scale = extent / out_size
    support = max(scale, 1.0) if antialias else 1.0
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
            # As in Pillow: a product with 1 / support, and this order of the sum.
            distance = abs((k + start - centre + 0.5) * (1.0 / support))
            row[k] = max(1.0 - distance, 0.0)
            total += row[k]
        for k in range(number):
            weights[place, k] = int(0.5 + row[k] / total * (1 << BITS))
        starts[place], numbers[place] = start, number
    return starts, numbers, weights


@compiled
def _resample(
    pixels: np.ndarray,
    words: np.ndarray,
    rows: PixelWeights,
    columns: PixelWeights,
    between: np.ndarray,
    out: np.ndarray,
) -> None:
    """Runs the horizontal and the vertical pass.

    Args:
      pixels: (H, W * 3) uint8.
      words: (H - 1, W) uint32, each pixel of these rows and the byte behind it.
      rows: weights of the vertical pass, see `_weigh`.
      columns: weights of the horizontal pass, see `_weigh`.
      between: (H, words) int32 memory for the pixels between the passes, overwritten.
      out: (rows, columns * 3) uint8 array for the result.
    """
    row_starts, row_numbers, _ = rows
    starts, numbers, _ = columns
    top = row_starts[0]
    bottom = row_starts[-1] + row_numbers[-1]
    left = min(starts[0], starts[-1])
    right = max(starts[0] + numbers[0], starts[-1] + numbers[-1])
    tile = np.empty((right - left + TAPS, LANES), np.int32)
    narrow = np.empty((4 * (between.shape[1] // 3), LANES), np.int32)
    for first in range(top, bottom, LANES):
        number = min(LANES, bottom - first)
        _gather(words[first : first + number], left, tile[: right - left])
        if first + number > len(words):
            _gather_row(pixels[-1], left, tile[: right - left, number - 1])
        _reduce_width(tile, left, columns, narrow)
        _scatter(narrow, between[first : first + number])
    _reduce_height(between.view(np.uint8), rows, out)


@compiled
def _gather(words: np.ndarray, left: int, tile: np.ndarray) -> None:
    """Copies rows of pixels (rows, W) to the lanes of tile (columns, LANES).

    The tile begins at pixel `left`; the lower 24 bits hold the colours of a pixel.
    """
    for x in range(len(tile)):
        for lane in range(len(words)):
            tile[x, lane] = words[lane, left + x]


@compiled
def _gather_row(row: np.ndarray, left: int, lane: np.ndarray) -> None:
    """Copies a row (W * 3,) to one lane (columns,) of a tile; see `_gather`."""
    for x in range(len(lane)):
        i = 3 * (left + x)
        lane[x] = np.int32(row[i]) | (row[i + 1] << 8) | (row[i + 2] << 16)


# numba widens integers to 64 bits. The casts narrow them again, so that a vector
# register holds twice as many.
@compiled
def _term(pixels: np.int32, shift: int, weight: np.int32) -> np.int32:
    """Returns the product of a weight and 8 bits of pixels, as int32."""
    return np.int32(((pixels >> shift) & 255) * weight)


@compiled
def _sum(one: np.int32, two: np.int32, three: np.int32) -> np.int32:
    """Returns the rounded sum of three terms, as int32."""
    return np.int32(np.int32(one + HALF) + np.int32(two + three))


@compiled
def _reduce_width(
    tile: np.ndarray, left: int, columns: PixelWeights, narrow: np.ndarray
) -> None:
    """Sums weighted columns of tile (columns, LANES) to narrow (new columns, LANES).

    The tile is packed as by `_gather` and begins at pixel `left`. In narrow, the upper
    8 bits of a pixel are 0.
    """
    starts, numbers, weights = columns
    red, green, blue = (
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
    )
    for x in range(len(starts)):
        start = starts[x] - left
        one, two, three = tile[start], tile[start + 1], tile[start + 2]
        w, v, u = weights[x, 0], weights[x, 1], weights[x, 2]
        for lane in range(LANES):
            a, b, c = one[lane], two[lane], three[lane]
            red[lane] = _sum(_term(a, 0, w), _term(b, 0, v), _term(c, 0, u))
            green[lane] = _sum(_term(a, 8, w), _term(b, 8, v), _term(c, 8, u))
            blue[lane] = _sum(_term(a, 16, w), _term(b, 16, v), _term(c, 16, u))
        for k in range(TAPS, numbers[x]):
            weight, column = weights[x, k], tile[start + k]
            for lane in range(LANES):
                pixel = column[lane]
                red[lane] += _term(pixel, 0, weight)
                green[lane] += _term(pixel, 8, weight)
                blue[lane] += _term(pixel, 16, weight)
        out = narrow[x]
        for lane in range(LANES):
            out[lane] = (
                (red[lane] >> BITS)
                | ((green[lane] >> BITS) << 8)
                | ((blue[lane] >> BITS) << 16)
            )


@compiled
def _scatter(narrow: np.ndarray, rows: np.ndarray) -> None:
    """Copies the lanes of narrow (columns, LANES) to rows of bytes (rows, bytes / 4).

    Four packed pixels become three int32 words.
    """
    for group in range(rows.shape[1] // 3):
        for lane in range(len(rows)):
            one, two = narrow[4 * group, lane], narrow[4 * group + 1, lane]
            three, four = narrow[4 * group + 2, lane], narrow[4 * group + 3, lane]
            rows[lane, 3 * group] = one | (two << 24)
            rows[lane, 3 * group + 1] = (two >> 8) | (three << 16)
            rows[lane, 3 * group + 2] = (three >> 16) | (four << 8)


@compiled
def _reduce_height(between: np.ndarray, rows: PixelWeights, out: np.ndarray) -> None:
    """Sums weighted rows of between (rows, bytes) to out (new rows, bytes)."""
    starts, numbers, weights = rows
    length = out.shape[1]
    total = np.empty(length, np.int32)
    last = len(between) - 1
    for y in range(len(starts)):
        start = starts[y]
        one, two = between[start], between[min(start + 1, last)]
        w, v = weights[y, 0], weights[y, 1]
        for i in range(length):
            total[i] = _sum(_term(one[i], 0, w), _term(two[i], 0, v), np.int32(0))
        for k in range(2, numbers[y]):
            weight, row = weights[y, k], between[start + k]
            for i in range(length):
                total[i] += _term(row[i], 0, weight)
        line = out[y]
        for i in range(length):
            line[i] = total[i] >> BITS
