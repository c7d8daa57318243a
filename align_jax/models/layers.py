"""Parts that towers share: random masks by virtual core, norms, and loops over blocks.

A run is defined in virtual cores of `pairs_per_core` pairs each, whatever the hardware
is. Random masks are drawn per virtual core, so the result does not depend on how many
virtual cores one device holds.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Body = Callable[[dict, jax.Array, Any], tuple[jax.Array, dict]]

KEPT = ("convolution", "sums")  # names of the arrays that "pointwise" keeps
SMALL = "statistics"  # name of small arrays that "pointwise" and "blocks" keep
REMATERIALISATIONS = ("none", "pointwise", "blocks", "stages")


def keep_mask(
    key: jax.Array, core_ids: jax.Array | None, shape: tuple[int, ...], rate: float
) -> jax.Array:
    """Draws a random mask whose rows depend only on the key and their virtual core.

    Args:
      key: random key of this step and layer.
      core_ids: (V,) global index of each virtual core in this batch.
      shape: (B, ...) shape of the mask; B is a multiple of V.
      rate: probability of False, in [0, 1].

    Returns:
      Boolean mask of `shape`, where True means keep.

    Raises:
      ValueError: `core_ids` is None.
    """
    draw = partial(jax.random.bernoulli, p=1.0 - rate)
    return _draw_by_core(draw, key, core_ids, shape)


def kept_indices(
    key: jax.Array, core_ids: jax.Array | None, shape: tuple[int, int], count: int
) -> jax.Array:
    """Draws a subset of L items for each example; it depends only on key and core.

    Args:
      key: random key of this step and layer.
      core_ids: (V,) global index of each virtual core in this batch.
      shape: (B, L) number of examples and of items; B is a multiple of V.
      count: number K of items to keep, at most L.

    Returns:
      (B, K) int32, different indices below L in ascending order.

    Raises:
      ValueError: `core_ids` is None.
    """
    order = jnp.argsort(_draw_by_core(jax.random.uniform, key, core_ids, shape))
    return jnp.sort(order[:, :count])


def _draw_by_core(
    draw: Callable[..., jax.Array],
    key: jax.Array,
    core_ids: jax.Array | None,
    shape: tuple[int, ...],
) -> jax.Array:
    """Draws an array of `shape` (B, ...), one key for the rows of each virtual core.

    `draw` is a function of a key and the argument `shape`.
    """
    if core_ids is None:
        raise ValueError("random masks are drawn by virtual core; core_ids is None")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, core_ids)
    per_core = (shape[0] // core_ids.shape[0], *shape[1:])
    return jax.vmap(lambda k: draw(k, shape=per_core))(keys).reshape(shape)


def survival_scales(
    key: jax.Array, core_ids: jax.Array | None, batch: int, rates: list[float]
) -> list[jax.Array]:
    """Draws stochastic depth (arXiv 1603.09382) for every example and block.

    Args:
      key: random key of this step.
      core_ids: (V,) global index of each virtual core in this batch.
      batch: number of examples B, a multiple of V.
      rates: n probabilities of dropping a block's output, in [0, 1).

    Returns:
      n arrays (B,) float32, 0 where an example skips a block, else 1 / (1 - rate).

    Raises:
      ValueError: `core_ids` is None.
    """
    return [
        keep_mask(jax.random.fold_in(key, block), core_ids, (batch,), rate).astype(
            jnp.float32
        )
        / (1.0 - rate)
        for block, rate in enumerate(rates)
    ]


def draw_survival(
    tower: nn.Module,
    rates: list[float],
    core_ids: jax.Array | None,
    batch: int,
    train: bool,
) -> list[jax.Array | None]:
    """Draws a tower's stochastic depth by the random key named "dropout".

    Args:
      tower: module whose config has `drop_rate`.
      rates: n probabilities of dropping a block's output.
      core_ids: (V,) global index of each virtual core in this batch.
      batch: number of examples B, a multiple of V.
      train: whether to use stochastic depth.

    Returns:
      n arrays (B,) of `survival_scales`; n times None if no output is ever dropped.
    """
    if not train or not tower.config.drop_rate:
        return [None] * len(rates)
    return [*survival_scales(tower.make_rng("dropout"), core_ids, batch, rates)]


def dropout(
    x: jax.Array, key: jax.Array | None, core_ids: jax.Array | None, rate: float
) -> jax.Array:
    """Applies inverted dropout to x (B, ...); returns x if `key` is None.

    Args:
      x: (B, ...) input; B is a multiple of V.
      key: random key of this step and layer, or None.
      core_ids: (V,) global index of each virtual core; None only without a key.
      rate: probability of a zero, below 1.
    """
    if key is None:
        return x
    return jnp.where(keep_mask(key, core_ids, x.shape, rate), x / (1.0 - rate), 0.0)


def rematerialised(
    block: type[nn.Module], choice: str, static_argnums: int | tuple[int, ...] = ()
) -> type[nn.Module]:
    """Returns a block's class with rematerialisation.

    Args:
      block: class of the block.
      choice: one of `REMATERIALISATIONS`, see `EfficientNetConfig`; for "none" and
        "stages" the class is `block` itself.
      static_argnums: arguments of the block's call that are no arrays; `self` is 0.
    """
    if choice not in ("pointwise", "blocks"):
        return block
    kept = KEPT if choice == "pointwise" else ()
    policy = jax.checkpoint_policies.save_only_these_names(SMALL, *kept)
    return nn.remat(block, static_argnums=static_argnums, policy=policy)


def gelu(x: jax.Array) -> jax.Array:
    """Applies the Gaussian error linear unit in float32 (arXiv 1606.08415).

    It uses the error function, as BERT does. `jax.nn.gelu` uses the complementary error
    function, which is twice the work.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def layer_norm(name: str, x: jax.Array, dtype: jnp.dtype, epsilon: float) -> jax.Array:
    """Applies layer normalisation to x (..., W) in float32; casts to `dtype`.

    Args:
      name: name of the submodule with the scale and the bias.
      x: (..., W) input.
      dtype: number type of the result.
      epsilon: number that is added to the variance.
    """
    norm = nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)


