"""Trains a model: from records to checkpoints, results and a report."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from clu.metric_writers import MetricWriter
from jax.sharding import Mesh

from align_jax import places
from align_jax.config import write_config
from align_jax.devices.exchange import gather, wait_for_all
from align_jax.devices.mesh import batch_position, global_batches, make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.embed.embedder import Embedder
from align_jax.errors import NonFiniteError
from align_jax.evaluation.runner import Evaluator, make_evaluators
from align_jax.input.pipeline import TrainBatches
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.training_data import TrainingData, open_training
from align_jax.progress import doing
from align_jax.report.run_kinds import check_workdir, fill_defaults
from align_jax.report.run_page import publish, show_finished
from align_jax.runs import workdir as folder
from align_jax.runs.hangs import HangWatch, set_aside_hangs
from align_jax.runs.lost_time import Timesheet
from align_jax.runs.pace import Pace
from align_jax.runs.preemption import Notice
from align_jax.runs.profiles import Profile
from align_jax.runs.provenance import add_provenance
from align_jax.runs.results import collect_results
from align_jax.runs.telemetry import StepLog, open_writers
from align_jax.runs.trackers.reporting import Trackers
from align_jax.train_loop import TrainLoop
from align_jax.training.checkpoint import Checkpoints, set_aside_later
from align_jax.training.kept_programs import KeptPrograms
from align_jax.training.local_checkpoint import LocalCheckpoints
from align_jax.training.parameter_choice import check_parameters
from align_jax.training.phase_programs import PhasePrograms
from align_jax.training.run_config import RunConfig
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import read_run_config
from align_jax.weights.initialize import first_state, starts_from_seed
from align_jax.weights.vocabulary import check_copy, keep_copy

RESTORING_LINE = "making or restoring the state"


def train(
    fields: dict[str, Any],
    workdir: str,
    begun: float | None = None,
    trackers: Sequence[MetricWriter] = (),
) -> None:
    """Starts or continues a training run, and writes its results and report.

    If the workdir holds the finished run already, its results are only printed, and a
    report that is missing is drawn.

    Args:
      fields: the literal config of a training run; its `run` is a key of `TRAINING`.
      workdir: path or URL of the run's folder, which nothing else may use.
      begun: time from which this start counts, in Unix seconds; None is now.
      trackers: writers beside those of `config.trackers`, called from a thread.

    Raises:
      InputError: bad fields, data or workdir, before the step compiles; later, too many
        pairs that cannot be used, a missing score, or a failure to write.
      NonFiniteError: a loss, temperature or array of the state is not finite; it names
        the step and the newest checkpoint.
      Preempted: the run received a notice to stop; its state is saved.
    """
    times = Timesheet(begun)
    reuse_memory()  # before anything asks JAX for its devices
    with Notice() as notice, contextlib.ExitStack() as stack:
        config = read_run_config(fields)
        check_workdir(workdir, fields)
        if folder.is_finished(workdir):
            print(f"{workdir} holds this run, finished: nothing to do.")
            show_finished(workdir, fill_defaults(fields), workdir)
            return
        folder.check_path(workdir)
        inputs = _check_inputs(config, trackers, stack)
        profile = Profile(workdir, config.profile_steps, config.profile_process)
        stack.enter_context(profile)
        # Nothing but the lock is written until all input is checked.
        lock = stack.enter_context(folder.locked_workdir(workdir))
        check_workdir(workdir, fields)  # it was not locked before
        programs, tokenizer = inputs.programs, inputs.tokenizer
        plan = programs.plans[0]
        kept = KeptPrograms(workdir, config, plan.mesh)
        # With several processes, a first collective would not wait for a slower one.
        if jax.process_count() == 1 and starts_from_seed(config, workdir):
            abstract_state(plan)  # traced here, not in two threads at once
            programs.prepare(0, kept)
        with times.doing("restore"), doing(RESTORING_LINE, folder.leads()):
            start, state = first_state(config, plan, tokenizer, workdir, kept)
        check_copy(workdir, tokenizer)
        fields = fill_defaults(fields)
        _prepare_folder(workdir, fields, tokenizer, start)
        # A tracker may take long to end; a checkpoint is complete before.
        stack.enter_context(inputs.tracking.reporting(workdir, fields))
        checkpoints, local = _open_checkpoints(config, workdir, tokenizer, start, stack)
        read = _read_batches(config, inputs.data, tokenizer, start, plan.mesh)
        stack.callback(read.close)
        stack.enter_context(_explaining(workdir, read, checkpoints))
        batches = global_batches(read, plan.mesh)
        embedder = Embedder(
            plan.model, tokenizer, config.evaluation_preprocess, plan.mesh
        )
        feeds = inputs.tracking.feeds
        lines, writer, past = open_writers(workdir, start, times.begun, feeds)
        # A step is counted beside the first steps, see `PhasePrograms.first_work`.
        pace = Pace(programs.pairs_after(start), {}, past, times)
        log = StepLog(lines, writer, pace, start, config.total_steps)
        stack.callback(log.end_bar)
        stack.enter_context(HangWatch(workdir, config.hang_seconds, pace))
        loop = TrainLoop(
            config=config,
            state=state,
            programs=programs,
            read=read,
            batches=batches,
            evaluators=inputs.evaluators,
            embedder=embedder,
            checkpoints=checkpoints,
            local=local,
            writer=writer,
            log=log,
            pace=pace,
            profile=profile,
            lock=lock,
            notice=notice,
            times=times,
        )
        if config.evaluates(start) and not _evaluated(past, start):
            loop.evaluate(start)
        loop.run(start, kept)

        local.remove()
        kept.remove()
        lock.check()
        results = collect_results(workdir) if folder.leads() else {}
        embedder.load(loop.state.variables)
        plots = publish(workdir, fields, results, inputs.evaluators, embedder)
        inputs.tracking.show(config.total_steps, plots)


class Inputs(NamedTuple):
    """Inputs of a run, opened and checked before anything compiles.

    Attributes:
      programs: programs of the step in each phase, not yet compiled.
      tokenizer: the vocabulary; None for a run without texts.
      evaluators: evaluators by name.
      tracking: the run's trackers.
      data: the training datasets.
    """

    programs: PhasePrograms
    tokenizer: Tokenizer | None
    evaluators: dict[str, Evaluator]
    tracking: Trackers
    data: TrainingData


def _check_inputs(
    config: RunConfig,
    trackers: Sequence[MetricWriter],
    stack: contextlib.ExitStack,
) -> Inputs:
    """Opens and checks the inputs of a run; the stack closes the programs."""
    programs = PhasePrograms(config, make_mesh(config.fsdp))
    stack.callback(programs.close)
    inputs = Inputs(
        programs=programs,
        tokenizer=config.make_tokenizer(),
        evaluators=make_evaluators(config.evaluators),
        tracking=Trackers(config.trackers, trackers),
        data=open_training(config.input, config.batch_phases, jax.process_count()),
    )
    config.check_data()
    check_parameters(config)
    return inputs


def _open_checkpoints(
    config: RunConfig,
    workdir: str,
    tokenizer: Tokenizer | None,
    start: int,
    stack: contextlib.ExitStack,
) -> tuple[Checkpoints, LocalCheckpoints]:
    """Opens the checkpoints of the workdir and of this machine; the stack closes them.

    Local ones that are later than `start` steps are removed.
    """
    identity = config.identity(tokenizer)
    checkpoints = Checkpoints(workdir, config.checkpoint, identity)
    checkpoints.open()
    stack.callback(checkpoints.close)  # finishes a save, even after an error
    local = LocalCheckpoints(workdir, config.checkpoint, identity)
    stack.callback(local.close)
    local.remove_later(start)
    return checkpoints, local


def _read_batches(
    config: RunConfig,
    data: TrainingData,
    tokenizer: Tokenizer | None,
    start: int,
    mesh: Mesh,
) -> TrainBatches:
    """Begins to read this process's part of the batches after `start` steps."""
    return TrainBatches(
        data,
        tokenizer,
        config.seed,
        start_step=start,
        process_index=batch_position(mesh),
        process_count=jax.process_count(),
    )


