"""Batch normalisation fused with the activation and the gate that follow it.

EfficientNet's training is limited by memory traffic, nearly all of which is the wide
arrays around its normalisations. From the forward pass, only the convolution's output
and small arrays are kept; the backward pass computes the rest again. Both passes walk
over the convolution's output once for the sums of every image and channel, and once to
write their result. With a gate, the forward pass walks once more, for the gate's means.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from align_jax.devices.kernel_choice import Kernels
from align_jax.kernels.image_walks import Products, add_images, image_map, image_sums
from align_jax.kernels.walk_programs import Arithmetic
from align_jax.models.norm_arithmetic import activate, revisit, to_input

EPSILON = 1e-3  # added to the variance

Statistics = tuple[jax.Array, jax.Array]  # mean and variance, (G, C) each
# Input, scale, bias, weights of the gate, statistics, and the means for the gate.
Residuals = tuple[
    jax.Array, jax.Array, jax.Array, dict | None, Statistics, jax.Array | None
]


@dataclasses.dataclass(frozen=True)
class Form:
    """Options of `normalise`.

    Attributes:
      group_size: number of images that share statistics; it divides the batch size.
      swish: whether to apply swish, x * sigmoid(x), to the normalised array.
      kernels: choice between Pallas kernels and XLA.
    """

    group_size: int
    swish: bool
    kernels: Kernels

    @property
    def map_kernels(self) -> Kernels:
        """Choice between Pallas kernels and XLA for the walk that writes the result.

        Without a swish it is XLA, which fuses the writing with the operations that
        follow.
        """
        return self.kernels if self.swish else Kernels()


class BatchNorm(nn.Module):
    """Batch normalisation with statistics over groups of `group_size` images.

    In training the batch (B, H, W, C) is seen as (B / group_size, group_size, H, W, C)
    and each group is normalised by the mean and variance of that group. Statistics are
    float32 whatever the compute type.

    In training the running statistics (C,) become (groups, C), with one update per
    group; `mean_over_groups` makes them (C,) again. Taking the mean here would need a
    collective in every layer if the groups lie on several devices.

    Attributes:
      group_size: number of images per group; B must be a multiple of it in training.
      momentum: decay of the running statistics (TensorFlow's meaning).
      frozen: whether to normalise by the running statistics in training too, and to
        leave them as they are.
      swish: whether to apply swish to the normalised array.
      kernels: choice between Pallas kernels and XLA in training.
    """

    group_size: int
    momentum: float = 0.99
    frozen: bool = False
    swish: bool = False
    kernels: Kernels = Kernels()

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, excite: dict | None = None
    ) -> jax.Array:
        """Normalises x, applies swish if `swish` is set, and gates the channels.

        Args:
          x: (B, H, W, C) input.
          train: whether to normalise by the statistics of the groups, unless `frozen`.
          excite: weights of the gate, see `gate_of`; None for no gate.

        Returns:
          An array of x's shape and type.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, (channels,), jnp.float32
        )
        running_var = self.variable(
            "batch_stats", "var", jnp.ones, (channels,), jnp.float32
        )
        own = train and not self.frozen
        form = Form(self.group_size, self.swish, self.kernels if own else Kernels())
        if not own:
            statistics = (running_mean.value[None], running_var.value[None])
            return apply_statistics(
                x, scale, bias, excite, statistics=statistics, form=form
            )[0]
        out, statistics = normalise(x, scale, bias, excite, form)
        if not self.is_initializing():
            running_mean.value, running_var.value = self.moved(
                (running_mean.value, running_var.value), statistics
            )
        return out

    def moved(self, running: Statistics, batch: Statistics) -> Statistics:
        """Moves running statistics (C,) towards those of each group, to (G, C)."""
        kept, new = self.momentum, 1.0 - self.momentum
        mean, var = (
            kept * a[None] + new * b for a, b in zip(running, batch, strict=True)
        )
        return mean, var


def mean_over_groups(batch_stats: dict) -> dict:
    """Averages BatchNorm's running statistics (..., C) to (C,)."""
    return jax.tree.map(lambda x: x.mean(tuple(range(x.ndim - 1))), batch_stats)


