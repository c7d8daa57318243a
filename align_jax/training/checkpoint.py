"""Checkpoints by Orbax: asynchronous, whole or absent, with what they belong to."""

import dataclasses
import operator
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from align_jax import places
from align_jax.config import differing_fields
from align_jax.errors import InputError
from align_jax.runs.workdir import as_json
from align_jax.training.train_state import TrainState

FOLDER = "checkpoints"  # of a workdir

# Devices that hold copies of an array write a part of it each, if the parts have at
# least this many bytes. JAX compiles a program for every shape that is cut, so with
# Orbax's default, any size, the first checkpoint of a small model takes 10 s and more.
SMALLEST_PART = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which of them stay.

    Attributes:
      every_steps: steps between two; the last step always has one.
      keep: how many of the newest stay.
      keep_every_steps: those of its multiples stay too; None for none.
      best_metric: a score, as "eval/coco/t2i_recall@1", by which the best stays too;
        each evaluation then has a checkpoint. None for none.
      lowest_is_best: whether the best score is the lowest.
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
    ):
        """Opens or creates the folder.

        Args:
          workdir: of the run.
          config: when checkpoints are written.
          identity: what a state fits: the model's config and the vocabulary's hash.
        """
        self._directory = os.path.join(places.resolve(workdir), FOLDER)
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
        """Starts writing the state after `step` steps; returns before it is written.

        Args:
          step: names the checkpoint.
          state: to write.
          scores: of this state's evaluation, if it had one.

        Raises:
          InputError: the scores lack the best's, or the storage refuses this checkpoint
            or the one before it.
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            identity=ocp.args.JsonSave(self._identity),
        )
        metrics = {self._best: scores[self._best]} if scores and self._best else None
        with places.writing(self._directory):
            self._manager.save(step, args=items, metrics=metrics)

    def check_scores(self, scores: dict[str, float]) -> None:
        """Makes sure that an evaluation has the score that the best is chosen by."""
        if self._best is not None and self._best not in scores:
            raise InputError(
                f"config.checkpoint.best_metric is {self._best!r}; the scores are"
                f" {', '.join(scores)}"
            )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state with the shapes, types and shardings of `abstract`.

        Raises:
          InputError: the checkpoint is of another model or vocabulary, or of a state of
            another form, as another optimizer's.
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
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} holds a state of another form, as another optimizer's or with"
                f" another average: {reason[:300]}"
            ) from error

    def wait(self) -> None:
        """Waits until everything is written; raises InputError where it cannot be."""
        with places.writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the writing, as `wait` does, and frees what it needed."""
        with places.writing(self._directory):
            self._manager.close()


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Returns what writes and reads each part of a checkpoint."""
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


def list_steps(workdir: str) -> list[int]:
    """Steps of a run's whole checkpoints, in order; creates nothing."""
    directory = os.path.join(places.resolve(workdir), FOLDER)
    if not places.exists(directory):
        return []
    return sorted(ocp.utils.checkpoint_steps(directory))


def split_source(source: str) -> tuple[str, int]:
    """A run's workdir and step, from RUN/checkpoints/STEP or, for its newest, RUN.

    Raises:
      InputError: there is no such checkpoint.
    """
    workdir, step = places.resolve(source), None
    folder, name = os.path.split(workdir.rstrip("/"))
    if name.isdigit() and os.path.basename(folder) == FOLDER:
        workdir, step = os.path.dirname(folder), int(name)
    steps = list_steps(workdir)
    if not steps or step not in (None, *steps):
        raise InputError(f"{source} has no checkpoint; {workdir} has those of {steps}")
    return workdir, steps[-1] if step is None else step