def _prepare_folder(
    workdir: str, fields: dict[str, Any], tokenizer: Tokenizer | None, start: int
) -> None:
    """Writes what describes this start; sets aside files that do not count for it.

    Args:
      workdir: path or URL of the run's folder.
      fields: the run's literal config, with its defaults.
      tokenizer: the vocabulary; None for a run without texts.
      start: number of steps taken before.
    """
    if folder.leads():
        write_config(workdir, fields)
        keep_copy(workdir, tokenizer)
        add_provenance(workdir)
        set_aside_later(workdir, start)
        set_aside_hangs(workdir)
    wait_for_all()  # until damaged checkpoints are set aside


@contextlib.contextmanager
def _explaining(
    workdir: str, batches: TrainBatches, checkpoints: Checkpoints
) -> Iterator[None]:
    """Adds the newest checkpoint to a NonFiniteError, and writes the step's pairs."""
    try:
        yield
    except NonFiniteError as error:
        # Batches count from 0, steps from 1: step n uses batch n - 1.
        _write_pairs(workdir, error.step, batches.describe(error.step - 1))
        saved, advice = checkpoints.describe_newest(), error.advice
        message = f"{error}; {saved}: {advice} in a new workdir"
        raise NonFiniteError(message, error.step) from error


def _write_pairs(workdir: str, step: int, pairs: list[dict]) -> None:
    """Writes a JSON Lines file of the pairs that this process gave to a step."""
    name = f"nonfinite_step_{step}_process_{jax.process_index()}.jsonl"
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    places.write_text(os.path.join(workdir, name), lines)


def _evaluated(past: list[dict[str, float]], step: int) -> bool:
    """Returns whether the run's metrics hold scores of a step.

    Args:
      past: the metric lines, see `open_writers`; the first process's count.
      step: number of a step.
    """
    rows = (row for row in past if row["step"] == step)
    found = any(name.startswith("eval/") for row in rows for name in row)
    return bool(gather(np.bool_(found))[0])
