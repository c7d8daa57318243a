"""Towers that start from weights instead of random parameters."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.convert.source import open_weights
from align_jax.errors import InputError
from align_jax.models.dual_encoder import ModelConfig
from align_jax.parameters import Path, check_names
from align_jax.pretrain_config import InitialTowers
from align_jax.tokenizer import Tokenizer
from align_jax.train_step import TrainState
from align_jax.weights import tower_shapes

TOP = ("top", "top_norm")  # left out where the model has none


def read_towers(
    sources: InitialTowers, model: ModelConfig, tokenizer: Tokenizer
) -> dict[Path, np.ndarray]:
    """Reads the towers that a run starts from.

    Args:
      sources: where they are.
      model: the run's.
      tokenizer: the run's.

    Returns:
      Their arrays by path; none for a tower without a source.

    Raises:
      InputError: a source is no weights, lacks the tower, or is of another size or
        vocabulary; names what differs.
    """
    arrays: dict[Path, np.ndarray] = {}
    for kind in ("image_tower", "text_tower"):
        source = getattr(sources, kind)
        if source is None:
            continue
        weights = open_weights(source)
        own = {path: a for path, a in weights.variables.items() if path[1] == kind}
        if not own:
            raise InputError(
                f"config.initialize.{kind} is {source}, which is one {weights.kind}"
            )
        wanted = tower_shapes(kind, getattr(model, kind))
        own = {p: a for p, a in own.items() if p in wanted or p[2] not in TOP}
        check_names(
            {".".join(path): array.shape for path, array in own.items()},
            {".".join(path): shape for path, shape in wanted.items()},
            source,
        )
        if kind == "text_tower":
            theirs = Tokenizer(weights.vocabulary, model.text_tower.max_tokens, source)
            if theirs.digest != tokenizer.digest:
                raise InputError(
                    f"config.vocabulary has {tokenizer.size} tokens and is not the"
                    f" vocabulary of {source}, which has {theirs.size}"
                )
        arrays |= own
    return arrays


def place_towers(state: TrainState, arrays: Mapping[Path, np.ndarray]) -> TrainState:
    """Puts arrays by path in the place of a state's variables, on its devices."""

    def chosen(path: tuple, leaf: jax.Array) -> jax.Array:
        array = arrays.get(tuple(key.key for key in path))
        return leaf if array is None else jax.device_put(array, leaf.sharding)

    variables = jax.tree_util.tree_map_with_path(chosen, state.own_variables)
    average = state.average and jax.tree.map(jnp.copy, variables)
    return state.replace(**variables, average=average)
