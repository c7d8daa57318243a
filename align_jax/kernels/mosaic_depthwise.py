"""Depthwise convolutions between two normalisations, as Pallas kernels for TPUs.

XLA's convolution reads an array that was normalised and written before. These kernels
normalise what they read, and sum what they write for the next normalisation. So a wide
array is written and read once less. The kernels have XLA's layout for images on TPUs,
(H, W, B, C) in tiles of images by channels, in which a tap is another tile.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from align_jax.kernels.convolution import Padding
from align_jax.kernels.mosaic_axes import Axis, Strips, forward_axis, gradient_axis
from align_jax.kernels.mosaic_programs import (
    SUBLANES,
    Program,
    Visit,
    convolve_program,
    gradient_program,
)

LANES = 128
# Vector memory for a program's arrays.
PROGRAM_BYTES = 24 * 2**20
MOST_UNITS = 8


def choose_strips(
    rows: Axis, columns: Axis, images: int, *, bytes_read: int, bytes_written: int
) -> Strips:
    """Returns the longest strips that fit `PROGRAM_BYTES`.

    Args:
      rows: axis of the rows.
      columns: axis of the columns.
      images: images of a program.
      bytes_read: bytes for a source pixel of an image and channel, of all sources.
      bytes_written: bytes for a pixel of the result, and of arrays of its size.
    """

    def size(strips: Strips) -> int:
        # Two buffers of what is read and written.
        pixels = 2 * bytes_read * strips.read * columns.source
        pixels += 2 * bytes_written * strips.written * columns.pixels
        return (pixels + 4 * strips.ring * columns.seen) * images * LANES

    units = min(rows.units, MOST_UNITS)
    while units > 1 and size(Strips(rows, units)) > PROGRAM_BYTES:
        units -= 1
    # Strips of equal length.
    units = pl.cdiv(rows.units, pl.cdiv(rows.units, units))
    strips = Strips(rows, units)
    while not strips.fits:
        strips = strips._replace(units=strips.units + 1)
    return strips


def _turn(x: jax.Array) -> jax.Array:
    """Returns (H, W, B, C) of (B, H, W, C), as the TPU's compiler lays images out."""
    return x.transpose(1, 2, 0, 3)


def _images(batch: int) -> int:
    """Images of a program: a tile of bfloat16 has 16."""
    return next((n for n in (16, 8) if batch % n == 0), batch)


def _weights(kernel: jax.Array, images: int) -> jax.Array:
    """Returns the kernel in float32, repeated for the images of a tile."""
    folded = SUBLANES if images % SUBLANES == 0 else images
    return jnp.tile(kernel.astype(jnp.float32), (1, 1, folded, 1))


def _source_spec(strips: Strips, columns: Axis, images: int) -> pl.BlockSpec:
    shape = (strips.read, columns.source, images, LANES)
    last = strips.last_read
    return pl.BlockSpec(shape, lambda c, b, t: (jnp.minimum(t, last), 0, b, c))


def _result_spec(strips: Strips, columns: Axis, images: int) -> pl.BlockSpec:
    shape = (strips.written, columns.pixels, images, LANES)
    return pl.BlockSpec(shape, lambda c, b, t: (jnp.maximum(t - 1, 0), 0, b, c))


def _small_spec(count: int, images: int) -> pl.BlockSpec:
    return pl.BlockSpec((count, images, LANES), lambda c, b, t: (0, b, c))


def _weight_spec(weights: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((*weights.shape[:3], LANES), lambda c, b, t: (0, 0, 0, c))


def _params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=2 * PROGRAM_BYTES,
    )


