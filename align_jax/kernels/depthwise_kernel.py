"""Depthwise convolution as Pallas kernels for NVIDIA GPUs, compiled by Triton.

XLA's grouped convolution reads and writes its arguments several times. A program of
these kernels walks down the rows of an image and reads each row once, see
`depthwise_programs`. A lane of a program uses each column that it loads for all taps
(positions of the kernel), see `depthwise_lanes`.
Sums over rows and columns are float32. Kernels are square: k is their side.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels.convolution import Padding
from align_jax.kernels.depthwise_lanes import LaneLayout, choose_layout, column_groups
from align_jax.kernels.depthwise_programs import (
    Geometry,
    correlate_kernel,
    products_kernel,
    spread_kernel,
)

# Columns per lane that each kernel chooses from, and warps per program.
CONVOLVE_COLUMNS = 4, 5
SPREAD_COLUMNS = 2, 3
PRODUCTS_COLUMNS = 4, 5
WARPS = 4

# Minimum number of programs for the kernel's gradient, if the batch is large enough.
# An H100 runs 396 at a time.
PROGRAMS = 512


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> jax.Array:
    """Computes `convolution.depthwise_conv` with float32 sums.

    Args:
      x: (B, H, W, C) input.
      kernel: (k, k, 1, C) weights.
      stride: input pixels per output pixel, in both directions.
      padding: ((top, bottom), (left, right)) numbers of zeros.
      interpret: whether to compute as ordinary JAX: slow, but on any platform.

    Returns:
      (B, H', W', C) with H' = (H + top + bottom - k) // stride + 1.
    """
    return convolve(x, kernel, stride, padding, interpret=interpret)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise(x, kernel, stride, padding, interpret), (x, kernel)


def _depthwise_backward(
    stride: int,
    padding: Padding,
    interpret: bool,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    to_x = input_gradient(
        cotangent, kernel, x.shape[1:3], stride, padding, interpret=interpret
    )
    to_kernel = kernel_gradient(
        x, cotangent, len(kernel), stride, padding, interpret=interpret
    )
    return to_x, to_kernel.astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@dataclasses.dataclass(frozen=True)
class Slide:
    """A kernel that processes every image separately.

    Attributes:
      body: `correlate_kernel` or `spread_kernel`.
      geometry: sizes of the convolution.
      layout: layout of a program's lanes.
      covered: number of output columns that the lanes cover; for `spread_kernel`,
        number of groups of `stride` output columns.
      size: rows and columns of an output image.
    """

    body: Callable[..., None]
    geometry: Geometry
    layout: LaneLayout
    covered: int
    size: tuple[int, int]

    def run(self, x: jax.Array, kernel: jax.Array, interpret: bool) -> jax.Array:
        """Returns images (B, *size, C) from x (B, h, w, C) and weights (k, k, 1, C)."""
        batch, height, width, channels = x.shape
        rows, columns = self.size
        flat = (height, width * channels), (rows, columns * channels)
        each, out_each = (
            pl.BlockSpec((None, *image), lambda _, b: (b, 0, 0)) for image in flat
        )
        weights = kernel.reshape(-1, channels)  # (k * k, C)
        body = partial(
            self.body, geometry=self.geometry, layout=self.layout, interpret=interpret
        )
        out = pl.pallas_call(
            body,
            grid=(self.layout.programs(self.covered, channels), batch),
            in_specs=[each, pl.BlockSpec(weights.shape, lambda _, b: (0, 0))],
            out_specs=out_each,
            out_shape=jax.ShapeDtypeStruct((batch, *flat[1]), x.dtype),
            compiler_params=_compiler_params(self.layout),
            interpret=interpret,
        )(x.reshape(batch, height, width * channels), weights)
        return out.reshape(batch, rows, columns, channels)


def _compiler_params(layout: LaneLayout) -> triton.CompilerParams:
    return triton.CompilerParams(num_warps=layout.warps, num_stages=1)


@partial(jax.jit, static_argnames=("stride", "padding", "layout", "interpret"))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    layout: LaneLayout | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `depthwise` without its gradient.

    `layout` is the layout of the lanes; None lets `choose_layout` choose it. The other
    arguments are those of `depthwise`.
    """
    _, height, width, channels = x.shape
    k = len(kernel)
    geometry = Geometry.of((height, width), channels, k, stride, padding)
    size_out, columns = geometry.size_out, geometry.size_out[1]
    layout = layout or choose_layout(columns, channels, k, CONVOLVE_COLUMNS, WARPS)
    slide = Slide(correlate_kernel, geometry, layout, covered=columns, size=size_out)
    return slide.run(x, kernel, interpret)


