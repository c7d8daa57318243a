"""Batch normalisation fused with the activation and the gate that follow it.

EfficientNet's training is bound by memory traffic: nearly all of it is the wide arrays
around its normalisations. Here the backward pass keeps a convolution's output and what
is small beside it, and computes the rest again. Each direction walks the output twice:
once for sums of every image and channel, once to write its result.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from align_jax.kernels import Kernels
from align_jax.models.image_sums import image_sums

EPSILON = 1e-3  # added to the variance


@dataclasses.dataclass(frozen=True)
class Form:
    """What `normalise` computes.

    Attributes:
      group_size: images that share statistics; the batch is a multiple of it.
      swish: x * sigmoid(x) of what was normalised.
      kernels: what computes the sums.
    """

    group_size: int
    swish: bool
    kernels: Kernels


class BatchNorm(nn.Module):
    """Batch normalisation with statistics over groups of `group_size` images.

    In training the batch (B, H, W, C) is seen as (B / group_size, group_size, H, W, C)
    and each group is normalised by its own mean and variance. Statistics are float32
    whatever the compute type.

    The running statistics (C,) become (groups, C) in training, one step of each group;
    `mean_over_groups` makes them (C,) again. Taking the mean here would be a collective
    in every layer wherever the groups lie on several devices.

    Attributes:
      group_size: images in a group; B must be a multiple of it in training.
      momentum: decay of the running statistics (TensorFlow's meaning).
      frozen: use the running statistics in training too and leave them as they are.
      swish: activate what was normalised.
      kernels: what computes the sums in training.
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
        """Normalises x (B, H, W, C), and gates it by `excite`, see `gate_of`.

        Returns:
          An array of the same shape and type.
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
            return apply_statistics(x, scale, bias, excite, statistics, form)[0]
        out, statistics = normalise(x, scale, bias, excite, form)
        if not self.is_initializing():
            for running, batch in zip(
                (running_mean, running_var), statistics, strict=True
            ):
                kept = self.momentum * running.value
                running.value = kept + (1.0 - self.momentum) * batch  # (G, C)
        return out


def mean_over_groups(batch_stats: dict) -> dict:
    """Running statistics (..., C) as BatchNorm leaves them, by their means, (C,)."""
    return jax.tree.map(lambda x: x.mean(tuple(range(x.ndim - 1))), batch_stats)


def gate_of(means: jax.Array, excite: dict) -> jax.Array:
    """Squeeze-excite's gate of every channel (arXiv 1709.01507).

    Args:
      means: (B, C) over an image's places.
      excite: {"reduce", "expand"}: {"kernel", "bias"} of two dense layers, from C
        channels to few and back.

    Returns:
      (B, C) in (0, 1).
    """
    reduce, expand = excite["reduce"], excite["expand"]
    hidden = nn.swish(means @ reduce["kernel"] + reduce["bias"])
    return nn.sigmoid(hidden @ expand["kernel"] + expand["bias"])


def group_statistics(x: jax.Array, form: Form) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of groups of images (B, H, W, C): (G, C) each, float32."""
    sums = image_sums(lambda x: (x, jnp.square(x)), [x], [], 2, form.kernels)
    places = form.group_size * x.shape[1] * x.shape[2]
    sums = checkpoint_name(sums, "sums")
    mean, square = (_group_sum(s, form.group_size) / places for s in sums)
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def apply_statistics(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    excite: dict | None,
    statistics: tuple[jax.Array, jax.Array],
    form: Form,
) -> tuple[jax.Array, jax.Array | None]:
    """Normalises, activates and gates x (B, H, W, C) by mean and variance, (G, C).

    Returns:
      The result, and the means (B, C) that the gate was made of.
    """
    mean, var = statistics
    factor = scale * lax.rsqrt(var + EPSILON)  # (G, C)
    affine = [_each(v, len(x)) for v in (factor, bias - mean * factor)]

    def activate(x, factor, shift):
        out = x * factor + shift
        return nn.swish(out) if form.swish else out

    if excite is None:
        return activate(x, *map(_spread, affine)).astype(x.dtype), None
    sums = image_sums(lambda *xs: (activate(*xs),), [x], affine, 1, form.kernels)
    means = checkpoint_name(sums[0], "sums") / (x.shape[1] * x.shape[2])
    gate = gate_of(means, excite)
    # The second walk reads x again: what the first one computed is not kept.
    x, gate = lax.optimization_barrier((x, gate))
    return (activate(x, *map(_spread, affine)) * _spread(gate)).astype(x.dtype), means


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, excite: dict | None, form: Form
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Normalises groups of images by their own statistics, then activates and gates.

    Args:
      x: (B, H, W, C).
      scale: (C,).
      bias: (C,).
      excite: the gate's weights, see `gate_of`; None for no gate.
      form: the rest.

    Returns:
      An array like x, and the groups' mean and variance, (G, C) float32. Only the
      former has a gradient.
    """
    return _forward(x, scale, bias, excite, form)[0]


def _forward(x, scale, bias, excite, form):
    out, statistics, means = _apply_own(x, scale, bias, excite, form)
    return (out, statistics), (x, scale, bias, excite, statistics, means)


@partial(jax.jit, static_argnames="form")  # layers of one shape are traced once
def _apply_own(x, scale, bias, excite, form):
    """Normalises by the groups' own statistics; returns them, too."""
    statistics = group_statistics(x, form)
    out, means = apply_statistics(x, scale, bias, excite, statistics, form)
    return out, statistics, means


@partial(jax.jit, static_argnames="form")
def _backward(form, residuals, cotangents):
    x, scale, bias, excite, (mean, var), means = residuals
    cotangent, batch, places = cotangents[0], len(x), x.shape[1] * x.shape[2]
    inverse = lax.rsqrt(var + EPSILON)  # (G, C)
    small = [_each(v, batch) for v in (inverse, -mean * inverse, scale, bias)]

    def revisit(x, inverse, offset, scale, bias):
        """What was normalised, and the activation's value and slope there."""
        normal = x * inverse + offset
        value = normal * scale + bias
        return normal, *(_swish_and_slope(value) if form.swish else (value, 1.0))

    def terms(x, cotangent, *small):
        normal, value, slope = revisit(x, *small)
        inner = cotangent * slope
        if excite is None:
            return inner, inner * normal
        return inner, inner * normal, slope, slope * normal, cotangent * value

    count = 2 if excite is None else 5
    sums = image_sums(terms, [x, cotangent], small, count, form.kernels)
    gate = to_mean = to_excite = None
    if excite is not None:
        gate, pull = jax.vjp(gate_of, means, excite)
        to_means, to_excite = pull(sums.pop())
        to_mean = to_means / places  # (B, C), a share of it for every place
        of_gated, of_mean = sums[:2], sums[2:]
        sums = [gate * a + to_mean * b for a, b in zip(of_gated, of_mean, strict=True)]
    to_bias, to_scale = (_group_sum(s, form.group_size) for s in sums)  # (G, C)

    # The second walk reads x and the cotangent again, nothing that the first computed.
    x, cotangent, to_bias, to_scale = lax.optimization_barrier(
        (x, cotangent, to_bias, to_scale)
    )
    normal, _, slope = revisit(x.astype(jnp.float32), *map(_spread, small))
    to_out = cotangent.astype(jnp.float32)
    if gate is not None:
        to_out = to_out * _spread(gate) + _spread(to_mean)
    means = [
        _spread(_each(s / (form.group_size * places), batch))
        for s in (to_bias, to_scale)
    ]
    to_x = to_out * slope - means[0] - normal * means[1]
    to_x *= _spread(_each(scale * inverse, batch))
    return to_x.astype(x.dtype), to_scale.sum(0), to_bias.sum(0), to_excite


normalise.defvjp(_forward, _backward)


def _swish_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Swish of x and its derivative."""
    share = nn.sigmoid(x)
    return x * share, share * (1.0 + x * (1.0 - share))


def _group_sum(x: jax.Array, group_size: int) -> jax.Array:
    """Sums of groups of images (B, C), (G, C)."""
    return x.reshape(-1, group_size, x.shape[-1]).sum(1)


def _each(x: jax.Array, batch: int) -> jax.Array:
    """Numbers of channels (C,) or of groups (G, C) for each image, (B, C)."""
    groups = jnp.atleast_2d(x)
    return jnp.repeat(groups, batch // len(groups), 0)


def _spread(x: jax.Array) -> jax.Array:
    """An image's numbers (B, C) for all its places, (B, 1, 1, C)."""
    return x[:, None, None]
