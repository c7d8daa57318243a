"""The parameters to evaluate with under schedule-free AdamW (arXiv 2405.15682).

The method has three points. The training's parameters are y, where gradients are taken.
The steps move z, which is in the optimizer's state. The average x is for evaluation. As
y = b1 x + (1 - b1) z, the average is computed from the two others and never stored. A
frozen parameter has no z, and its x is its y.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import optax
from optax.contrib import ScheduleFreeState

from align_jax.models.parameters import Path


def evaluation_point(optimizer: Any, params: dict) -> dict:
    """Returns the parameters x to evaluate with, from the parameters y.

    Without a schedule-free optimizer, they are the parameters themselves.

    Args:
      optimizer: state of the optimizer.
      params: parameters of the same step.
    """
    leaves = jax.tree.leaves(optimizer, is_leaf=_is_state)
    state = next(filter(_is_state, leaves), None)
    if state is None:
        return params
    return jax.tree.map(
        lambda z, y: y if _is_masked(z) else average(y, z, state.b1),
        state.z,
        params,
        is_leaf=_is_masked,
    )


def average(y: Any, z: Any, b1: Any) -> Any:
    """Returns the average x of a parameter, from its y, its z and the weight b1.

    Only scalars are divided, because a compiler may divide an array by multiplying it
    with a reciprocal. So x has the same bits whether JAX or NumPy computes it.
    """
    return y + (1.0 - b1) / b1 * (y - z)


def map_points(change: Callable[[dict], dict], optimizer: Any, params: dict) -> Any:
    """Returns an optimizer's state with other values of z, if it is schedule-free.

    Args:
      change: function from the tree of all z to the tree of their new values. A frozen
        parameter, which has no z, is in the first tree itself.
      optimizer: state of the optimizer.
      params: parameters of the same step.
    """

    def changed(state: Any) -> Any:
        if not _is_state(state):
            return state
        filled = jax.tree.map(
            lambda z, y: y if _is_masked(z) else z, state.z, params, is_leaf=_is_masked
        )
        z = jax.tree.map(
            lambda z, new: z if _is_masked(z) else new,
            state.z,
            change(filled),
            is_leaf=_is_masked,
        )
        return state._replace(z=z)

    return jax.tree.map(changed, optimizer, is_leaf=_is_state)


def stored_points(
    paths: Collection[Path], variables: Iterable[Path]
) -> dict[Path, tuple[Path, Path]]:
    """Returns the paths in a checkpoint of (z, b1), by the path of a parameter.

    Parameters without a z are absent; all are, if the optimizer was not schedule-free.

    Args:
      paths: paths of all arrays of the checkpoint, see `array_paths`.
      variables: paths of the model's variables, such as ("params", "stem", "kernel").
    """
    for path in paths:
        if path[0] == "optimizer" and path[-1] == "weight_sum":
            state, names = path[:-1], [v for v in variables if v[0] == "params"]
            found = {name: (*state, "z", *name[1:]) for name in names}
            return {n: (z, (*state, "b1")) for n, z in found.items() if z in paths}
    return {}


def _is_state(x: Any) -> bool:
    return isinstance(x, ScheduleFreeState)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
