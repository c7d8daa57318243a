"""Changes the colours of 8-bit pictures, in float32 and without the interpreter lock.

numpy holds the lock between its operations. For pictures of a few thousand pixels,
threads then wait for each other most of the time.
"""

import numpy as np

from align_jax.input.resample import compiled


def lay_over(pixels: np.ndarray, background: tuple[float, ...]) -> np.ndarray:
    """Lays pixels over a background and returns uint8 (H, W, 3).

    Args:
      pixels: uint8 (H, W, 3) or (H, W, 4) with alpha.
      background: colour (3,) in [0, 255].
    """
    if pixels.shape[2] == 3:
        return pixels
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    flat = np.ascontiguousarray(pixels).reshape(-1, 4)
    _lay_over(flat, np.asarray(background, np.float32), out.reshape(-1, 3))
    return out


def scale_colours(
    image: np.ndarray, saturation: float, contrast: float, brightness: float
) -> None:
    """Multiplies saturation, then contrast, then brightness, in place.

    Args:
      image: uint8 (H, W, 3), contiguous.
      saturation: factor of each pixel's difference from its grey.
      contrast: factor of the difference from the mean level of the picture.
      brightness: factor of all levels.
    """
    flat = image.reshape(-1, 3)
    coloured = np.empty(flat.shape, np.float32)
    _saturate(flat, np.float32(saturation), coloured)
    factors = np.array([coloured.mean(), contrast, brightness], np.float32)
    _spread(coloured, factors, flat)


@compiled
def _lay_over(pixels: np.ndarray, background: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(pixels)):
        alpha = np.float32(pixels[i, 3]) / np.float32(255.0)
        for c in range(3):
            colour = background[c]
            out[i, c] = np.rint(colour + alpha * (np.float32(pixels[i, c]) - colour))


@compiled
def _saturate(image: np.ndarray, factor: np.float32, out: np.ndarray) -> None:
    for i in range(len(image)):
        total = np.float32(image[i, 0])
        total += np.float32(image[i, 1])
        total += np.float32(image[i, 2])
        grey = total / np.float32(3.0)
        for c in range(3):
            out[i, c] = grey + factor * (np.float32(image[i, c]) - grey)


@compiled
def _spread(coloured: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
    mean, contrast, brightness = factors[0], factors[1], factors[2]
    for i in range(len(coloured)):
        for c in range(3):
            level = brightness * (mean + contrast * (coloured[i, c] - mean))
            low = max(level, np.float32(0.0))
            out[i, c] = np.rint(min(low, np.float32(255.0)))
