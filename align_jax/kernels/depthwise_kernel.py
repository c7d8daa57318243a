"""Depthwise convolution as Pallas kernels for NVIDIA GPUs, through Triton.

XLA's grouped convolution reads and writes a multiple of its arguments. Here each
program walks down the rows of one image and reads a row once, see `depthwise_programs`.
A program's lanes, see `depthwise_lanes`, use each column that they load for all taps.
Row and column sums are in float32. Both kernel sides equal k.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels.convolution import Padding, output_size
from align_jax.kernels.depthwise_lanes import LaneLayout, choose_layout, column_groups
from align_jax.kernels.depthwise_programs import (
    Geometry,
    correlate_kernel,
    products_kernel,
    spread_kernel,
)

# Columns that a lane may have in each kernel, and warps of a program.
CONVOLVE_COLUMNS = 4, 5
SPREAD_COLUMNS = 2, 3
PRODUCTS_COLUMNS = 4, 5
WARPS = 4

# Programs of the kernel's gradient, at least: more than an H100 holds at a time (396).
PROGRAMS = 512


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> jax.Array:
    """`convolution.depthwise_conv`, whose sums are float32.

    Args:
      x: (B, H, W, C) input.
      kernel: (k, k, 1, C) weights.
      stride: step in both directions.
      padding: ((top, bottom), (left, right)) zeros.
      interpret: compute as ordinary JAX, on any platform, slowly.

    Returns:
      (B, H', W', C) with H' = (H + top + bottom - k) // stride + 1.
    """
    return convolve(x, kernel, stride, padding, interpret=interpret)


def _depthwise_forward(x, kernel, stride, padding, interpret):
    return depthwise(x, kernel, stride, padding, interpret), (x, kernel)


def _depthwise_backward(stride, padding, interpret, residuals, cotangent):
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
    """A kernel that slides over every image by itself.

    Attributes:
      body: `correlate_kernel` or `spread_kernel`.
      geometry: the convolution's sizes.
      layout: the lanes of a program.
      covered: columns, or groups of them, that the lanes cover.
      size: rows and columns of an image that is written.
    """

    body: Callable[..., None]
    geometry: Geometry
    layout: LaneLayout
    covered: int
    size: tuple[int, int]

    def run(self, x: jax.Array, kernel: jax.Array, interpret: bool) -> jax.Array:
        """Images (B, *size, C) from x (B, h, w, C) and weights (k, k, 1, C)."""
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
    """`depthwise` without a gradient, for a given layout of the lanes."""
    k, _, _, channels = kernel.shape
    _, height, width, _ = x.shape
    size_out = (
        output_size(height, k, stride, padding[0]),
        output_size(width, k, stride, padding[1]),
    )
    geometry = Geometry(
        k=k,
        stride=stride,
        low=(padding[0][0], padding[1][0]),
        size=(height, width),
        size_out=size_out,
        channels=channels,
    )
    columns = size_out[1]
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
    """Gradient (B, *size, C) to the input from a cotangent (B, H', W', C)."""
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
    geometry = Geometry(
        k=k, stride=stride, low=low, size=size, size_out=size_out, channels=channels
    )
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
    """Gradient (k, k, 1, C) to the kernel in float32, the same in every run.

    A program goes through several images, as many as leave about `programs` of them.
    """
    batch, height, width, channels = x.shape
    _, height_out, width_out, _ = cotangent.shape
    geometry = Geometry(
        k=k,
        stride=stride,
        low=(padding[0][0], padding[1][0]),
        size=(height, width),
        size_out=(height_out, width_out),
        channels=channels,
    )
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
    """The largest divisor of a number that is no larger than `limit`."""
    return next(n for n in range(min(limit, number), 0, -1) if number % n == 0)
