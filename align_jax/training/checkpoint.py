"""Checkpoints, written in the background by Orbax.

A checkpoint appears only when it is complete. It holds the state, the identity of the
run that it fits (the model's config and the vocabulary's hash) and a record, with which
a reader checks both.
"""

import contextlib
import dataclasses
import functools
import operator
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from align_jax import places
from align_jax.config import CHECKPOINTS, as_json
from align_jax.errors import InputError, NonFiniteError, missing_package
from align_jax.ranges import Count
from align_jax.training import integrity
from align_jax.training.checkpoint_record import (
    IDENTITY,
    RECORD,
    STATE,
    agree,
    all_see,
    check_scores,
    leaving_undeleted,
    make_record,
    read_record,
    reading,
)
from align_jax.training.integrity import DamagedCheckpointError
from align_jax.training.train_state import TrainState

T = TypeVar("T")
SET_ASIDE = ".damaged"  # ending of the name of a checkpoint that a run went back behind

# Devices with copies of an array each write a part of at least this many bytes. JAX
# compiles a program for each shape of part: 10 s for a small model by Orbax's default.
SMALLEST_PART = 4 * 2**20

OTHER_FORM = (
    "holds a state of another form, as another optimizer's or with another average"
)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which of them are kept.

    Attributes:
      every_steps: steps between two checkpoints; the last step always has one.
      keep: number of newest checkpoints to keep. Older ones are deleted, unless
        `keep_every_steps` or `best_metric` keeps them.
      keep_every_steps: step number whose multiples keep their checkpoints as well; None
        keeps no others.
      best_metric: score, such as "eval/coco/t2i_recall@1", by which the best checkpoint
        is kept as well; every evaluation then has a checkpoint. None keeps no best one.
      lowest_is_best: whether the lowest score is the best.
      local_folder: path of a folder on a disk of each host, or in its memory, for local
        checkpoints, see `local_checkpoint`; empty for none.
      local_every_steps: steps between two local checkpoints.
    """

    every_steps: Count = 1000
    keep: Count = 3
    keep_every_steps: Count | None = None
    best_metric: str | None = None
    lowest_is_best: bool = False
    local_folder: str = ""
    local_every_steps: Count = 100

    def __post_init__(self) -> None:
        if self.local_folder:
            places.local_path(self.local_folder)


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints."""

    def __init__(
        self, workdir: str, config: CheckpointConfig, identity: Mapping[str, Any]
    ) -> None:
        """Names the folder; neither reads nor writes it.

        Args:
          workdir: path or URL of the run's folder.
          config: schedule of writing, and the checkpoints to keep.
          identity: fields that a checkpoint must match to be restored, see
            `RunConfig.identity`.
        """
        self._directory = _directory(workdir)
        self._config = config
        self._identity = as_json(identity)
        self._best = config.best_metric

    def open(self) -> None:
        """Opens or creates the folder for writing, which `save` would do otherwise.

        Raises:
          InputError: the folder cannot be written, or a stored score is damaged.
        """
        for step in _list_steps(self._directory) if self._best else ():
            check_scores(os.path.join(self._directory, str(step)))
        assert self._manager

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        config = self._config
        kept: list[policies.PreservationPolicy] = [policies.LatestN(config.keep)]
        if config.keep_every_steps is not None:
            kept.append(policies.EveryNSteps(config.keep_every_steps))
        score = None
        if self._best is not None:
            score = operator.itemgetter(self._best)
            best = policies.BestN(
                get_metric_fn=score,
                reverse=config.lowest_is_best,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            create=not all_see(self._directory),
            save_root_metadata=False,  # there is none, and all processes would wait
            best_fn=score,  # without it, no scores are stored
            preservation_policy=policies.AnyPreservationPolicy(kept),
        )
        with places.writing(self._directory):
            return ocp.CheckpointManager(
                self._directory, options=options, handler_registry=_handlers()
            )

    def save(
        self, step: int, state: TrainState, scores: dict[str, float] | None = None
    ) -> None:
        """Starts writing a state and returns before all of it is written.

        Nothing is written if the newest checkpoint has this step or a later one. Older
        checkpoints that the config does not keep are deleted.

        Args:
          step: number of steps taken; it names the checkpoint.
          state: state to write.
          scores: scores of this state's evaluation, or None if it was not evaluated.
            Only the score `best_metric` is stored, to find the best checkpoint. The
            scores must pass `check_scores`.

        Raises:
          InputError: the storage refuses this checkpoint, or the background writing of
            the one before it failed.
          NonFiniteError: the state holds NaN or infinity; nothing is written.
        """
        arrays, bad = integrity.measure(state)
        if bad:
            names = integrity.list_names(bad)
            found = f"NaN or infinity is in {names} after step {step}"
            raise NonFiniteError(found, step, "lower the learning rate")
        metrics = {self._best: scores[self._best]} if scores and self._best else None
        record = make_record(arrays, self._identity, metrics)
        items = ocp.args.Composite(
            **{
                STATE: ocp.args.PyTreeSave(state),
                IDENTITY: ocp.args.JsonSave(self._identity),
                RECORD: ocp.args.JsonSave(record),
            }
        )
        self.wait()
        with places.writing(self._directory):
            self._manager.save(step, args=items, metrics=metrics)

    def check_scores(self, scores: dict[str, float]) -> None:
        """Raises InputError if the config has a `best_metric` that the scores lack."""
        if self._best is not None and self._best not in scores:
            raise InputError(
                f"config.checkpoint.best_metric is {self._best!r}; the scores are"
                f" {', '.join(scores)}"
            )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state with the shapes, types and shardings of `abstract`.

        Args:
          step: step of a checkpoint that exists, see `list_steps`.
          abstract: state of `jax.ShapeDtypeStruct`s, see `abstract_state`.

        Raises:
          DamagedCheckpointError: the checkpoint is incomplete, changed, or not finite.
          InputError: the checkpoint belongs to another model or vocabulary, its state
            has another form, for example that of another optimizer, or the storage
            refuses to read it.
        """
        path = os.path.join(self._directory, str(step))
        with agree(path):
            record = read_record(path, self._identity)
            if record and (differing := integrity.differing_forms(record, abstract)):
                raise InputError(f"{path} {OTHER_FORM}: {'; '.join(differing[:3])}")
            arrays = ocp.checkpoint_utils.construct_restore_args(abstract)
            items = ocp.args.PyTreeRestore(abstract, restore_args=arrays)
            # A manager's `restore` would wait for a process whose reading failed.
            with reading(path, "" if record else OTHER_FORM):
                handler = ocp.PyTreeCheckpointHandler()
                state = handler.restore(epath.Path(path) / STATE, args=items)
        integrity.check(state, record, path)
        return state

    def describe_newest(self) -> str:
        """Waits for the writing, and names the newest checkpoint for a message."""
        with contextlib.suppress(InputError):  # then the one before it is the newest
            self.wait()
        steps = _list_steps(self._directory)
        if not steps:
            return "no checkpoint is written yet"
        return f"the last checkpoint, of step {steps[-1]}, is whole"

    def wait(self) -> None:
        """Waits until all is written; raises InputError if the storage refuses it."""
        if self._is_open():
            with places.writing(self._directory), leaving_undeleted():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then frees the writer's threads and memory."""
        if self._is_open():
            self.wait()
            with places.writing(self._directory):
                self._manager.close()

    def _is_open(self) -> bool:
        return "_manager" in vars(self)


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Returns the handlers that write and read each part of a checkpoint."""
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SMALLEST_PART
    )
    state = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (jax.Array, arrays)
        )
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for action in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add(STATE, action, state)
    for action in (ocp.args.JsonSave, ocp.args.JsonRestore):
        for item in (IDENTITY, RECORD):
            registry.add(item, action, ocp.JsonCheckpointHandler())
    return registry


def _directory(workdir: str) -> str:
    """Returns the path or URL of a run's checkpoints.

    Raises:
      InputError: the package is missing with which Orbax asks the bucket.
    """
    directory = os.path.join(places.resolve(workdir), CHECKPOINTS)
    if directory.startswith("gs://"):
        try:
            import google.cloud.storage  # noqa: F401
        except ImportError as error:
            reason = missing_package("google")
            raise InputError(f"{directory}: {reason}") from error
    return directory


def list_steps(workdir: str) -> list[int]:
    """Returns the steps of a run's complete checkpoints, ascending; changes no file."""
    return _list_steps(_directory(workdir))


