"""An inverted bottleneck's expansion and depthwise convolution, as kernels for TPUs.

The expanded array is several times as large as the block's input and output, and is
moved most often. These kernels compute it from the block's input wherever it is needed,
so that it is never in the device's memory. They are Pallas kernels, compiled by Mosaic,
and have XLA's layout for images on TPUs, (H, W, B, C) in tiles of images by channels,
in which a tap is another tile.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from align_jax.kernels.convolution import Padding
from align_jax.kernels.mosaic_axes import forward_axis, gradient_axis
from align_jax.kernels.mosaic_blocks import (
    cut_rows,
    join_channels,
    join_small,
    lanes_of,
    split_channels,
    split_small,
    split_weights,
    turn,
    turn_back,
    whole,
)
from align_jax.kernels.mosaic_programs import (
    Program,
    Revisit,
    Visit,
    convolve_program,
    finish_program,
    gradient_program,
    moments_program,
)

IMAGES = 16  # of a program: a tile of bfloat16 has 16 rows
VECTOR_BYTES = 100 * 2**20  # limit of a program, of the 128 MiB of v5e and v6e
KERNEL_BYTES = 64 * 2**20  # of them, for dense kernels and their gradients
# Pixels of a device's input for each channel from which on a block moves less than with
# XLA. With fewer, XLA keeps the expanded array in vector memory, and the dense kernels
# and their gradients are a large part of what moves (docs/performance.md).
PIXELS = 50
ROWS_BYTES = 2 * 2**20  # of a strip of `moments` and `finish`

_float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def images_of(group: int) -> int:
    """Returns the images of a program, which are of one group of `group` images."""
    return math.gcd(group, IMAGES)


def fits(width: int, channels: int, dtype: jnp.dtype) -> bool:
    """Returns whether the dense kernels of a block fit into vector memory.

    Args:
      width: sum of the channels of the block's input and output.
      channels: channels of the depthwise convolution.
      dtype: number type of the computation.
    """
    # Kernels and their gradients, in two buffers each.
    numbers = width * lanes_of(channels)
    return 2 * numbers * (jnp.dtype(dtype).itemsize + 4) <= KERNEL_BYTES


def pays(x: jax.Array, devices: int) -> bool:
    """Returns whether a block with input x (B, H, W, C) moves less than with XLA."""
    *pixels, channels = x.shape
    return math.prod(pixels) >= PIXELS * channels * devices


def _options(axes: int) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary",) * axes, vmem_limit_bytes=VECTOR_BYTES
    )


@partial(jax.jit, static_argnames=("visit", "stride", "padding", "group", "interpret"))
def convolve(
    visit: Visit,
    x: jax.Array,
    small: jax.Array,
    kernel: jax.Array,
    weights: jax.Array,
    *,
    stride: int,
    padding: Padding,
    group: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Expands images, transforms and convolves them, and sums the result's pixels.

    Args:
      visit: elementwise function of an `Arithmetic`, an expanded pixel and n small
        numbers; it returns the pixel that is convolved.
      x: (B, H, W, Cin) images.
      small: (B, n, C) float32, n numbers per channel of each image.
      kernel: (Cin, C) weights that expand.
      weights: (k, k, 1, C) weights of the depthwise convolution.
      stride: input pixels per output pixel, in both directions.
      padding: ((top, bottom), (left, right)) numbers of zeros.
      group: number of images that share statistics; it divides B.
      interpret: whether to compute as ordinary JAX: slow, but on any platform.

    Returns:
      (B, H', W', C) of x's type, and the sums of its pixels and of their squares,
      (B, 2, C) float32.
    """
    batch, height, width, channels_in = x.shape
    channels, images, each = kernel.shape[1], images_of(group), x.dtype.itemsize
    rows, columns = (
        forward_axis(len(weights), stride, n, p)
        for n, p in zip((height, width), padding, strict=True)
    )
    kernel, weights = split_channels(kernel), split_weights(weights, images)
    small = split_small(small)
    blocks, _, lanes = kernel.shape
    # Strips that are read or written have two buffers.
    cut = cut_rows(
        rows,
        columns,
        images,
        ring=4 * blocks * lanes,
        read=2 * each * lanes_of(channels_in),
        written=2 * each * lanes,
    )
    sums_shape = _float32((blocks, 2, batch, lanes))
    out_shape = (rows.pixels, columns.pixels, batch, channels)
    ring = (blocks, cut.strips.ring, columns.seen, images, lanes)
    out, sums = pl.pallas_call(
        partial(
            convolve_program, program=Program(cut.strips, columns, visit, channels)
        ),
        grid=(batch // images, cut.strips.steps, blocks),
        in_specs=[
            cut.read(channels_in),
            cut.small(small),
            whole(kernel),
            whole(weights),
        ],
        out_specs=[cut.written_blocks(channels), cut.small(sums_shape)],
        out_shape=[jax.ShapeDtypeStruct(out_shape, x.dtype), sums_shape],
        scratch_shapes=[pltpu.VMEM(ring, jnp.float32)],
        compiler_params=_options(3),
        interpret=interpret,
    )(turn(x), small, kernel, weights)
    return turn_back(out), join_small(sums, channels)


@partial(
    jax.jit,
    static_argnames=("visit", "revisit", "stride", "padding", "group", "interpret"),
)
def gradients(
    visit: Visit,
    y: jax.Array,
    small: jax.Array,
    cotangent: jax.Array,
    back: jax.Array,
    revisit: Revisit,
    x: jax.Array,
    x_small: jax.Array,
    kernel: jax.Array,
    weights: jax.Array,
    *,
    stride: int,
    padding: Padding,
    group: int,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Computes gradients of `convolve` and of a product that follows it.

    Args:
      visit: elementwise function of an `Arithmetic`, y, the product of the cotangent
        and `back`, and n small numbers; it returns the array z that the transposed
        `back` multiplied, and the gradient to y.
      y: (B, H', W', C) first result of `convolve`.
      small: (B, n, C) float32.
      cotangent: (B, H', W', Cout).
      back: (Cout, C) weights.
      revisit: elementwise function of an `Arithmetic`, an expanded pixel and m small
        numbers, a mean and a factor among them; it returns the pixel minus the mean,
        the pixel that was convolved, and the derivative v of the latter.
      x: images of `convolve`.
      x_small: (B, m, C) float32.
      kernel: as in `convolve`.
      weights: as in `convolve`.
      stride: as in `convolve`.
      padding: as in `convolve`.
      group: as in `convolve`.
      interpret: as in `convolve`.

    Returns:
      With g, the gradient to the convolved pixels times v, and the factor f of
      `x_small`: the product of f * g and the transposed kernel, like x; the sums over
      pixels of g and of g times the expanded pixel minus its mean, (B, 2, C) float32;
      the gradients to the kernel, from f * g, to `weights` and to `back`, in float32.
    """
    batch, height, width, channels_in = x.shape
    channels, images, each = kernel.shape[1], images_of(group), x.dtype.itemsize
    rows, columns = (
        gradient_axis(len(weights), stride, n, p)
        for n, p in zip((height, width), padding, strict=True)
    )
    kernel, weights = split_channels(kernel), split_weights(weights, images)
    small, x_small = split_small(small), split_small(x_small)
    back = split_channels(back.astype(x.dtype))
    blocks, channels_out, lanes = back.shape
    cut = cut_rows(
        rows,
        columns,
        images,
        ring=4 * blocks * lanes,
        read=2 * each * (lanes + lanes_of(channels_out)),
        written=(4 * each + 4) * lanes_of(channels_in),
    )
    sums_shape = _float32((blocks, 2, batch, lanes))
    row = (width, images, lanes)
    to_x, sums, to_kernel, to_weights, to_back = pl.pallas_call(
        partial(
            gradient_program,
            program=Program(cut.strips, columns, visit, channels),
            revisit=revisit,
        ),
        grid=(batch // images, cut.strips.steps, blocks),
        in_specs=[
            cut.written(channels_in),
            cut.small(x_small),
            whole(kernel),
            whole(weights),
            cut.read_blocks(channels),
            cut.small(small),
            cut.read(channels_out),
            whole(back),
        ],
        out_specs=[
            cut.written(channels_in),
            cut.small(sums_shape),
            whole(kernel),
            whole(weights),
            whole(back),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((height, width, batch, channels_in), x.dtype),
            sums_shape,
            _float32(kernel.shape),
            _float32(weights.shape),
            _float32(back.shape),
        ],
        scratch_shapes=[
            pltpu.VMEM(
                (blocks, cut.strips.ring, columns.seen, images, lanes), jnp.float32
            ),
            pltpu.VMEM(row, jnp.float32),
            pltpu.VMEM(row, x.dtype),
            pltpu.VMEM((columns.source, images, lanes), x.dtype),
            pltpu.VMEM((cut.strips.written, width, images, channels_in), jnp.float32),
        ],
        compiler_params=_options(3),
        interpret=interpret,
    )(turn(x), x_small, kernel, weights, turn(y), small, turn(cotangent), back)
    to_weights = join_channels(to_weights, channels).sum(2, keepdims=True)
    return (
        turn_back(to_x),
        join_small(sums, channels),
        join_channels(to_kernel, channels),
        to_weights,
        join_channels(to_back, channels),
    )


def _rows_spec(x: jax.Array, images: int) -> pl.BlockSpec:
    """Strips of rows of x (H, W, B, C) of some images."""
    height, width, _, channels = x.shape
    row = width * images * lanes_of(channels) * x.dtype.itemsize
    rows = min(max(ROWS_BYTES // row, 1), height)
    return pl.BlockSpec((rows, width, images, channels), lambda b, t: (t, 0, b, 0))


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
    spec = _rows_spec(turned, images)
    parts = batch // images
    out = (1, channels), (channels, channels)
    sums, products = pl.pallas_call(
        partial(moments_program, height=height),
        grid=(parts, pl.cdiv(height, spec.block_shape[0])),
        in_specs=[spec],
        out_specs=[pl.BlockSpec((1, *n), lambda b, t: (b, 0, 0)) for n in out],
        out_shape=[_float32((parts, *n)) for n in out],
        compiler_params=_options(2),
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
      part: like x.
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
    spec = _rows_spec(turned, images)
    parts = group // images
    out = pl.pallas_call(
        partial(finish_program, height=height),
        grid=(batch // images, pl.cdiv(height, spec.block_shape[0])),
        in_specs=[spec, spec]
        + [
            pl.BlockSpec(
                (1, n, channels), lambda b, t: (lax.div(b, jnp.int32(parts)), 0, 0)
            )
            for n in (channels, 1)
        ],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(turned.shape, x.dtype),
        compiler_params=_options(2),
        interpret=interpret,
    )(turned, turn(part), matrix.astype(x.dtype), shift[:, None])
    return turn_back(out)
