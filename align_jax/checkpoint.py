"""Checkpoints by Orbax: asynchronous, whole or absent, with what they belong to."""

import dataclasses
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from align_jax.config import differing_fields
from align_jax.errors import InputError
from align_jax.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written.

    Attributes:
      every_steps: steps between two; the last step always has one.
      keep: how many stay.
    """

    every_steps: int = 1000
    keep: int = 3


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints."""

    def __init__(
        self, workdir: str, config: CheckpointConfig, identity: dict[str, Any]
    ):
        """Opens or creates the folder.

        Args:
          workdir: of the run.
          config: when checkpoints are written.
          identity: what a state fits: the model's config and the vocabulary's hash.
        """
        self._directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._identity = identity
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep),
        )

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing the state after `step` steps; returns before it is written."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            identity=ocp.args.JsonSave(self._identity),
        )
        self._manager.save(step, args=items)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state with the shapes, types and shardings of `like`.

        Raises:
          InputError: the checkpoint is of another model or vocabulary.
        """
        path = os.path.join(self._directory, str(step))
        found = self._manager.restore(
            step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
        )
        differing = differing_fields(found["identity"], self._identity, "checkpoint")
        if differing:
            raise InputError(f"{path} does not fit this run: {'; '.join(differing)}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["state"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
