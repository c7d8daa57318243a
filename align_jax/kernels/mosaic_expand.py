"""An inverted bottleneck's expansion and depthwise convolution, as kernels for TPUs.

The expanded array is several times as large as any other array of a block, and is moved
most often. These kernels compute it from the block's input wherever it is needed, so
that it is never in the device's memory. They keep XLA's layout for images on TPUs,
(H, W, B, C) in tiles of images by channels, in which a tap is another tile.
"""

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
IMAGES = 16  # of a program: a tile of bfloat16 has 16 rows
# Vector memory for a program's strips and ring.
PROGRAM_BYTES = 32 * 2**20
VECTOR_BYTES = 100 * 2**20
MOST_UNITS = 8


def choose_strips(
    rows: Axis, columns: Axis, *, ring: int, read: int, written: int
) -> Strips:
    """Returns the longest strips that fit `PROGRAM_BYTES`.

    Args:
      rows: axis of the rows.
      columns: axis of the columns.
      ring: bytes of a pixel of the ring.
      read: bytes of a source's pixel.
      written: bytes of a result's pixel, and of what a program holds beside it.
    """

    def size(strips: Strips) -> int:
        pixels = read * strips.read * columns.source
        pixels += written * strips.written * columns.pixels
        return pixels + ring * strips.ring * columns.seen

    units = min(rows.units, MOST_UNITS)
    while units > 1 and size(Strips(rows, units)) > PROGRAM_BYTES:
        units -= 1
    # Strips of equal length.
    strips = Strips(rows, pl.cdiv(rows.units, pl.cdiv(rows.units, units)))
    while not strips.fits:
        strips = strips._replace(units=strips.units + 1)
    return strips


def _turn(x: jax.Array) -> jax.Array:
    """Returns (H, W, B, C) of (B, H, W, C), as the TPU's compiler lays images out."""
    return x.transpose(1, 2, 0, 3)


def _blocks(x: jax.Array) -> jax.Array:
    """Splits the last axis, of C channels: (..., C) to (blocks, ..., LANES)."""
    lanes = min(x.shape[-1], LANES)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % lanes)])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, lanes), -2, 0)


