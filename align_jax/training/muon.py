"""Muon's orthogonal steps for kernels of any number of axes.

A step is the momentum of a matrix's gradient, made orthogonal by Newton and Schulz's
iteration (https://kellerjordan.github.io/posts/muon/), as Optax computes it.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, MuonState, scale_by_muon

ITERATIONS = 5  # of Newton and Schulz, as in Optax
RMS = 0.2  # root mean square of a step at a learning rate of 1


def orthogonal_steps(momentum: float) -> optax.GradientTransformation:
    """Returns Muon without weight decay, at a learning rate of 1.

    Steps of matrices of all shapes have the root mean square `RMS`, which AdamW's steps
    have, too (arXiv 2502.16982, section 2.2). So AdamW's learning rate and weight decay
    fit Muon.

    Args:
      momentum: decay of the gradient's moving average.
    """
    muon = scale_by_muon(
        ns_steps=ITERATIONS, beta=momentum, weight_dimension_numbers=matrix_axes
    )
    return optax.chain(
        optax.GradientTransformation(muon.init, partial(_update, muon)),
        optax.stateless(lambda steps, _: jax.tree.map(_scaled, steps)),
    )


def _update(
    muon: optax.GradientTransformation,
    gradients: Any,
    state: MuonState,
    params: Any = None,
) -> tuple[Any, MuonState]:
    """Updates by Optax's Muon, with its iterations as a loop.

    Optax unrolls iterations with equal coefficients, so that each is compiled, and
    loops over a table of coefficients. The state keeps the form of equal ones, which
    checkpoints have.
    """
    repeated = jnp.tile(state.ns_coeffs, (ITERATIONS, 1))
    looped = state._replace(ns_coeffs=repeated)
    updates, after = muon.update(gradients, looped, params)
    return updates, after._replace(ns_coeffs=state.ns_coeffs)


def is_matrix(name: str, x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether a parameter is a matrix from its inputs to its outputs.

    Kernels are, except those of depthwise convolutions, (H, W, 1, C), which hold a
    small filter for each channel. A table of embeddings does not count: only the rows
    of a batch's words have gradients.

    Args:
      name: path of the parameter, joined by "/".
      x: the parameter, or anything of its shape.
    """
    depthwise = x.ndim == 4 and x.shape[2] == 1
    return name.split("/")[-1] == "kernel" and x.ndim > 1 and not depthwise


def matrix_axes(kernels: Any) -> Any:
    """Returns which axes of each kernel of a tree are its inputs and its outputs."""
    return jax.tree.map(_axes, kernels)


def _axes(x: jax.Array) -> MuonDimensionNumbers:
    cut = _inputs(x.shape)
    return MuonDimensionNumbers(tuple(range(cut)), tuple(range(cut, x.ndim)))


def _inputs(shape: tuple[int, ...]) -> int:
    """Returns the number of a kernel's first axes that are inputs.

    A convolution (H, W, C, C') has one axis of outputs. Attention's kernels have the
    axis of the heads in the outputs, (C, heads, C'), or in the inputs, (heads, C, C').
    They are cut where the matrix is closest to a square.
    """

    def shorter_side(cut: int) -> int:
        return min(math.prod(shape[:cut]), math.prod(shape[cut:]))

    return 3 if len(shape) == 4 else max(range(1, len(shape)), key=shorter_side)


def _scaled(step: jax.Array) -> jax.Array:
    """Scales an orthogonal step, whose root mean square is 1 / sqrt(longer side)."""
    cut = _inputs(step.shape)
    sides = math.prod(step.shape[:cut]), math.prod(step.shape[cut:])
    return RMS * math.sqrt(max(sides)) * step
