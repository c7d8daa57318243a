"""Checks which parameters of a run's model its optimizer chooses by patterns."""

import re

import jax
import jax.numpy as jnp

from align_jax.errors import InputError
from align_jax.models.parameters import variable_shapes
from align_jax.training.muon import is_matrix
from align_jax.training.optimizer import check_patterns, trainable
from align_jax.training.run_config import RunConfig


def check_parameters(config: RunConfig) -> None:
    """Checks the optimizer's patterns against the model's parameters.

    Raises:
      InputError: a pattern fits no parameter, or one of `muon_matrices` no matrix; or a
        frozen tower's BatchNorm statistics would move.
    """
    if not any(config.optimizer.patterns().values()):
        return  # and spare the trace of the model
    shapes = {
        "/".join(path[1:]): jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in variable_shapes(config.model).items()
        if path[0] == "params"
    }
    try:
        check_patterns(config.optimizer, shapes)
    except ValueError as error:
        raise InputError(f"config.{error}") from error
    matrices = [name for name, x in shapes.items() if is_matrix(name, x)]
    for pattern in config.optimizer.muon_matrices or ():
        if not any(re.search(pattern, name) for name in matrices):
            raise InputError(
                f"config.optimizer.muon_matrices has the pattern {pattern!r}, which"
                f" fits no matrix; they are named like {matrices[0]}"
            )
    moving = trainable(config.optimizer, {name: 0 for name in shapes})
    for tower, its in config.model.towers.items():
        moves = any(moving[name] for name in shapes if name.startswith(f"{tower}/"))
        if not moves and its.freezing_field:
            raise InputError(
                f"config.optimizer.frozen keeps the whole {tower.replace('_', ' ')},"
                " but its BatchNorm statistics would move; set"
                f" config.model.{tower}.{its.freezing_field}"
            )
