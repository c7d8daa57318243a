"""An inverted bottleneck whose expanded array is never in a TPU's memory.

It computes "expand", a normalisation, the depthwise convolution, a second normalisation
with the gate, and "project", as `MBConv` does with separate operations. Let x be a
block's input and e = x W the expanded array. Then e's statistics are those of x and of
the products of x's channels: its mean is mean(x) W, and its variance that of x W. Its
gradient is f g + a (e - mean) + b with numbers f, a and b for each channel of a group,
where g is the gradient to the normalised e. So the gradient to x is
(f g) W^T + x (W diag(a) W^T) + (b - a mean) W^T: only f g is as wide as e, and a kernel
multiplies it by W^T where it computes it. The same holds for the gradient to W.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from align_jax.devices.kernel_choice import MOSAIC_INTERPRET, Kernels
from align_jax.kernels import mosaic_bottleneck, mosaic_moments
from align_jax.kernels.convolution import Padding, dense_conv
from align_jax.kernels.image_walks import add_images
from align_jax.models.batch_norm import (
    EPSILON,
    Form,
    Statistics,
    affine_of,
    apply_statistics,
    each_image,
    gate_of,
    gradient_numbers,
    statistics_of,
)
from align_jax.models.layers import SMALL
from align_jax.models.norm_arithmetic import activate, gated_to_input, revisit


class Weights(NamedTuple):
    """Weights of a bottleneck, in float32 or, for convolutions, in the compute type.

    Attributes:
      expand: (Cin, C) kernel.
      scale: (C,) scale of the first normalisation.
      bias: (C,) bias of the first normalisation.
      depthwise: (k, k, 1, C) kernel.
      second_scale: (C,) scale of the second normalisation.
      second_bias: (C,) bias of the second normalisation.
      excite: weights of the gate, see `gate_of`.
      project: (C, Cout) kernel.
    """

    expand: jax.Array
    scale: jax.Array
    bias: jax.Array
    depthwise: jax.Array
    second_scale: jax.Array
    second_bias: jax.Array
    excite: dict
    project: jax.Array


@dataclasses.dataclass(frozen=True)
class Shape:
    """Options of `bottleneck`.

    Attributes:
      stride: input pixels per output pixel of the depthwise convolution.
      padding: ((top, bottom), (left, right)) numbers of zeros.
      group: number of images that share statistics; it divides the batch size.
      kernels: "mosaic", or the same kernels in Pallas' interpreter.
    """

    stride: int
    padding: Padding
    group: int
    kernels: Kernels

    @property
    def options(self) -> dict:
        """Arguments of the kernels with a convolution."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "group": self.group,
            "interpret": self.interpret,
        }

    @property
    def interpret(self) -> bool:
        """Whether kernels run in Pallas' interpreter."""
        return self.kernels.kind == MOSAIC_INTERPRET

    @property
    def form(self) -> Form:
        """Options of the second normalisation."""
        return Form(self.group, swish=True, kernels=Kernels())


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def bottleneck(
    x: jax.Array, weights: Weights, shape: Shape
) -> tuple[jax.Array, Statistics, Statistics]:
    """Applies a bottleneck without its last normalisation.

    Args:
      x: (B, H, W, Cin) input.
      weights: the weights.
      shape: strides, groups and kernels.

    Returns:
      (B, H', W', Cout), and mean and variance, (G, C) float32, of both normalisations.
      Only the first has a gradient.
    """
    return _forward(x, weights, shape)[0]


def _exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies small matrices in float32."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def expanded_statistics(
    sums: jax.Array, products: jax.Array, kernel: jax.Array, count: int
) -> Statistics:
    """Returns mean and variance (G, C) of x times a kernel.

    Args:
      sums: (G, Cin) sums of `count` pixels x.
      products: (G, Cin, Cin) sums of the products of x's channels.
      kernel: (Cin, C) float32.
      count: number of pixels of a group.
    """
    mean = sums / count
    spread = products / count - mean[:, :, None] * mean[:, None]
    var = (_exact(spread, kernel) * kernel[None]).sum(1)
    return _exact(mean, kernel), jnp.maximum(var, 0.0)


def _forward(x: jax.Array, weights: Weights, shape: Shape) -> tuple:
    # Blocks that are computed again for the backward pass keep these small arrays.
    keep = partial(checkpoint_name, name=SMALL)
    sums, products = keep(mosaic_moments.moments(x, shape.group, shape.interpret))
    pixels = shape.group * x.shape[1] * x.shape[2]
    kernel = weights.expand.astype(jnp.float32)
    first = expanded_statistics(sums, products, kernel, pixels)
    small = affine_of(weights.scale, weights.bias, first, len(x))
    y, y_sums = mosaic_bottleneck.convolve(
        activate, x, small, weights.expand, weights.depthwise, **shape.options
    )
    pixels = shape.group * y.shape[1] * y.shape[2]
    second = statistics_of(add_images(keep(y_sums), shape.group), pixels)
    gated, means = apply_statistics(
        y,
        weights.second_scale,
        weights.second_bias,
        weights.excite,
        statistics=second,
        form=shape.form,
        name=SMALL,
    )
    residuals = x, weights, (sums, products), first, second, means, y
    return (_project(gated, weights.project), first, second), residuals


def _project(gated: jax.Array, kernel: jax.Array) -> jax.Array:
    return dense_conv(gated, kernel[None, None], 1, ((0, 0), (0, 0)))


def _backward(shape: Shape, residuals: tuple, cotangents: tuple) -> tuple:
    x, weights, (sums, products), (mean, var), second, means, y = residuals
    cotangent, back = cotangents[0], weights.project.T
    norm = y, weights.second_scale, weights.second_bias, weights.excite, second, means
    small, second_scale, second_bias, excite = gradient_numbers(
        shape.form, norm, _project(cotangent, back)
    )
    assert excite is not None  # as there is a gate
    gate = gate_of(means, weights.excite)
    inverse = lax.rsqrt(var + EPSILON)  # (G, C)
    factor = weights.scale[None] * inverse
    bias = jnp.broadcast_to(weights.bias, mean.shape)
    part, inner, expand, depthwise, project = mosaic_bottleneck.gradients(
        gated_to_input,
        y,
        jnp.concatenate([small, gate[:, None]], 1),
        cotangent,
        back,
        revisit,
        x,
        each_image([mean, factor, bias], len(x)),
        weights.expand,
        weights.depthwise,
        **shape.options,
    )
    to_bias, to_scale = jnp.unstack(add_images(inner, shape.group), axis=1)
    to_scale *= inverse
    pixels = shape.group * x.shape[1] * x.shape[2]
    by_x = -factor * to_scale / pixels * inverse
    alone = -factor * to_bias / pixels - mean * by_x
    kernel = weights.expand.astype(jnp.float32)
    expand += (_exact(products, kernel) * by_x[:, None]).sum(0)
    expand += _exact(sums.T, alone)
    matrix = _exact(kernel[None] * by_x[:, None], kernel.T)  # (G, Cin, Cin)
    shift = _exact(alone, kernel.T)
    to_x = mosaic_moments.finish(x, part, matrix, shift, shape.interpret)
    return to_x, Weights(
        expand=expand.astype(weights.expand.dtype),
        scale=to_scale.sum(0),
        bias=to_bias.sum(0),
        depthwise=depthwise.astype(weights.depthwise.dtype),
        second_scale=second_scale,
        second_bias=second_bias,
        excite=excite,
        project=project.T.astype(weights.project.dtype),
    )


bottleneck.defvjp(_forward, _backward)