def gate_of(means: jax.Array, excite: dict) -> jax.Array:
    """Returns the squeeze-excite gate of every channel (arXiv 1709.01507).

    Args:
      means: (B, C) arithmetic means over an image's pixels.
      excite: weights {"reduce", "expand"}: {"kernel", "bias"} of two dense layers, from
        C channels to few and back.

    Returns:
      (B, C) in (0, 1).
    """
    reduce, expand = excite["reduce"], excite["expand"]
    hidden = nn.swish(means @ reduce["kernel"] + reduce["bias"][None])
    return nn.sigmoid(hidden @ expand["kernel"] + expand["bias"][None])


def group_statistics(x: jax.Array, form: Form) -> Statistics:
    """Returns mean and variance (G, C), float32, of groups of images (B, H, W, C)."""
    group = form.group_size

    def powers(_: Arithmetic, x: jax.Array) -> Products:
        return (x,), (x, x)

    sums = image_sums(powers, [x], None, 2, form.kernels, images=group)
    return statistics_of(checkpoint_name(sums, "sums"), group * x.shape[1] * x.shape[2])


def statistics_of(sums: jax.Array, count: int) -> Statistics:
    """Returns mean and variance (G, C) of the sums of x and of its square, (G, 2, C).

    `count` is the number of pixels that were summed for each number.
    """
    mean, square = jnp.unstack(sums / count, axis=1)
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def affine_of(
    scale: jax.Array, bias: jax.Array, statistics: Statistics, batch: int
) -> jax.Array:
    """Returns factor and shift of a normalisation for each image, (B, 2, C)."""
    mean, var = statistics
    factor = scale[None] * lax.rsqrt(var + EPSILON)  # (G, C)
    return each_image([factor, bias[None] - mean * factor], batch)


def apply_statistics(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    excite: dict | None,
    *,
    statistics: Statistics,
    form: Form,
    name: str = "sums",
) -> tuple[jax.Array, jax.Array | None]:
    """Normalises x (B, H, W, C) by mean and variance, then activates and gates it.

    Args:
      x: (B, H, W, C) input.
      scale: (C,) scale.
      bias: (C,) bias.
      excite: weights of the gate, see `gate_of`; None for no gate.
      statistics: mean and variance, (G, C) each, of G equal parts of the batch.
      form: activation and kernels; the group size is not used.
      name: name of the sums for the gate, see `layers.rematerialised`.

    Returns:
      The result, like x, and the means (B, C) for the gate, or None without a gate.
    """
    affine = affine_of(scale, bias, statistics, x.shape[0])
    affine = lax.optimization_barrier(affine)  # computed once, not at every pixel
    visit = partial(activate, swish=form.swish)
    if excite is None:
        return image_map(visit, [x], affine, form.map_kernels), None

    def activated(
        arithmetic: Arithmetic, x: jax.Array, factor: jax.Array, shift: jax.Array
    ) -> Products:
        return ((visit(arithmetic, x, factor, shift),),)

    sums = image_sums(activated, [x], affine, 1, form.kernels)
    means = checkpoint_name(sums[:, 0], name) / (x.shape[1] * x.shape[2])
    gate = gate_of(means, excite)
    small = jnp.concatenate([affine, gate[:, None]], 1)
    # The second walk reads x again, so that no result of the first walk is kept.
    x, small = lax.optimization_barrier((x, small))

    def activate_and_gate(
        arithmetic: Arithmetic,
        x: jax.Array,
        factor: jax.Array,
        shift: jax.Array,
        gate: jax.Array,
    ) -> jax.Array:
        return visit(arithmetic, x, factor, shift) * gate

    return image_map(activate_and_gate, [x], small, form.map_kernels), means


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, excite: dict | None, form: Form
) -> tuple[jax.Array, Statistics]:
    """Normalises groups of images by their statistics, then activates and gates them.

    Args:
      x: (B, H, W, C) input.
      scale: (C,) scale.
      bias: (C,) bias.
      excite: weights of the gate, see `gate_of`; None for no gate.
      form: group size, activation and kernels.

    Returns:
      The result, of x's shape and type, and the groups' mean and variance, (G, C)
      float32. Only the result has a gradient.
    """
    return _forward(x, scale, bias, excite, form)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, excite: dict | None, form: Form
) -> tuple[tuple[jax.Array, Statistics], Residuals]:
    out, statistics, means = _apply_own(x, scale, bias, excite, form)
    return (out, statistics), (x, scale, bias, excite, statistics, means)


