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
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from align_jax.kernels.convolution import Padding
from align_jax.kernels.mosaic_axes import forward_axis, gradient_axis
from align_jax.kernels.mosaic_blocks import (
    cut_rows,
    float32,
    images_of,
    join_channels,
    join_small,
    lanes_of,
    options,
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
    gradient_program,
)

KERNEL_BYTES = 64 * 2**20  # of vector memory for dense kernels and their gradients
# Fewest pixels of a device's input for each channel. With fewer, a block moves less by
# XLA, which keeps the expanded array in vector memory (docs/performance.md).
LEAST_PIXELS = 50


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
    return math.prod(pixels) >= LEAST_PIXELS * channels * devices


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
    sums_shape = float32((blocks, 2, batch, lanes))
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
        compiler_params=options(3),
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
      kernel: argument of `convolve`.
      weights: argument of `convolve`.
      stride: argument of `convolve`.
      padding: argument of `convolve`.
      group: argument of `convolve`.
      interpret: argument of `convolve`.

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
    sums_shape = float32((blocks, 2, batch, lanes))
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
            float32(kernel.shape),
            float32(weights.shape),
            float32(back.shape),
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
        compiler_params=options(3),
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
