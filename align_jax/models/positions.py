"""Positions of patches in a picture: learned, sines and cosines, or rotary.

A position grid has G x G patches. Patches of a grid of another size, h x w, lie between
its patches: their coordinates are those of their centres, scaled by G / h and G / w. So
a tower reads pictures of any size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SINCOS_BASE = 10_000.0
ROTARY_BASE = 100.0


class Rotation(NamedTuple):
    """Rotary positions of L tokens (RoFormer, arXiv 2104.09864, section 3.2.2).

    A head has D channels. Each pair of channels, i and i + D / 2, is rotated by an
    angle.

    Attributes:
      cosines: (1 or B, L, 1, D / 2) cosines of the angles, float32.
      sines: sines of the angles, of the same shape.
    """

    cosines: jax.Array
    sines: jax.Array

    def rotate(self, x: jax.Array) -> jax.Array:
        """Rotates queries or keys (B, L, heads, D)."""
        wide, half = x.astype(jnp.float32), x.shape[-1] // 2
        first = lax.slice_in_dim(wide, 0, half, axis=-1)
        second = lax.slice_in_dim(wide, half, None, axis=-1)
        rotated = (
            first * self.cosines - second * self.sines,
            first * self.sines + second * self.cosines,
        )
        return jnp.concatenate(rotated, axis=-1).astype(x.dtype)

    def select(self, indices: jax.Array) -> "Rotation":
        """Returns the rotations of some tokens of each example, from one for all.

        Args:
          indices: (B, K) indices of tokens, below L.
        """
        return Rotation(self.cosines[0, indices], self.sines[0, indices])


def resize_grid(grid: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes learned positions to a grid of `height` x `width` patches.

    It uses Keys' cubic convolution with antialiasing (PyTorch's "bicubic" with
    `antialias`), as OpenCLIP does to learned positions. The same size is returned
    unchanged.

    Args:
      grid: (G, G, W) positions.
      height: number of rows of patches.
      width: number of columns of patches.

    Returns:
      (height, width, W).
    """
    if grid.shape[:2] == (height, width):
        return grid
    return jax.image.resize(grid, (height, width, grid.shape[2]), "cubic")


def sincos_positions(height: int, width: int, grid: int, channels: int) -> np.ndarray:
    """Returns the sines and cosines of the coordinates of patches.

    The channels are sin(x f), cos(x f), sin(y f) and cos(y f), a quarter each, with
    f = 10000^(-i / (n - 1)) for i = 0 .. n - 1 (MoCo v3, arXiv 2104.02057, in the form
    of big_vision).

    Args:
      height: number of rows of patches.
      width: number of columns of patches.
      grid: side G of the position grid.
      channels: number of channels W = 4 n, at least 8.

    Returns:
      (height * width, W) float32.
    """
    count = channels // 4
    frequencies = SINCOS_BASE ** (-np.arange(count) / (count - 1))
    y, x = _coordinates(height, width, grid)
    x_angles, y_angles = x[:, None] * frequencies, y[:, None] * frequencies
    waves = [np.sin(x_angles), np.cos(x_angles), np.sin(y_angles), np.cos(y_angles)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def rotary_positions(
    height: int, width: int, grid: int, channels: int, before: int
) -> Rotation:
    """Returns the rotations of patches by their coordinates, and of tokens before them.

    The first half of a head's angles are x f and the second half y f, with
    f = 100^(-i / n) for i = 0 .. n - 1 (axial RoPE, arXiv 2403.13298, section 3).

    Args:
      height: number of rows of patches.
      width: number of columns of patches.
      grid: side G of the position grid.
      channels: number of channels D = 4 n of a head.
      before: number of tokens before the patches, which are not rotated.

    Returns:
      Rotations of 1 example and before + height * width tokens.
    """
    count = channels // 4
    frequencies = ROTARY_BASE ** (-np.arange(count) / count)
    y, x = _coordinates(height, width, grid)
    angles = np.concatenate([x[:, None] * frequencies, y[:, None] * frequencies], 1)
    angles = np.concatenate([np.zeros((before, 2 * count)), angles])[None, :, None]
    cosines, sines = np.cos(angles), np.sin(angles)  # (1, L, 1, D / 2)
    return Rotation(jnp.float32(cosines), jnp.float32(sines))


def _coordinates(height: int, width: int, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns y and x (height * width,) of the patches' centres, from 0 to `grid` - 1.

    They are whole numbers if height and width are `grid`.
    """
    rows = (np.arange(height) + 0.5) * grid / height - 0.5
    columns = (np.arange(width) + 0.5) * grid / width - 0.5
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return y.ravel(), x.ravel()
