"""Checkpoints, written in the background by Orbax.

A checkpoint appears only when it is complete. It holds the state and the identity of
the run that it fits: the model's config and the vocabulary's hash.
"""

import dataclasses
import operator
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from align_jax import places
from align_jax.config import as_json, differing_fields
from align_jax.errors import InputError, one_line
from align_jax.training.train_state import TrainState

FOLDER = "checkpoints"  # in a workdir

# Devices that hold copies of an array each write a part of it, if the parts have at
# least this many bytes. JAX compiles a program for every shape of part, so with Orbax's
# default (any size) the first checkpoint of a small model takes 10 s or more.
SMALLEST_PART = 4 * 2**20


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
    """

    every_steps: int = 1000
    keep: int = 3
    keep_every_steps: int | None = None
    best_metric: str | None = None
    lowest_is_best: bool = False

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints."""

    def __init__(
        self, workdir: str, config: CheckpointConfig, identity: Mapping[str, Any]
    ) -> None:
        """Opens or creates the folder.

        Args:
          workdir: path or URL of the run's folder.
          config: schedule of writing, and the checkpoints to keep.
          identity: fields that a checkpoint must match to be restored, see
            `RunConfig.identity`.

        Raises:
          InputError: the folder cannot be written.
        """
        self._directory = _directory(workdir)
        self._identity = as_json(identity)
        self._best = config.best_metric
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
            best_fn=score,  # without it, no scores are stored
            preservation_policy=policies.AnyPreservationPolicy(kept),
        )
        with places.writing(self._directory):
            self._manager = ocp.CheckpointManager(
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
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            identity=ocp.args.JsonSave(self._identity),
        )
        metrics = {self._best: scores[self._best]} if scores and self._best else None
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
          InputError: the checkpoint belongs to another model or vocabulary, or its
            state has another form, for example that of another optimizer.
        """
        path = os.path.join(self._directory, str(step))
        found = self._manager.restore(
            step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
        )
        differing = differing_fields(found["identity"], self._identity, "checkpoint")
        if differing:
            raise InputError(f"{path} does not fit this run: {'; '.join(differing)}")
        arrays = ocp.checkpoint_utils.construct_restore_args(abstract)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(abstract, restore_args=arrays)
        )
        try:
            return self._manager.restore(step, args=items)["state"]
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{path} holds a state of another form, as another optimizer's or with"
                f" another average: {one_line(error)[:300]}"
            ) from error

    def wait(self) -> None:
        """Waits until all is written; raises InputError if the storage refuses it."""
        with places.writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then frees the writer's threads and memory."""
        with places.writing(self._directory):
            self._manager.close()


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
        registry.add("state", action, state)
    for action in (ocp.args.JsonSave, ocp.args.JsonRestore):
        registry.add("identity", action, ocp.JsonCheckpointHandler())
    return registry


def _directory(workdir: str) -> str:
    """Returns the path or URL of a run's checkpoints.

    Raises:
      InputError: the package is missing with which Orbax asks the bucket.
    """
    directory = os.path.join(places.resolve(workdir), FOLDER)
    if directory.startswith("gs://"):
        try:
            import google.cloud.storage  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"{directory} needs the package google-cloud-storage:"
                " pip install -e '.[gs]' -c constraints.txt"
            ) from error
    return directory


def list_steps(workdir: str) -> list[int]:
    """Returns the steps of a run's complete checkpoints, ascending; changes no file."""
    directory = _directory(workdir)
    if not places.exists(directory):
        return []
    return sorted(ocp.utils.checkpoint_steps(directory))


def split_source(source: str) -> tuple[str, int]:
    """Splits a checkpoint's path into the run's workdir and the step.

    Args:
      source: path or URL RUN/checkpoints/STEP, or RUN for the newest checkpoint.

    Raises:
      InputError: the run has no checkpoint, or none of that step.
    """
    workdir, step = places.resolve(source), None
    folder, name = os.path.split(workdir.rstrip("/"))
    if name.isdigit() and os.path.basename(folder) == FOLDER:
        workdir, step = os.path.dirname(folder), int(name)
    steps = list_steps(workdir)
    if not steps or step not in (None, *steps):
        raise InputError(f"{source} has no checkpoint; {workdir} has those of {steps}")
    return workdir, steps[-1] if step is None else step
