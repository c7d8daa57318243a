"""Shapes and paths of a model's variables, and the inputs that initialise them."""

from collections.abc import Mapping
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from align_jax.devices.compiling import tracing
from align_jax.models.classifier import Classifier, ClassifierConfig
from align_jax.models.dual_encoder import DualEncoder, ModelConfig
from align_jax.models.towers import TowerConfig, build_tower

Path = tuple[str, ...]  # ("params", "image_tower", "stem", "kernel")

# Inputs for initialisation. A module's parameters do not depend on their sizes.
FIRST_INPUTS = {
    "images": np.zeros((1, 64, 64, 3), np.float32),
    "tokens": np.ones((1, 2), np.int32),
}
FIRST_CORES = np.zeros(1, np.int32)
TOWER_INPUTS = {"image_tower": "images", "text_tower": "tokens"}


def variable_shapes(
    config: ModelConfig | ClassifierConfig,
) -> dict[Path, tuple[int, ...]]:
    """Returns the shapes of a model's parameters and statistics by path.

    Nothing is computed. A path is like ("params", "image_tower", "stem", "kernel").
    """
    return dict(_trace_model(config))


@lru_cache(maxsize=16)  # tracing takes seconds, and a run asks several times
def _trace_model(
    config: ModelConfig | ClassifierConfig,
) -> dict[Path, tuple[int, ...]]:
    model = config.build()
    create = partial(model.init, train=False)
    with tracing():
        variables = jax.eval_shape(create, key_shape(), *first_inputs(model))
    return {path: leaf.shape for path, leaf in flatten(variables).items()}


def tower_shapes(name: str, config: TowerConfig) -> dict[Path, tuple[int, ...]]:
    """Returns the shapes of one tower's variables by path, as a model names them.

    Args:
      name: a key of `TOWERS`.
      config: the tower's config.
    """
    tower = build_tower(name, config, jnp.float32)
    inputs = FIRST_INPUTS[TOWER_INPUTS[name]]

    def create(key: jax.Array) -> dict:
        return tower.init(key, inputs, FIRST_CORES, False)

    variables = jax.eval_shape(create, key_shape())
    return {
        (kind, name, *path): leaf.shape
        for (kind, *path), leaf in flatten(variables).items()
    }


def key_shape() -> jax.ShapeDtypeStruct:
    """Returns the shape of a random key; JAX would compile programs to make one."""
    shape: jax.ShapeDtypeStruct = jax.eval_shape(partial(jax.random.key, 0))
    return shape


def first_inputs(model: DualEncoder | Classifier) -> list[np.ndarray]:
    """Returns arrays to initialise a model with: its `inputs`, then the core ids."""
    return [*(FIRST_INPUTS[name] for name in model.inputs), FIRST_CORES]


def flatten(tree: Mapping) -> dict[Path, jax.Array]:
    """Returns the leaves of a tree of mappings by path."""
    leaves, _ = tree_flatten_with_path(dict(tree))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[Path, np.ndarray]) -> dict:
    """Returns the tree of mappings that has the given leaves."""
    tree: dict = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
