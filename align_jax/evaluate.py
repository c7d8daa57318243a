"""Evaluation: of a state inside training, or of a finished run by itself."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from align_jax import workdir as folder
from align_jax.checkpoint import Checkpoints
from align_jax.config import choose, read_config
from align_jax.embedding import Embedder
from align_jax.errors import InputError
from align_jax.evaluators import EVALUATORS
from align_jax.optimizer import make_optimizer, make_schedule
from align_jax.pretrain_config import PretrainConfig
from align_jax.results import print_results
from align_jax.sharding import make_mesh
from align_jax.train_step import create_state


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a checkpoint.

    Attributes:
      run: "evaluate".
      checkpoint: workdir of a pretraining run; its newest checkpoint is used.
      evaluators: name -> {"kind": a key of EVALUATORS, and that evaluator's fields}.
    """

    run: str
    checkpoint: str
    evaluators: dict


def make_evaluators(described: dict[str, dict]) -> dict[str, Any]:
    """Builds evaluators from {name: {"kind": ..., fields}} and reads their data.

    Raises:
      InputError: an unknown kind or field, or missing data.
    """
    evaluators = {}
    for name, fields in described.items():
        where = f"config.evaluators.{name}"
        if "kind" not in fields:
            raise InputError(f"{where} lacks the field 'kind', one of {[*EVALUATORS]}")
        kind = choose(EVALUATORS, fields["kind"], f"{where}.kind")
        rest = {key: value for key, value in fields.items() if key != "kind"}
        evaluators[name] = kind(read_config(kind.Config, rest, where))
    return evaluators


def run_evaluators(
    evaluators: dict[str, Any], embedder: Embedder
) -> Iterator[tuple[str, float]]:
    """Yields ("eval/<evaluator>/<score>", value) of all evaluators."""
    for name, evaluator in evaluators.items():
        for score, value in evaluator.run(embedder):
            yield f"eval/{name}/{score}", value


def evaluate(fields: dict[str, Any], workdir: str) -> None:
    """Evaluates the newest checkpoint of a run into a workdir of its own.

    Args:
      fields: the literal config, see `EvaluateConfig`.
      workdir: folder of this evaluation alone.

    Raises:
      InputError: bad input, found before anything compiles.
    """
    config = read_config(EvaluateConfig, fields)
    folder.check(workdir, fields)
    if folder.is_finished(workdir):
        print(f"{workdir} holds this evaluation, finished: nothing to do.")
        print_results(workdir)
        return
    embedder, step = load_embedder(config.checkpoint)
    evaluators = make_evaluators(config.evaluators)
    folder.claim(workdir, fields)
    results = {"step": step, **dict(run_evaluators(evaluators, embedder))}
    folder.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
    print_results(workdir)


def load_embedder(run: str) -> tuple[Embedder, int]:
    """Loads the newest checkpoint of a pretraining run.

    Args:
      run: the run's workdir.

    Returns:
      The embedder with the checkpoint's parameters, and its step.

    Raises:
      InputError: there is no run or no checkpoint, or it does not fit.
    """
    path = os.path.join(run, folder.CONFIG_FILE)
    if not tf.io.gfile.exists(path):
        raise InputError(
            f"config.checkpoint is {run!r}, which holds no {folder.CONFIG_FILE};"
            " give the workdir of a pretraining run"
        )
    config = read_config(PretrainConfig, folder.read_json(path), path)
    tokenizer = config.make_tokenizer()
    checkpoints = Checkpoints(run, config.checkpoint, config.identity(tokenizer))
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"{run} holds no checkpoint yet")
    mesh, model = make_mesh(), config.make_model()
    state = create_state(
        model,
        make_optimizer(
            config.optimizer, make_schedule(config.optimizer, config.total_steps)
        ),
        config.seed,
        config.input.preprocess.image_size,
        config.model.text_tower.max_tokens,
        mesh,
    )
    state = checkpoints.restore(step, state)
    checkpoints.close()
    embedder = Embedder(model, tokenizer, config.input.preprocess, mesh)
    embedder.load(state.params, state.batch_stats)
    return embedder, step
