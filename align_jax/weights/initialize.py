"""The first state of a run: from its checkpoint, another run, weights, or the seed."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.config import CHECKPOINTS
from align_jax.errors import InputError
from align_jax.input.tokenizer import Tokenizer
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import HALVES, ModelConfig
from align_jax.models.parameters import Path, tower_shapes, variable_shapes
from align_jax.models.towers import TowerConfig
from align_jax.training.checkpoint import (
    Checkpoints,
    list_steps,
    read_whole,
    split_source,
)
from align_jax.training.kept_programs import KeptPrograms
from align_jax.training.local_checkpoint import LocalCheckpoints
from align_jax.training.run_config import RunConfig
from align_jax.training.schedule_free import map_points
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import TrainState, abstract_state, create_state
from align_jax.weights.folder import Weights
from align_jax.weights.source import open_weights
from align_jax.weights.tensors import check_names


def first_state(
    config: RunConfig,
    plan: StepPlan,
    tokenizer: Tokenizer | None,
    workdir: str,
    kept: KeptPrograms | None = None,
) -> tuple[int, TrainState]:
    """Makes the state that a run starts with; prints its source and changes no file.

    The first of these sources that exists is used:
      1. the newest whole checkpoint of this run, in the workdir or on its hosts;
      2. a checkpoint of another run, `config.start_from`;
      3. weights of a model or of towers, `config.initialize`;
      4. the seed.

    Args:
      config: config of the run.
      plan: plan of the run's step.
      tokenizer: tokenizer of the run; None for a run without texts.
      workdir: path or URL of the run's folder.
      kept: the run's kept programs; None to compile the program of the fourth source.

    Returns:
      (number of steps taken, state after them).

    Raises:
      InputError: the source is missing, damaged, or does not fit; the message names
        the difference.
    """

    def restore(run: str, step: int) -> tuple[int, TrainState]:
        return step, _restore(run, step, config, plan, tokenizer)

    steps = list_steps(workdir)
    if config.checkpoint.local_folder:
        identity = config.identity(tokenizer)
        local = LocalCheckpoints(workdir, config.checkpoint, identity)
        with contextlib.closing(local):
            found = local.restore(abstract_state(plan), max(steps, default=0))
        if found is not None:
            print(f"Continuing {workdir} after step {found[0]}, from local files.")
            return found
    if steps:
        step, state = read_whole(workdir, restore)
        print(f"Continuing {workdir} after step {step}.")
        return step, state
    if config.start_from is not None:
        run, step = split_source(config.start_from)
        if not step < config.total_steps:
            raise InputError(
                f"config.start_from is after step {step}, but config.total_steps is"
                f" {config.total_steps}"
            )
        print(f"Starting from {run} after step {step}.")
        return read_whole(os.path.join(run, CHECKPOINTS, str(step)), restore)
    arrays = read_initial(config, tokenizer)
    return 0, place_arrays(create_state(plan, kept), arrays)


def starts_from_seed(config: RunConfig, workdir: str) -> bool:
    """Returns whether `first_state` will make the state from the seed alone."""
    initial = dataclasses.asdict(config.initialize).values()
    sources = (config.checkpoint.local_folder, config.start_from, *initial)
    return not list_steps(workdir) and not any(sources)


def _restore(
    run: str,
    step: int,
    config: RunConfig,
    plan: StepPlan,
    tokenizer: Tokenizer | None,
) -> TrainState:
    """Reads a state of a run, this or another one, onto the devices of this run."""
    checkpoints = Checkpoints(run, config.checkpoint, config.identity(tokenizer))
    with contextlib.closing(checkpoints):
        return checkpoints.restore(step, abstract_state(plan))


def read_initial(
    config: RunConfig, tokenizer: Tokenizer | None
) -> dict[Path, np.ndarray]:
    """Reads the weights that `config.initialize` names.

    Args:
      config: config of the run.
      tokenizer: tokenizer of the run; None for a run without texts.

    Returns:
      Arrays by path. Variables that start at random are absent.

    Raises:
      InputError: a source holds no weights, lacks the tower, or has another size or
        vocabulary; or the run has no tower of that name. The message names the
        difference.
    """
    sources, model = config.initialize, config.model
    if sources.model is not None:
        weights = open_weights(_exact(sources.model))
        if weights.kind != config.kind:
            raise InputError(
                f"config.initialize.model is {sources.model}, which is one"
                f" {weights.kind}; wanted a {config.kind}"
            )
        _check(weights.variables, variable_shapes(model), sources.model)
        _check_pixels(weights, model, sources.model)
        for name, tower in model.towers.items():
            _check_form(getattr(weights.config, name), tower, name, sources.model)
        _check_vocabulary(weights, tokenizer, sources.model)
        return dict(weights.variables)
    arrays: dict[Path, np.ndarray] = {}
    for kind in ("image_tower", "text_tower"):
        source = getattr(sources, kind)
        if source is None:
            continue
        if kind not in model.towers:
            raise InputError(f"config.initialize.{kind} is set; a classifier has none")
        arrays |= _read_tower(kind, source, model, tokenizer)
    return arrays


def _read_tower(
    kind: str,
    source: str,
    model: ModelConfig | ClassifierConfig,
    tokenizer: Tokenizer | None,
) -> dict[Path, np.ndarray]:
    """Returns the arrays of one tower, after checks; see `read_initial`."""
    weights = open_weights(_exact(source))
    own = {path: a for path, a in weights.variables.items() if path[1] == kind}
    if not own:
        raise InputError(
            f"config.initialize.{kind} is {source}, which is one {weights.kind}"
        )
    tower = model.towers[kind]
    wanted = tower_shapes(kind, tower)
    optional = tower.optional_modules
    own = {p: a for p, a in own.items() if p in wanted or p[2] not in optional}
    _check(own, wanted, source)
    _check_form(getattr(weights.config, kind, weights.config), tower, kind, source)
    if kind == "text_tower":
        _check_vocabulary(weights, tokenizer, source)
    else:
        _check_pixels(weights, model, source)
    return own


def _exact(source: str) -> str:
    """Returns the path of a run's newest checkpoint, and any other source unchanged.

    So a damaged checkpoint ends the command, and no older one is taken for it.
    """
    steps = list_steps(source)
    return os.path.join(source, CHECKPOINTS, str(steps[-1])) if steps else source


def _check(
    arrays: Mapping[Path, np.ndarray],
    wanted: Mapping[Path, tuple[int, ...]],
    source: str,
) -> None:
    """Raises InputError if the arrays' paths and shapes are not the wanted ones."""
    found = {".".join(path): array.shape for path, array in arrays.items()}
    check_names(
        found, {".".join(path): shape for path, shape in wanted.items()}, source
    )