def _joined(x: jax.Array, channels: int) -> jax.Array:
    """Reverts `_blocks`."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)[..., :channels]


def _small_blocks(small: jax.Array) -> jax.Array:
    """Returns (blocks, n, B, LANES) of (B, n, C)."""
    return _blocks(small.transpose(1, 0, 2))


def _weight_blocks(weights: jax.Array, images: int) -> jax.Array:
    """Returns (blocks, k, k, SUBLANES, LANES) of (k, k, 1, C), in float32."""
    folded = SUBLANES if images % SUBLANES == 0 else images
    return _blocks(jnp.tile(weights.astype(jnp.float32), (1, 1, folded, 1)))


def _whole(x: jax.Array) -> pl.BlockSpec:
    """All of x, for each program."""
    return pl.BlockSpec(x.shape, lambda b, t, c: (0,) * x.ndim)


def _per_images(x: jax.Array, images: int) -> pl.BlockSpec:
    """The images of a program of x (blocks, n, B, LANES)."""
    shape = (*x.shape[:2], images, x.shape[-1])
    return pl.BlockSpec(shape, lambda b, t, c: (0, 0, b, 0))


def _read(strips: Strips, columns: Axis, images: int, channels: int) -> pl.BlockSpec:
    """Strips that are read; all channels, or blocks of `LANES`."""
    shape = (strips.read, columns.source, images, min(channels, LANES))
    last, end = strips.last_read, pl.cdiv(channels, LANES) - 1

    def place(b, t, c):
        # After the last strip, the last block stays.
        return jnp.minimum(t, last), 0, b, jnp.where(t > last, end, c)

    return pl.BlockSpec(shape, place)


def _read_whole(
    strips: Strips, columns: Axis, images: int, channels: int
) -> pl.BlockSpec:
    """Strips of all channels that are read."""
    shape = (strips.read, columns.source, images, channels)
    last = strips.last_read
    return pl.BlockSpec(shape, lambda b, t, c: (jnp.minimum(t, last), 0, b, 0))


def _written(
    strips: Strips, columns: Axis, images: int, channels: int
) -> pl.BlockSpec:
    """Strips of the result, by blocks of `LANES` channels."""
    shape = (strips.written, columns.pixels, images, min(channels, LANES))

    def place(b, t, c):
        # Before the first strip is written, its first block stays.
        return jnp.maximum(t - 1, 0), 0, b, jnp.where(t == 0, 0, c)

    return pl.BlockSpec(shape, place)


def _written_whole(
    strips: Strips, columns: Axis, images: int, channels: int
) -> pl.BlockSpec:
    """Strips of all channels of the result, and of arrays of its size."""
    shape = (strips.written, columns.pixels, images, channels)
    return pl.BlockSpec(shape, lambda b, t, c: (jnp.maximum(t - 1, 0), 0, b, 0))


def _params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary",) * 3, vmem_limit_bytes=VECTOR_BYTES
    )


@partial(jax.jit, static_argnames=("visit", "stride", "padding", "interpret"))
def convolve(
    visit: Visit,
    x: jax.Array,
    small: jax.Array,
    kernel: jax.Array,
    weights: jax.Array,
    stride: int,
    padding: Padding,
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
      interpret: whether to compute as ordinary JAX: slow, but on any platform.

    Returns:
      (B, H', W', C) of x's type, and the sums of its pixels and of their squares,
      (B, 2, C) float32.
    """
    batch, height, width, channels_in = x.shape
    channels = kernel.shape[1]
    rows, columns = (
        forward_axis(len(weights), stride, n, p)
        for n, p in zip((height, width), padding, strict=True)
    )
    images, each = min(IMAGES, batch), x.dtype.itemsize
    kernels, weights = _blocks(kernel), _weight_blocks(weights, images)
    blocks, lanes = len(kernels), kernels.shape[-1]
    lanes_in = pl.cdiv(channels_in, LANES) * LANES
    strips = choose_strips(
        rows,
        columns,
        ring=4 * images * blocks * LANES,
        read=2 * each * images * lanes_in,
        written=2 * each * images * LANES,
    )
    small = _small_blocks(small)
    sums_shape = jax.ShapeDtypeStruct((blocks, 2, batch, lanes), jnp.float32)
    out, sums = pl.pallas_call(
        partial(convolve_program, program=Program(strips, columns, visit)),
        grid=(batch // images, strips.steps, blocks),
        in_specs=[
            _read_whole(strips, columns, images, channels_in),
            _per_images(small, images),
            _whole(kernels),
            _whole(weights),
        ],
        out_specs=[
            _written(strips, columns, images, channels),
            _per_images(sums_shape, images),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(
                (rows.pixels, columns.pixels, batch, channels), x.dtype
            ),
            sums_shape,
        ],
        scratch_shapes=[
            pltpu.VMEM((blocks, strips.ring, columns.seen, images, lanes), jnp.float32)
        ],
        compiler_params=_params(),
        interpret=interpret,
    )(_turn(x), small, kernels, weights)
    sums = _joined(sums, channels).transpose(1, 0, 2)
    return out.transpose(2, 0, 1, 3), sums


@partial(
    jax.jit, static_argnames=("visit", "revisit", "stride", "padding", "interpret")
)
def gradients(
    visit: Visit,
    y: jax.Array,
    cotangent: jax.Array,
    small: jax.Array,
    revisit: Visit,
    x: jax.Array,
    x_small: jax.Array,
    kernel: jax.Array,
    weights: jax.Array,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes gradients of `convolve`, without that of the normalisation's sums."""
    batch, height, width, channels_in = x.shape
    channels = kernel.shape[1]
    rows, columns = (
        gradient_axis(len(weights), stride, n, p)
        for n, p in zip((height, width), padding, strict=True)
    )
    images, each = min(IMAGES, batch), x.dtype.itemsize
    kernels, weights = _blocks(kernel), _weight_blocks(weights, images)
    blocks, lanes = len(kernels), kernels.shape[-1]
    lanes_in = pl.cdiv(channels_in, LANES) * LANES
    strips = choose_strips(
        rows,
        columns,
        ring=4 * images * blocks * LANES,
        read=4 * each * images * LANES,
        written=(4 * each + 4) * images * lanes_in,
    )
    small, x_small = _small_blocks(small), _small_blocks(x_small)
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    sums_shape = shape((blocks, 2, batch, lanes))
    to_x, sums, to_kernel, to_weights = pl.pallas_call(
        partial(
            gradient_program,
            program=Program(strips, columns, visit, revisit),
            channels=channels,
        ),
        grid=(batch // images, strips.steps, blocks),
        in_specs=[
            _written_whole(strips, columns, images, channels_in),
            _per_images(x_small, images),
            _whole(kernels),
            _whole(weights),
            _read(strips, columns, images, channels),
            _read(strips, columns, images, channels),
            _per_images(small, images),
        ],
        out_specs=[
            _written_whole(strips, columns, images, channels_in),
            _per_images(sums_shape, images),
            _whole(kernels),
            _whole(weights),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((height, width, batch, channels_in), x.dtype),
            sums_shape,
            shape(kernels.shape),
            shape(weights.shape),
        ],
        scratch_shapes=[
            pltpu.VMEM((blocks, strips.ring, columns.seen, images, lanes), jnp.float32),
            pltpu.VMEM((width, images, lanes), jnp.float32),
            pltpu.VMEM((width, images, lanes), x.dtype),
            pltpu.VMEM((strips.written, width, images, channels_in), jnp.float32),
        ],
        compiler_params=_params(),
        interpret=interpret,
    )(
        _turn(x),
        x_small,
        kernels,
        weights,
        _turn(y),
        _turn(cotangent),
        small,
    )
    sums = _joined(sums, channels).transpose(1, 0, 2)
    to_weights = _joined(to_weights, channels).sum(2, keepdims=True)
    return to_x.transpose(2, 0, 1, 3), sums, _joined(to_kernel, channels), to_weights