def rows(x: jax.Array) -> jax.Array:
    """Merges the axes (B, L) of an array into one.

    The gradient of a kernel then sums over one axis, for which XLA transposes no array.
    """
    return x.reshape(-1, *x.shape[2:])


def gathered(block: type[nn.Module], tower: nn.Module) -> type[nn.Module]:
    """Returns a block's class that gathers its parameters from the devices.

    It is `block` itself if `tower` has no placement or is being initialised.
    """
    if tower.placement is None or tower.is_initializing():
        return block
    return nn.map_variables(block, "params", tower.placement.gather)


def split_batch(x: jax.Array, tower: nn.Module) -> jax.Array:
    """Constrains x (B, ...) to the batch sharding if the parameters are sharded."""
    return tower.placement.split(x) if tower.placement else x


def block_names(prefix: str, count: int) -> list[str]:
    """Returns the names of the parameters of a tower's blocks, in order."""
    return [f"{prefix}{index:02}" for index in range(count)]


def run_equal_blocks(
    tower: nn.Module,
    names: Sequence[str],
    make_block: Callable[..., nn.Module],
    x: jax.Array,
    each: Sequence[Any],
    *shared: Any,
) -> jax.Array:
    """Runs a tower's equal blocks one after the other inside its compact method.

    They are compiled as one body if the config's `scan` is set.

    Args:
      tower: module that holds the blocks' variables, which are parameters only.
      names: submodule names of n blocks, at least one.
      make_block: constructor of a block with all fields set but `name` and `parent`.
      x: input of the first block, (B, ...); every output has this shape.
      each: n arguments of a block's call after x, one for each block.
      shared: further arguments of every block's call.

    Returns:
      The output of the last block.
    """
    if tower.config.scan and not tower.is_initializing():
        body = make_block(parent=None)

        def run(variables: dict, x: jax.Array, own: Any) -> Any:
            return body.apply(variables, x, own, *shared), {}

        return scan_blocks(tower, names, run, x, each)
    for name, own in zip(names, each, strict=True):
        x = split_batch(make_block(name=name)(x, own, *shared), tower)
    return x


def scan_blocks(
    tower: nn.Module, names: Sequence[str], body: Body, x: jax.Array, each: Any
) -> jax.Array:
    """Runs a tower's equal blocks one after the other, compiled as one body.

    Variables that a block changes are stored in the tower if their collection is
    mutable.

    Args:
      tower: module that holds the blocks' variables under the blocks' names.
      names: submodule names of n blocks, at least one.
      body: function of (a block's variables, x, the block's tree of `each`) that
        returns the block's output and the variables that it changed.
      x: input of the first block, (B, ...); every output has this shape.
      each: n trees of arrays of the same shapes, one for each block.

    Returns:
      The output of the last block.
    """
    variables = [
        {kind: tree[name] for kind, tree in tower.variables.items()} for name in names
    ]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *zip(variables, each, strict=True)
    )

    def run(x: jax.Array, block: tuple[dict, Any]) -> tuple[jax.Array, dict]:
        variables, own = block
        x, changed = body(variables, x, own)
        return split_batch(x, tower), changed

    x, changed = jax.lax.scan(run, x, stacked)
    for kind in filter(tower.is_mutable_collection, changed):
        for index, name in enumerate(names):
            own = jax.tree.map(operator.itemgetter(index), changed[kind])
            tower.put_variable(kind, name, own)
    return x