def _list_steps(directory: str) -> list[int]:
    there = places.exists(directory)
    return sorted(ocp.utils.checkpoint_steps(directory)) if there else []


def set_aside_later(workdir: str, step: int) -> None:
    """Renames the checkpoints of later steps than `step` to STEP.damaged.

    A run that went back behind damaged checkpoints writes these steps again.
    """
    for later in list_steps(workdir):
        if later > step:
            path = os.path.join(places.resolve(workdir), CHECKPOINTS, str(later))
            places.move(path, path + SET_ASIDE)


def split_source(source: str) -> tuple[str, int]:
    """Splits a checkpoint's path into the run's workdir and the step.

    Args:
      source: path or URL RUN/checkpoints/STEP, or RUN for the newest checkpoint.

    Raises:
      InputError: the run has no checkpoint, or none of that step.
    """
    workdir, step = places.resolve(source), None
    folder, name = os.path.split(workdir.rstrip("/"))
    if name.isdigit() and os.path.basename(folder) == CHECKPOINTS:
        workdir, step = os.path.dirname(folder), int(name)
    steps = list_steps(workdir)
    if not steps or step not in (None, *steps):
        raise InputError(f"{source} has no checkpoint; {workdir} has those of {steps}")
    return workdir, steps[-1] if step is None else step


def read_whole(source: str, read: Callable[[str, int], T]) -> T:
    """Reads the checkpoint that a source names, or a run's newest whole one.

    If newer checkpoints of the run are damaged, a warning on stderr names them and the
    one that is read.

    Args:
      source: path or URL RUN/checkpoints/STEP, or RUN for the newest whole checkpoint.
      read: function that reads a checkpoint, given the run's workdir and the step.

    Returns:
      The result of `read`.

    Raises:
      InputError: the run has no checkpoint, or none of that step; or the named
        checkpoint or all checkpoints are damaged; or any other error of `read`.
    """
    workdir, first = split_source(source)
    named = workdir != places.resolve(source)
    others = [step for step in reversed(list_steps(workdir)) if step != first]
    failures: list[str] = []
    for step in (first, *others):
        try:
            found = read(workdir, step)
        except DamagedCheckpointError as error:
            failures.append(str(error))
            continue
        whole = os.path.join(workdir, CHECKPOINTS, str(step))
        if failures and named:
            raise InputError(f"{failures[0]}; {whole} is whole")
        if failures and jax.process_index() == 0:
            damage = "; ".join(failures)
            print(f"warning: {damage}; {whole} is taken instead", file=sys.stderr)
        return found
    raise InputError(f"{failures[0]}; {workdir} has no checkpoint that is whole")
