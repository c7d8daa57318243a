"""Sums over the pixels of images, and elementwise maps; each reads its arrays once.

Each of these passes is a walk over wide arrays (B, H, W, C) and a small array, which
has n numbers for each channel of an image. XLA's programs are the default. On NVIDIA
GPUs, Pallas kernels compiled by Triton replace them if the argument `kernels` says so:
XLA's programs there are limited by instructions, not by memory, because XLA neither
fuses a multiplication with an addition nor uses a short sigmoid.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.devices.kernel_choice import INTERPRET, TRITON, Kernels
from align_jax.kernels.walk_programs import (
    PLAIN_ARITHMETIC,
    Walk,
    map_strip,
    sum_strip,
)
from align_jax.kernels.walk_tiles import WORKLOAD, Cut, Workload

# Elementwise functions of an `Arithmetic` and the arrays in float32, first wide ones,
# then n small ones. They return the one or two factors of each product, or one array.
Products = Sequence[tuple[jax.Array, ...]]
SumVisit = Callable[..., Products]
MapVisit = Callable[..., jax.Array]


def image_sums(
    visit: SumVisit,
    wide: Sequence[jax.Array],
    small: jax.Array | None,
    count: int,
    kernels: Kernels,
    images: int = 1,
) -> jax.Array:
    """Sums products over the pixels of images, by channel.

    Args:
      visit: elementwise function of an `Arithmetic` and the arrays in float32, first
        the wide ones, then the n small ones. It returns the one or two factors of each
        of `count` products.
      wide: (B, H, W, C) arrays.
      small: (B, n, C) float32, n numbers per channel of each image; None for none.
      count: number of sums.
      kernels: choice between Pallas kernels and XLA.
      images: number of adjacent images that are summed together, a divisor of B.

    Returns:
      (B / images, count, C) float32.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return add_images(plain_sums(visit, wide, small), images)
    interpret = kernels.kind == INTERPRET
    held = math.gcd(images, len(wide[0]) // kernels.devices)  # summed on one device

    def sums(arrays: tuple[list[jax.Array], jax.Array | None], _: None) -> jax.Array:
        wide, small = arrays
        return kernel_sums(visit, wide, small, count, images=held, interpret=interpret)

    return add_images(kernels.by_batch(sums, (list(wide), small)), images // held)


def add_images(sums: jax.Array, images: int) -> jax.Array:
    """Sums groups of adjacent images: (B, ...) to (B / images, ...)."""
    return sums.reshape(-1, images, *sums.shape[1:]).sum(1)


def image_map(
    visit: MapVisit,
    wide: Sequence[jax.Array],
    small: jax.Array,
    kernels: Kernels,
) -> jax.Array:
    """Applies an elementwise function to every pixel.

    Args:
      visit: elementwise function as in `image_sums`, which returns one array.
      wide: (B, H, W, C) arrays.
      small: (B, n, C) float32, n numbers per channel of each image.
      kernels: choice between Pallas kernels and XLA.

    Returns:
      (B, H, W, C) array of the first wide array's type.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return visit(PLAIN_ARITHMETIC, *_spread(wide, small)).astype(wide[0].dtype)
    interpret = kernels.kind == INTERPRET

    def mapped(arrays: tuple[list[jax.Array], jax.Array], _: None) -> jax.Array:
        wide, small = arrays
        return kernel_map(visit, wide, small, interpret=interpret)

    return kernels.by_batch(mapped, (list(wide), small))


def _spread(wide: Sequence[jax.Array], small: jax.Array | None) -> list[jax.Array]:
    """Returns all arrays in float32, in shapes that broadcast over pixels."""
    spread = () if small is None else jnp.unstack(small[:, :, None, None], axis=1)
    return [*(x.astype(jnp.float32) for x in wide), *spread]


def plain_sums(
    visit: SumVisit, wide: Sequence[jax.Array], small: jax.Array | None
) -> jax.Array:
    """Computes `image_sums` of each image separately by XLA, (B, count, C) float32."""
    products = map(math.prod, visit(PLAIN_ARITHMETIC, *_spread(wide, small)))
    shape = wide[0].shape
    return jnp.stack([jnp.broadcast_to(x, shape).sum((1, 2)) for x in products], 1)


def kernel_sums(
    visit: SumVisit,
    wide: Sequence[jax.Array],
    small: jax.Array | None,
    count: int,
    *,
    images: int = 1,
    workload: Workload = WORKLOAD,
    interpret: bool = False,
) -> jax.Array:
    """Computes `image_sums` by a kernel; each program sums a strip of one image.

    Args:
      visit: elementwise function as in `image_sums`.
      wide: (B, H, W, C) arrays.
      small: (B, n, C) float32, or None.
      count: number of sums.
      images: number of adjacent images that are summed together, a divisor of B.
      workload: amount of work per program.
      interpret: whether to compute as ordinary JAX: slow, but on any platform.

    Returns:
      (B / images, count, C) float32.
    """
    batch, *_, channels = wide[0].shape
    cut = Cut.of(wide[0].shape, workload)
    walk = Walk(visit, len(wide), cut, interpret)
    lanes = workload.lanes
    sums = pl.pallas_call(
        partial(sum_strip, walk=walk, count=count),
        out_shape=jax.ShapeDtypeStruct(
            (cut.slabs, count, batch, cut.strips, lanes), jnp.float32
        ),
        grid=(cut.slabs, batch, cut.strips),
        out_specs=pl.BlockSpec(
            (None, count, None, None, lanes), lambda c, b, s: (c, 0, b, s, 0)
        ),
        compiler_params=triton.CompilerParams(num_warps=workload.warps),
        interpret=interpret,
    )(*_flatten_images(wide, small))
    tile, parts = cut.tile, images * cut.strips
    sums = sums[..., : tile.pixels * tile.channels]
    # The summed axes are adjacent, so that XLA sums them in parallel.
    shape = (cut.slabs, count, batch // images, parts, tile.pixels, tile.channels)
    sums = sums.reshape(shape).sum((3, 4))
    sums = sums.transpose(2, 1, 0, 3).reshape(batch // images, count, -1)
    return sums[..., :channels]


def kernel_map(
    visit: MapVisit,
    wide: Sequence[jax.Array],
    small: jax.Array,
    *,
    workload: Workload = WORKLOAD,
    interpret: bool = False,
) -> jax.Array:
    """Computes `image_map` by a kernel.

    `workload` and `interpret` are those of `kernel_sums`, the others of `image_map`.
    """
    cut = Cut.of(wide[0].shape, workload)
    walk = Walk(visit, len(wide), cut, interpret)
    flat = _flatten_images(wide, small)
    out = pl.pallas_call(
        partial(map_strip, walk=walk),
        out_shape=jax.ShapeDtypeStruct(flat[0].shape, flat[0].dtype),
        grid=(cut.slabs, len(flat[0]), cut.strips),
        compiler_params=triton.CompilerParams(num_warps=workload.warps),
        interpret=interpret,
    )(*flat)
    return out.reshape(wide[0].shape)


def _flatten_images(
    wide: Sequence[jax.Array], small: jax.Array | None
) -> list[jax.Array]:
    """Returns a kernel's arrays: wide ones as (B, H * W * C), then the small one."""
    flat = [x.reshape(len(x), -1) for x in wide]
    return flat if small is None else [*flat, small]