@partial(jax.jit, static_argnames=("load", "stride", "padding", "interpret"))
def convolve(
    load: Visit,
    x: jax.Array,
    small: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Transforms images, convolves each channel, and sums the result over its pixels.

    Args:
      load: elementwise function of an `Arithmetic`, x and n small numbers.
      x: (B, H, W, C) images.
      small: (B, n, C) float32, n numbers per channel of each image.
      kernel: (k, k, 1, C) weights.
      stride: input pixels per output pixel, in both directions.
      padding: ((top, bottom), (left, right)) numbers of zeros.
      interpret: whether to compute as ordinary JAX: slow, but on any platform.

    Returns:
      (B, H', W', C) of x's type, and its sums and those of its squares, (B, 2, C)
      float32.
    """
    batch, height, width, channels = x.shape
    rows, columns = (
        forward_axis(len(kernel), stride, n, p)
        for n, p in zip((height, width), padding, strict=True)
    )
    images, each = _images(batch), x.dtype.itemsize
    strips = choose_strips(rows, columns, images, bytes_read=each, bytes_written=each)
    weights = _weights(kernel, images)
    program = Program(load, 1, strips, columns)
    out, sums = pl.pallas_call(
        partial(convolve_program, program=program),
        grid=(pl.cdiv(channels, LANES), batch // images, strips.steps),
        in_specs=[
            _source_spec(strips, columns, images),
            _small_spec(small.shape[1], images),
            _weight_spec(weights),
        ],
        out_specs=[
            _result_spec(strips, columns, images),
            _small_spec(2, images),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((rows.pixels, columns.pixels, batch, channels), x.dtype),
            jax.ShapeDtypeStruct((2, batch, channels), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((strips.ring, columns.seen, images, LANES), jnp.float32)
        ],
        compiler_params=_params(),
        interpret=interpret,
    )(_turn(x), small.transpose(1, 0, 2), weights)
    return out.transpose(2, 0, 1, 3), sums.transpose(1, 0, 2)


@partial(
    jax.jit, static_argnames=("load", "revisit", "stride", "padding", "interpret")
)
def gradients(
    load: Visit,
    sources: Sequence[jax.Array],
    small: jax.Array,
    revisit: Visit,
    x: jax.Array,
    x_small: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of `convolve`.

    Args:
      load: elementwise function of an `Arithmetic`, the sources and n small numbers; it
        returns the gradient of the convolution's result.
      sources: (B, H', W', C) arrays.
      small: (B, n, C) float32.
      revisit: elementwise function of an `Arithmetic`, x and m small numbers; it
        returns x minus its mean, the transformed x, and the slope there.
      x: (B, H, W, C) images of the forward pass.
      x_small: (B, m, C) float32.
      kernel: (k, k, 1, C) weights.
      stride: as in `convolve`.
      padding: as in `convolve`.
      interpret: as in `convolve`.

    Returns:
      The gradient before x's transformation is applied, (B, H, W, C) of x's type; its
      sums over pixels and those of its product with x minus its mean, (B, 2, C)
      float32; the gradient to the kernel, float32.
    """
    batch, height, width, channels = x.shape
    rows, columns = (
        gradient_axis(len(kernel), stride, n, p)
        for n, p in zip((height, width), padding, strict=True)
    )
    images, each = _images(batch), x.dtype.itemsize
    strips = choose_strips(
        rows,
        columns,
        images,
        bytes_read=each * len(sources),
        bytes_written=2 * each,
    )
    weights = _weights(kernel, images)
    program = Program(load, len(sources), strips, columns)
    out, sums, to_weights = pl.pallas_call(
        partial(gradient_program, program=program, revisit=revisit),
        grid=(pl.cdiv(channels, LANES), batch // images, strips.steps),
        in_specs=[
            *[_source_spec(strips, columns, images)] * len(sources),
            _small_spec(small.shape[1], images),
            _weight_spec(weights),
            _result_spec(strips, columns, images),
            _small_spec(x_small.shape[1], images),
        ],
        out_specs=[
            _result_spec(strips, columns, images),
            _small_spec(2, images),
            _weight_spec(weights),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((height, width, batch, channels), x.dtype),
            jax.ShapeDtypeStruct((2, batch, channels), jnp.float32),
            jax.ShapeDtypeStruct(weights.shape, jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((strips.ring, columns.seen, images, LANES), jnp.float32)
        ],
        compiler_params=_params(),
        interpret=interpret,
    )(
        *map(_turn, sources),
        small.transpose(1, 0, 2),
        weights,
        _turn(x),
        x_small.transpose(1, 0, 2),
    )
    to_kernel = to_weights.sum(2, keepdims=True)
    return out.transpose(2, 0, 1, 3), sums.transpose(1, 0, 2), to_kernel
