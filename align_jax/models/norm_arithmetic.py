"""Elementwise operations of batch normalisation and swish, and their derivatives.

Each is a function of an `Arithmetic` and of float32 arrays that broadcast: first
pixels, then the numbers that an image's pixels of a channel share.
"""

import jax
import jax.numpy as jnp

from align_jax.kernels.walk_programs import Arithmetic


def activate(
    arithmetic: Arithmetic,
    x: jax.Array,
    factor: jax.Array,
    shift: jax.Array,
    swish: bool = True,
) -> jax.Array:
    """Normalises x, and applies swish if `swish` is set."""
    out = arithmetic.multiply_add(x, factor, shift)
    return out * arithmetic.sigmoid(out) if swish else out


def revisit(
    arithmetic: Arithmetic,
    x: jax.Array,
    mean: jax.Array,
    factor: jax.Array,
    bias: jax.Array,
    swish: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x minus its mean, and the activation's value and slope there."""
    x = x - mean
    value = arithmetic.multiply_add(x, factor, bias)
    if not swish:
        return x, value, jnp.float32(1.0)
    share = arithmetic.sigmoid(value)
    value *= share  # the swish of the former value
    return x, value, arithmetic.multiply_add(value, 1.0 - share, share)


def gated_to_input(
    arithmetic: Arithmetic,
    x: jax.Array,
    cotangent: jax.Array,
    mean: jax.Array,
    factor: jax.Array,
    bias: jax.Array,
    by_x: jax.Array,
    alone: jax.Array,
    by_cotangent: jax.Array,
    constant: jax.Array,
    gate: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gated swish of the normalised x, and `to_input`."""
    x, value, slope = revisit(arithmetic, x, mean, factor, bias)
    to_out = arithmetic.multiply_add(cotangent, by_cotangent, constant)
    return value * gate, _join(arithmetic, x, slope, to_out, by_x, alone)


def to_input(
    arithmetic: Arithmetic,
    x: jax.Array,
    cotangent: jax.Array,
    mean: jax.Array,
    factor: jax.Array,
    bias: jax.Array,
    by_x: jax.Array,
    alone: jax.Array,
    *gated: jax.Array,
    swish: bool = True,
) -> jax.Array:
    """Returns the gradient to x, from the numbers of `gradient_numbers`."""
    x, _, slope = revisit(arithmetic, x, mean, factor, bias, swish)
    to_out = cotangent * factor
    if gated:
        by_cotangent, constant = gated
        to_out = arithmetic.multiply_add(cotangent, by_cotangent, constant)
    return _join(arithmetic, x, slope, to_out, by_x, alone)


def _join(
    arithmetic: Arithmetic,
    x: jax.Array,
    slope: jax.Array,
    to_out: jax.Array,
    by_x: jax.Array,
    alone: jax.Array,
) -> jax.Array:
    """Adds the gradients to x directly and through its mean and variance."""
    rest = arithmetic.multiply_add(x, by_x, alone)
    return arithmetic.multiply_add(to_out, slope, rest)