@partial(jax.jit, static_argnames=("size", "stride", "padding", "layout", "interpret"))
def input_gradient(
    cotangent: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    stride: int,
    padding: Padding,
    layout: LaneLayout | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns the input's gradient (B, *size, C) from a cotangent (B, H', W', C).

    `size` is the numbers of rows and columns of the input. The other arguments are
    those of `convolve`.
    """
    k, _, _, channels = kernel.shape
    _, height_out, width_out, _ = cotangent.shape
    low = padding[0][0], padding[1][0]
    size_out = height_out, width_out
    if stride == 1:
        rows, columns = (
            (k - 1 - before, n + before - n_out)
            for n, n_out, before in zip(size, size_out, low, strict=True)
        )
        mirrored = kernel[::-1, ::-1]
        return convolve(
            cotangent, mirrored, 1, (rows, columns), layout=layout, interpret=interpret
        )
    geometry = Geometry.of(size, channels, k, stride, padding)
    groups = column_groups(size[1], low[1], stride)
    layout = layout or choose_layout(groups, channels, k, SPREAD_COLUMNS, WARPS)
    slide = Slide(spread_kernel, geometry, layout, covered=groups, size=size)
    return slide.run(cotangent, kernel, interpret)


@partial(
    jax.jit,
    static_argnames=("k", "stride", "padding", "layout", "programs", "interpret"),
)
def kernel_gradient(
    x: jax.Array,
    cotangent: jax.Array,
    k: int,
    stride: int,
    padding: Padding,
    layout: LaneLayout | None = None,
    programs: int = PROGRAMS,
    interpret: bool = False,
) -> jax.Array:
    """Returns the kernel's gradient (k, k, 1, C) in float32, the same in every run.

    Args:
      x: (B, H, W, C) input.
      cotangent: (B, H', W', C) gradient of the output.
      k: side of the kernel.
      stride: input pixels per output pixel, in both directions.
      padding: ((top, bottom), (left, right)) numbers of zeros.
      layout: layout of the lanes; None chooses it.
      programs: minimum number of programs. A program sums over as many images as this
        number allows, or over one image if the batch is too small for it.
      interpret: whether to compute as ordinary JAX: slow, but on any platform.
    """
    batch, height, width, channels = x.shape
    geometry = Geometry.of((height, width), channels, k, stride, padding)
    height_out, width_out = geometry.size_out
    layout = layout or choose_layout(width_out, channels, k, PRODUCTS_COLUMNS, WARPS)
    each = layout.programs(width_out, channels)
    images = divisor(batch, max(each * batch // programs, 1))
    groups = pl.cdiv(width_out, layout.columns)
    flat = (height, width * channels), (height_out, width_out * channels)
    sums = pl.pallas_call(
        partial(products_kernel, geometry=geometry, layout=layout, interpret=interpret),
        grid=(each, batch // images),
        in_specs=[pl.BlockSpec((images, *n), lambda _, b: (b, 0, 0)) for n in flat],
        out_specs=pl.BlockSpec(
            (None, k * k, groups * channels), lambda _, b: (b, 0, 0)
        ),
        out_shape=jax.ShapeDtypeStruct(
            (batch // images, k * k, groups * channels), jnp.float32
        ),
        compiler_params=_compiler_params(layout),
        interpret=interpret,
    )(x.reshape(batch, *flat[0]), cotangent.reshape(batch, *flat[1]))
    sums = sums.reshape(-1, k * k, groups, channels).sum((0, 2))  # (k * k, C)
    return sums.reshape(k, k, 1, channels)


def divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of `number` that is at most `limit`."""
    return next(n for n in range(min(limit, number), 0, -1) if number % n == 0)