@partial(jax.jit, static_argnames="form")  # layers of one shape are traced once
def _apply_own(
    x: jax.Array, scale: jax.Array, bias: jax.Array, excite: dict | None, form: Form
) -> tuple[jax.Array, Statistics, jax.Array | None]:
    """Returns the result, the groups' statistics, and the means for the gate."""
    statistics = group_statistics(x, form)
    out, means = apply_statistics(
        x, scale, bias, excite, statistics=statistics, form=form
    )
    return out, statistics, means


@partial(jax.jit, static_argnames="form")
def _backward(
    form: Form, residuals: Residuals, cotangents: tuple[jax.Array, Statistics]
) -> tuple[jax.Array, jax.Array, jax.Array, dict | None]:
    x, cotangent = residuals[0], cotangents[0]
    small, to_scale, to_bias, to_excite = gradient_numbers(form, residuals, cotangent)
    # The second walk reads x and the cotangent again and keeps no result of the first.
    # Numbers that all pixels of an image share are computed once before it.
    x, cotangent, small = lax.optimization_barrier((x, cotangent, small))
    visit = partial(to_input, swish=form.swish)
    to_x = image_map(visit, [x, cotangent], small, form.map_kernels)
    return to_x, to_scale, to_bias, to_excite


def gradient_numbers(
    form: Form, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, dict | None]:
    """Takes the sums that the gradients of `normalise` need.

    Args:
      form: options of `normalise`.
      residuals: arrays of its forward pass.
      cotangent: (B, H, W, C) gradient of its result.

    Returns:
      The small numbers of `to_input`, (B, n, C), and the gradients to scale, bias and
      the gate's weights.
    """
    x, scale, bias, excite, (mean, var), means = residuals
    batch, pixels = len(x), x.shape[1] * x.shape[2]
    inverse = lax.rsqrt(var + EPSILON)  # (G, C)
    factor = scale[None] * inverse
    affine = each_image([mean, factor, jnp.broadcast_to(bias, mean.shape)], batch)

    def terms(
        arithmetic: Arithmetic,
        x: jax.Array,
        cotangent: jax.Array,
        mean: jax.Array,
        factor: jax.Array,
        bias: jax.Array,
    ) -> Products:
        x, value, slope = revisit(arithmetic, x, mean, factor, bias, form.swish)
        inner = cotangent * slope
        if excite is None:
            return (inner,), (inner, x)
        return (inner,), (inner, x), (slope,), (slope, x), (cotangent, value)

    # The gate's gradient needs the sums of every image.
    count, images = (2, form.group_size) if excite is None else (5, 1)
    affine = lax.optimization_barrier(affine)  # computed once, not at every pixel
    sums = image_sums(terms, [x, cotangent], affine, count, form.kernels, images=images)
    gate = to_mean = to_excite = None
    if excite is not None:
        gate, pull = jax.vjp(gate_of, means, excite)
        to_means, to_excite = pull(sums[:, 4])
        to_mean = to_means / pixels  # (B, C), the share of each pixel
        sums = gate[:, None] * sums[:, :2] + to_mean[:, None] * sums[:, 2:4]
        sums = add_images(sums, form.group_size)
    to_bias, to_scale = jnp.unstack(sums, axis=1)  # (G, C)
    to_scale *= inverse

    by_x, alone = (
        -factor * s / (form.group_size * pixels) for s in (to_scale, to_bias)
    )
    parts = [affine, each_image([by_x * inverse, alone], batch)]
    if gate is not None and to_mean is not None:
        parts += [affine[:, 1:2] * jnp.stack([gate, to_mean], 1)]
    small = jnp.concatenate(parts, 1)
    return small, to_scale.sum(0), to_bias.sum(0), to_excite


normalise.defvjp(_forward, _backward)


def each_image(numbers: list[jax.Array], batch: int) -> jax.Array:
    """Repeats each group's numbers, n arrays (G, C), for its images: (B, n, C)."""
    stacked = jnp.stack(numbers, 1)
    return jnp.repeat(stacked, batch // len(stacked), 0)
