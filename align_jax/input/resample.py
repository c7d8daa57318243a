"""Resizes 8-bit pictures bilinearly or bicubically, bit for bit as Pillow, but faster.

Pillow computes an antialiased resize in integers: every output pixel is a sum of input
pixels times weights of 22 bits, rounded to 8 bits after the horizontal pass and again
after the vertical one (Pillow's Resample.c). The same sums are computed here
on all vector lanes of the processor, compiled by numba, and only for the window that is
kept. The interpreter lock is not held meanwhile, so several threads run at full speed;
the result does not depend on their number.
"""

import numpy as np

from align_jax.input.filters import BITS, TAPS, PixelWeights, compiled, weigh
from align_jax.input.transpose import SIDE, transpose_pixels, transpose_words

HALF = 1 << (BITS - 1)
LANES = 64  # rows computed side by side; few enough that their tile stays in the cache
MOST = (256 << BITS) - 1  # largest sum of 8 bits


def resample(
    pixels: np.ndarray,
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
    part: tuple[float, float, float, float] | None = None,
    filtering: str = "pil",
    mirror: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes a picture and returns a window of the result.

    Args:
      pixels: uint8 (H, W, 3).
      size: height and width that `part` is resized to, in pixels.
      window: top, left, height and width of the returned window in the resized picture;
        None for all of it.
      part: top, left, height and width of the part of `pixels` to resize, fractions
        allowed (Pillow's `box`); None for all of it.
      filtering: "pil" filters with a triangle as wide as the reduction, as Pillow's
        BILINEAR does, "bicubic" with a cubic of that width, as its BICUBIC does. "tf"
        interpolates between the two nearest pixels, as tf.image.resize does.
      mirror: whether to exchange left and right of the returned window.
      out: array for the result; None for a new one.

    Returns:
      uint8 (window height, window width, 3).
    """
    rows, columns, _ = pixels.shape
    window = window or (0, 0, *size)
    part = part or (0.0, 0.0, rows, columns)
    _, _, height, width = window
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    if min(rows, columns) < SIDE:
        more = [(0, max(SIDE - side, 0)) for side in (rows, columns)]
        pixels = np.pad(pixels, [*more, (0, 0)])
    pixels = np.ascontiguousarray(pixels)
    _resample(
        pixels=pixels.reshape(len(pixels), -1),
        shape=(rows, columns),
        size=tuple(map(int, size)),  # one type, so that it is compiled once
        window=tuple(map(int, window)),
        part=tuple(map(float, part)),
        antialias=filtering != "tf",
        cubic=filtering == "bicubic",
        mirror=mirror,
        out=out.reshape(height, -1),
    )
    return out


@compiled
def _resample(
    pixels: np.ndarray,
    shape: tuple[int, ...],
    size: tuple[int, ...],
    window: tuple[int, ...],
    part: tuple[float, ...],
    antialias: bool,
    cubic: bool,
    mirror: bool,
    out: np.ndarray,
) -> None:
    """Runs the horizontal and the vertical pass of `resample`.

    Args:
      pixels: (H, W * 3) uint8; H and W are `SIDE` or more.
      shape: height and width of the picture, which may be smaller than H and W.
      size: argument of `resample`, integers.
      window: argument of `resample`, integers.
      part: argument of `resample`, floats.
      antialias: argument of `weigh`.
      cubic: argument of `weigh`.
      mirror: argument of `resample`.
      out: (rows, columns * 3) uint8 array for the result.
    """
    rows = weigh(
        size=shape[0],
        begin=part[0],
        extent=part[2],
        out_size=size[0],
        first=window[0],
        count=window[2],
        antialias=antialias,
        cubic=cubic,
        backwards=False,
    )
    columns = weigh(
        size=shape[1],
        begin=part[1],
        extent=part[3],
        out_size=size[1],
        first=window[1],
        count=window[3],
        antialias=antialias,
        cubic=cubic,
        backwards=mirror,
    )
    row_starts, row_numbers, row_weights = rows
    starts, numbers, _ = columns
    top = min(row_starts[0], len(pixels) - SIDE)
    bottom = max(row_starts[-1] + row_numbers[-1], top + SIDE)
    left = min(starts[0], starts[-1], pixels.shape[1] // 3 - SIDE)
    right = max(starts[0] + numbers[0], starts[-1] + numbers[-1], left + SIDE)
    tile = np.empty((right - left + TAPS, LANES), np.int32)
    narrow = np.empty((-(-len(starts) // SIDE) * SIDE, LANES), np.int32)
    # Rows between the passes, from row `held` on: few, so that they stay in the cache.
    held_rows = LANES + max(row_weights.shape[1], SIDE)
    between = np.empty((held_rows, 3 * len(narrow)), np.uint8)
    held, done = top, 0
    for first in range(top, bottom, LANES):
        last = min(first + LANES, bottom)
        first = min(first, last - SIDE)
        _gather(pixels[first:last], left, tile[: right - left])
        _reduce_width(tile, left, columns, cubic, narrow)
        _scatter(narrow, between[first - held : last - held])
        end = done  # rows of the result before `end` have all their rows in `between`
        while end < len(out) and row_starts[end] + row_numbers[end] <= last:
            end += 1
        _reduce_height(between, held, rows, cubic, out, done, end)
        if end < len(out):  # move the rows that the next ones need to the front
            keep = min(row_starts[end], last, bottom - SIDE)
            for row in range(keep, last):
                between[row - keep] = between[row - held]
            held, done = keep, end


@compiled
def _gather(pixels: np.ndarray, left: int, tile: np.ndarray) -> None:
    """Copies rows of pixels (rows, W * 3) to the lanes of tile (columns, LANES).

    The tile begins at pixel `left`. There are `SIDE` or more rows and columns. The
    lower 24 bits of a word hold the colours of a pixel.
    """
    source, target = pixels.ctypes.data + 3 * left, tile.ctypes.data
    line, lanes = pixels.strides[0], tile.strides[0]
    for number in range(0, len(pixels), SIDE):
        row = min(number, len(pixels) - SIDE)  # the last square may overlap
        for place in range(0, len(tile), SIDE):
            x = min(place, len(tile) - SIDE)
            begin, end = source + row * line + 3 * x, target + x * lanes + 4 * row
            transpose_pixels(begin, line, end, lanes)


@compiled
def _scatter(narrow: np.ndarray, rows: np.ndarray) -> None:
    """Copies the lanes of narrow (columns, LANES) to rows of bytes (rows, columns * 3).

    The number of columns is a multiple of `SIDE`, and there are `SIDE` rows or more.
    """
    source, target = narrow.ctypes.data, rows.ctypes.data
    lanes, line = narrow.strides[0], rows.strides[0]
    for number in range(0, len(rows), SIDE):
        row = min(number, len(rows) - SIDE)
        for x in range(0, len(narrow), SIDE):
            begin, end = source + x * lanes + 4 * row, target + row * line + 3 * x
            transpose_words(begin, lanes, end, line)


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
def _clip(sums: np.ndarray) -> None:
    """Clips sums, int32, in place to the range of 8 bits."""
    for i in range(len(sums)):
        sums[i] = min(max(sums[i], np.int32(0)), np.int32(MOST))


@compiled
def _reduce_width(
    tile: np.ndarray,
    left: int,
    columns: PixelWeights,
    clips: bool,
    narrow: np.ndarray,
) -> None:
    """Sums weighted columns of tile (columns, LANES) to narrow (new columns, LANES).

    The tile is packed as by `_gather` and begins at pixel `left`. In narrow, the upper
    8 bits of a pixel are 0. `clips` says that sums may leave the range of 8 bits.
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
        if clips:
            _clip(red)
            _clip(green)
            _clip(blue)
        out = narrow[x]
        for lane in range(LANES):
            out[lane] = (
                (red[lane] >> BITS)
                | ((green[lane] >> BITS) << 8)
                | ((blue[lane] >> BITS) << 16)
            )


@compiled
def _reduce_height(
    between: np.ndarray,
    held: int,
    rows: PixelWeights,
    clips: bool,
    out: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """Sums weighted rows of between (rows, bytes) to some rows of the result.

    Args:
      between: (rows, bytes) uint8.
      held: number of the first row in `between`.
      rows: weights of the vertical pass, see `weigh`.
      clips: whether sums may leave the range of 8 bits.
      out: (new rows, bytes) uint8 array for the result.
      begin: first row of the result to compute.
      end: row of the result after the last one to compute.
    """
    starts, numbers, weights = rows
    length = out.shape[1]
    total = np.empty(length, np.int32)
    last = len(between) - 1
    for y in range(begin, end):
        start = starts[y] - held
        one, two = between[start], between[min(start + 1, last)]
        w, v = weights[y, 0], weights[y, 1]
        for i in range(length):
            total[i] = _sum(_term(one[i], 0, w), _term(two[i], 0, v), np.int32(0))
        for k in range(2, numbers[y]):
            weight, row = weights[y, k], between[start + k]
            for i in range(length):
                total[i] += _term(row[i], 0, weight)
        if clips:
            _clip(total)
        line = out[y]
        for i in range(length):
            line[i] = total[i] >> BITS
