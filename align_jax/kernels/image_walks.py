"""Walks over wide arrays that read them once: sums of an image's places, and maps.

XLA's own programs are the reference and the default; on NVIDIA GPUs Pallas kernels,
through Triton, take their place. There XLA's are bound by their instructions, not by
memory: it neither joins a multiplication with an addition nor takes a short sigmoid.
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
# then n small ones: to the one or two factors of each product, and to one array.
SumVisit = Callable[..., Sequence[tuple[jax.Array, ...]]]
MapVisit = Callable[..., jax.Array]


def image_sums(
    visit: SumVisit,
    wide: Sequence[jax.Array],
    small: jax.Array | None,
    count: int,
    kernels: Kernels,
    images: int = 1,
) -> jax.Array:
    """Sums products that `visit` makes of every place, by channel and images.

    Args:
      visit: elementwise function of an `Arithmetic` and the arrays in float32, first
        wide ones, then n small ones, to the one or two factors of each of `count`
        products.
      wide: arrays (B, H, W, C).
      small: (B, n, C) n numbers of an image's channels, float32; None for none.
      count: number of sums.
      kernels: what computes them.
      images: adjacent ones that are summed together.

    Returns:
      (B / images, count, C) float32.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return add_images(plain_sums(visit, wide, small), images)
    interpret = kernels.kind == INTERPRET
    held = math.gcd(images, len(wide[0]) // kernels.devices)  # of them on a device

    def sums(arrays, _):
        wide, small = arrays
        return kernel_sums(visit, wide, small, count, images=held, interpret=interpret)

    return add_images(kernels.by_batch(sums, (list(wide), small)), images // held)


def add_images(sums: jax.Array, images: int) -> jax.Array:
    """Sums of adjacent images (B, ...), (B / images, ...)."""
    return sums.reshape(-1, images, *sums.shape[1:]).sum(1)


def image_map(
    visit: MapVisit,
    wide: Sequence[jax.Array],
    small: jax.Array,
    kernels: Kernels,
) -> jax.Array:
    """What `visit` makes of every place.

    Args:
      visit: elementwise function as that of `image_sums`, to one array.
      wide: arrays (B, H, W, C).
      small: (B, n, C) n numbers of an image's channels, float32.
      kernels: what computes it.

    Returns:
      An array (B, H, W, C) of the first wide one's type.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return visit(PLAIN_ARITHMETIC, *_spread(wide, small)).astype(wide[0].dtype)
    interpret = kernels.kind == INTERPRET

    def mapped(arrays, _):
        wide, small = arrays
        return kernel_map(visit, wide, small, interpret=interpret)

    return kernels.by_batch(mapped, (list(wide), small))


def _spread(wide: Sequence[jax.Array], small: jax.Array | None) -> list[jax.Array]:
    """All arrays in float32, as they are broadcast over places."""
    spread = () if small is None else jnp.unstack(small[:, :, None, None], axis=1)
    return [*(x.astype(jnp.float32) for x in wide), *spread]


def plain_sums(
    visit: SumVisit, wide: Sequence[jax.Array], small: jax.Array | None
) -> jax.Array:
    """`image_sums` of every image by XLA, (B, count, C)."""
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
    """`image_sums` by a kernel: a program sums a strip of one image's places.

    Args:
      visit: as there.
      wide: as there.
      small: as there.
      count: as there.
      images: as there.
      workload: how much is done at a time.
      interpret: compute as ordinary JAX, on any platform, slowly.

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
    sums = sums[..., : tile.places * tile.channels]
    # What is summed is adjacent: XLA then does it in parallel.
    shape = (cut.slabs, count, batch // images, parts, tile.places, tile.channels)
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
    """`image_map` by a kernel, see `kernel_sums`."""
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
    """The arrays of a kernel: wide ones as (B, H * W * C), then the small one."""
    flat = [x.reshape(len(x), -1) for x in wide]
    return flat if small is None else [*flat, small]
