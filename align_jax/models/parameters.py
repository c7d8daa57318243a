"""Maps another codebase's tensors to our parameter tree and back, bit for bit."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from align_jax.errors import InputError
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


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the other codebase.

    Attributes:
      name: name in the other codebase.
      path: path in our variables.
      shape: shape in the other codebase.
      axes: permutation of the axes into our order, before the reshape to our shape.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def variable_shapes(
    config: ModelConfig | ClassifierConfig,
) -> dict[Path, tuple[int, ...]]:
    """Returns the shapes of a model's parameters and statistics by path."""
    model = config.build()
    create = partial(model.init, train=False)
    variables = jax.eval_shape(create, jax.random.key(0), *first_inputs(model))
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

    variables = jax.eval_shape(create, jax.random.key(0))
    return {
        (kind, name, *path): leaf.shape
        for (kind, *path), leaf in flatten(variables).items()
    }


def first_inputs(model: DualEncoder | Classifier) -> list[np.ndarray]:
    """Returns the arrays that a model is initialised with."""
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


def check_names(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Compares tensors' names and shapes.

    Raises:
      InputError: tensors are missing, not known or of another shape. The message names
        them (with both shapes) and the source.
    """
    problems = [
        f"{name} {wanted[name]} is missing" for name in wanted if name not in found
    ]
    problems += [
        f"{name} {found[name]} is not known" for name in found if name not in wanted
    ]
    problems += [
        f"{name} is {tuple(found[name])}, wanted {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if problems:
        rest = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{source} does not fit: {'; '.join(problems[:5])}{rest}")


def to_ours(
    tensors: list[Tensor],
    found: Mapping[str, np.ndarray],
    shapes: Mapping[Path, tuple[int, ...]],
) -> dict[Path, np.ndarray]:
    """Converts the other codebase's arrays, by name, to our shapes, by path."""
    return {
        tensor.path: found[tensor.name]
        .transpose(tensor.axes)
        .reshape(shapes[tensor.path])
        for tensor in tensors
    }


def to_theirs(
    tensors: list[Tensor], ours: Mapping[Path, np.ndarray]
) -> dict[str, np.ndarray]:
    """Undoes `to_ours`."""
    theirs = {}
    for tensor in tensors:
        permuted = tuple(tensor.shape[axis] for axis in tensor.axes)
        back = np.argsort(tensor.axes)
        array = np.asarray(ours[tensor.path]).reshape(permuted).transpose(back)
        theirs[tensor.name] = array.copy(order="C")
    return theirs
