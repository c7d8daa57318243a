"""Pretraining: from records to a trained dual encoder, its results and its report."""

import os
from typing import Any

import jax

from align_jax import workdir as folder
from align_jax.checkpoint import Checkpoints
from align_jax.config import read_config
from align_jax.embedding import Embedder
from align_jax.errors import InputError
from align_jax.evaluate import make_evaluators, run_evaluators
from align_jax.initialize import place_towers, read_towers
from align_jax.input_pipeline import open_training, train_batches
from align_jax.optimizer import make_optimizer, make_schedule
from align_jax.pretrain_config import PretrainConfig
from align_jax.report import write_report
from align_jax.results import collect_results, print_results
from align_jax.sharding import global_batch, make_mesh
from align_jax.telemetry import StepLog, open_writer
from align_jax.train_step import create_state, make_train_step


def train(fields: dict[str, Any], workdir: str) -> None:
    """Runs or continues the pretraining run of a workdir, to its results and report.

    The order is fixed: draw a batch, take the step, log, evaluate, save.

    Args:
      fields: the literal config, see `PretrainConfig`.
      workdir: folder of this run alone.

    Raises:
      InputError: bad input, found before anything compiles.
      FloatingPointError: the loss left the finite numbers; names the step.
    """
    config = read_config(PretrainConfig, fields)
    mesh = make_mesh()
    _check_devices(config, mesh.size)
    folder.check(workdir, fields)
    if folder.is_finished(workdir):
        print(f"{workdir} holds this run, finished: nothing to do.")
        print_results(workdir)
        return
    tokenizer = config.make_tokenizer()
    evaluators = make_evaluators(config.evaluators)
    open_training(config.input, config.batch_size, jax.process_count())
    towers = read_towers(config.initialize, config.model, tokenizer)
    schedule = make_schedule(config.optimizer, config.total_steps)
    folder.claim(workdir, fields)  # nothing is written before all input was seen

    model = config.make_model()
    optimizer = make_optimizer(config.optimizer, schedule)
    state = create_state(
        model,
        optimizer,
        config.seed,
        config.input.preprocess.image_size,
        config.model.text_tower.max_tokens,
        mesh,
    )
    step_fn = make_train_step(
        model, optimizer, config.loss, config.virtual_cores, config.seed, mesh
    )
    embedder = Embedder(model, tokenizer, config.input.preprocess, mesh)

    checkpoints = Checkpoints(workdir, config.checkpoint, config.identity(tokenizer))
    start = checkpoints.latest_step() or 0
    if start:
        state = checkpoints.restore(start, state)
        print(f"Continuing {workdir} after step {start}.")
    else:
        state = place_towers(state, towers)
    batches = train_batches(
        config.input,
        tokenizer,
        config.batch_size,
        config.seed,
        start,
        jax.process_index(),
        jax.process_count(),
    )
    writer = open_writer(workdir, start)

    log = StepLog(writer, schedule, start, config.total_steps, config.batch_size)

    def evaluate(step: int) -> None:
        embedder.load(state.params, state.batch_stats)
        writer.write_scalars(step, dict(run_evaluators(evaluators, embedder)))
        log.restart_clock()

    if start == 0:
        evaluate(0)
    for step in range(start + 1, config.total_steps + 1):
        batch = global_batch(next(batches), mesh)
        state, metrics = step_fn(state, batch)
        log.add(step, metrics)
        last = step == config.total_steps
        if last or step % config.log_every_steps == 0:
            log.flush()
        if last or step % config.evaluate_every_steps == 0:
            evaluate(step)
        if last or step % config.checkpoint.every_steps == 0:
            log.flush()  # a checkpoint never runs ahead of the metrics
            checkpoints.save(step, state)
    log.close()
    checkpoints.close()

    results = collect_results(workdir)
    embedder.load(state.params, state.batch_stats)
    write_report(workdir, fields, results, evaluators, embedder)
    folder.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
    print_results(workdir)


def _check_devices(config: PretrainConfig, devices: int) -> None:
    if config.virtual_cores % devices:
        raise InputError(
            f"config.virtual_cores is {config.virtual_cores}, which does not divide"
            f" over {devices} devices; the global batch is split at virtual cores"
        )
