"""Products of images' channels, as Pallas kernels for TPUs.

An inverted bottleneck takes its first normalisation's sums from them, and the gradients
of these sums, see `align_jax/models/bottleneck.py`. The programs' grid is (images,
strips of rows).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from align_jax.kernels.mosaic_blocks import (
    float32,
    images_of,
    lanes_of,
    options,
    turn,
    turn_back,
)
from align_jax.kernels.mosaic_programs import flatten, multiply, product

ROWS_BYTES = 2 * 2**20  # of a strip


def moments_program(
    x: jax.Ref, sums: jax.Ref, products: jax.Ref, *, height: int
) -> None:
    """Sums pixels of some images, and the products of their channels.

    Args:
      x: a strip (rows, W, images, C).
      sums: result, (1, 1, C) float32.
      products: result, (1, C, C) float32.
      height: rows of an image.
    """

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        sums[...] = jnp.zeros(sums.shape, sums.dtype)
        products[...] = jnp.zeros(products.shape, products.dtype)

    def add(row: jax.Array) -> None:
        flat = flatten(x[row])
        products[0] += multiply(flat, flat, (0, 0))
        sums[0] += flat.astype(jnp.float32).sum(0, keepdims=True)

    _rows(x, height, add)


def finish_program(
    x: jax.Ref,
    part: jax.Ref,
    matrix: jax.Ref,
    shift: jax.Ref,
    out: jax.Ref,
    *,
    height: int,
) -> None:
    """Adds to `part` the product of x with a matrix, and a shift.

    Args:
      x: a strip (rows, W, images, C).
      part: strip (rows, W, images, C).
      matrix: (1, C, C) weights.
      shift: (1, 1, C) float32.
      out: result, like x.
      height: rows of an image.
    """

    def add(row: jax.Array) -> None:
        more = product(x[row], matrix[0]) + shift[...]
        out[row] = (part[row].astype(jnp.float32) + more).astype(out.dtype)

    _rows(x, height, add)


def _rows(x: jax.Ref, height: int, body: Callable[[jax.Array], None]) -> None:
    """Calls body(row) for each row of a strip that is in the image."""
    first = pl.program_id(1) * x.shape[0]

    @pl.loop(0, x.shape[0])
    def _(row: jax.Array) -> None:
        @pl.when(first + row < height)
        def _() -> None:
            body(row)


def _strip(x: jax.Array, images: int) -> tuple[int, pl.BlockSpec]:
    """Returns the number of strips of rows of x (H, W, B, C), and a strip."""
    height, width, _, channels = x.shape
    row = width * images * lanes_of(channels) * x.dtype.itemsize
    rows = min(max(ROWS_BYTES // row, 1), height)
    shape = (rows, width, images, channels)
    return pl.cdiv(height, rows), pl.BlockSpec(shape, lambda b, t: (t, 0, b, 0))


@partial(jax.jit, static_argnames=("group", "interpret"))
def moments(
    x: jax.Array, group: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Sums pixels over groups of images, and the products of their channels.

    Args:
      x: (B, H, W, C) images.
      group: number of adjacent images that are summed together; it divides B.
      interpret: whether to compute as ordinary JAX.

    Returns:
      (G, C) and (G, C, C), in float32.
    """
    batch, height, _, channels = x.shape
    images = images_of(group)
    turned = turn(x)
    strips, spec = _strip(turned, images)
    parts = batch // images
    out = (1, channels), (channels, channels)
    sums, products = pl.pallas_call(
        partial(moments_program, height=height),
        grid=(parts, strips),
        in_specs=[spec],
        out_specs=[pl.BlockSpec((1, *n), lambda b, t: (b, 0, 0)) for n in out],
        out_shape=[float32((parts, *n)) for n in out],
        compiler_params=options(2),
        interpret=interpret,
    )(turned)
    groups = batch // group
    return (
        sums.reshape(groups, -1, channels).sum(1),
        products.reshape(groups, -1, channels, channels).sum(1),
    )


@partial(jax.jit, static_argnames="interpret")
def finish(
    x: jax.Array,
    part: jax.Array,
    matrix: jax.Array,
    shift: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Adds to `part` the product of each group's x and matrix, and its shift.

    Args:
      x: (B, H, W, C) images.
      part: (B, H, W, C) array.
      matrix: (G, C, C) float32, of each of G equal parts of the batch.
      shift: (G, C) float32.
      interpret: whether to compute as ordinary JAX.

    Returns:
      An array like x.
    """
    batch, height, _, channels = x.shape
    group = batch // len(matrix)
    images = images_of(group)
    turned = turn(x)
    strips, spec = _strip(turned, images)
    parts = group // images
    out = pl.pallas_call(
        partial(finish_program, height=height),
        grid=(batch // images, strips),
        in_specs=[spec, spec]
        + [
            pl.BlockSpec(
                (1, n, channels), lambda b, t: (lax.div(b, jnp.int32(parts)), 0, 0)
            )
            for n in (channels, 1)
        ],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(turned.shape, x.dtype),
        compiler_params=options(2),
        interpret=interpret,
    )(turned, turn(part), matrix.astype(x.dtype), shift[:, None])
    return turn_back(out)