def _check_form(theirs: Any, own: TowerConfig, where: str, source: str) -> None:
    """Raises InputError if the config `theirs` differs in one of the `form_fields`.

    With the same parameters, the two towers would compute different features.
    """
    for name in own.form_fields:
        wanted, found = getattr(theirs, name, None), getattr(own, name)
        if wanted != found:
            raise InputError(
                f"config.model.{where}.{name} is {found}, but {source} was trained with"
                f" {wanted}"
            )


def _check_pixels(
    weights: Weights, model: ModelConfig | ClassifierConfig, source: str
) -> None:
    """Raises InputError if the weights were trained on pixels of another scale.

    A tower without a model takes pixels in [-1, 1].
    """
    for field in ("pixel_mean", "pixel_std"):
        theirs = getattr(weights.config, field, HALVES)
        if (own := getattr(model, field)) != theirs:
            raise InputError(
                f"config.model.{field} is {own}, but {source} was trained with {theirs}"
            )


def _check_vocabulary(
    weights: Weights, tokenizer: Tokenizer | None, source: str
) -> None:
    """Raises InputError if the weights were trained with other ids of equal texts."""
    if tokenizer is None:
        return
    theirs = weights.tokenizer
    if theirs is None or theirs.digest != tokenizer.digest:
        raise InputError(
            f"config.vocabulary has {tokenizer} and is not the vocabulary of {source},"
            f" which has {theirs}; give the tokenizer that lies in that folder"
        )


def place_arrays(state: TrainState, arrays: Mapping[Path, np.ndarray]) -> TrainState:
    """Returns a state with some variables replaced.

    If the state has a moving average, the average becomes a copy of all new variables.
    A schedule-free optimizer starts from the new parameters, too.

    Args:
      state: state on its devices.
      arrays: new values by path; variables without one keep their value.
    """
    if not arrays:
        return state

    def chosen(path: tuple, leaf: jax.Array) -> jax.Array:
        array = arrays.get(tuple(key.key for key in path))
        return leaf if array is None else jax.device_put(array, leaf.sharding)

    variables = jax.tree_util.tree_map_with_path(chosen, state.own_variables)
    average = state.average and jax.tree.map(jnp.copy, variables)
    params = variables["params"]
    return state.replace(
        params=params,
        batch_stats=variables["batch_stats"],
        optimizer=map_points(
            lambda _: jax.tree.map(jnp.copy, params), state.optimizer, params
        ),
        average=average,
    )
