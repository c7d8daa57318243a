"""The plan of a training step: its model, objective, optimizer, batch and devices."""

import dataclasses

import optax
from jax.sharding import Mesh

from align_jax.errors import InputError
from align_jax.losses.objective import LossConfig
from align_jax.losses.tiles import make_tiling
from align_jax.models.classifier import Classifier
from align_jax.models.dual_encoder import DualEncoder
from align_jax.models.towers import undecayed_parameters
from align_jax.training.hard_pairs import HardPairs
from align_jax.training.optimizer import OptimizerConfig, make_optimizer
from align_jax.training.schedules import make_schedule


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Everything that a training step is compiled for.

    Attributes:
      model: dual encoder or classifier.
      loss: the objective.
      optimizer: the optimizer and its schedule.
      total_steps: length of the schedule in steps.
      virtual_cores: number V of virtual cores; core v holds pairs v B/V to
        (v+1) B/V - 1 of the global batch of B.
      pairs_per_core: B / V.
      microbatches: number of parts in which a device computes its share of the batch,
        one after the other; the result is the same. 1 computes the share at once.
      seed: seed of the run; random masks depend only on it, the step and the virtual
        core.
      mesh: the devices.
      hard_pairs: choice of the batch from a super-batch; None to train on all pairs.

    Raises:
      InputError: the virtual cores do not divide over devices and microbatches, a
        microbatch would split a BatchNorm group, or the loss's `negatives` or `tile` is
        invalid for the batch, see `make_tiling`, or the chunks of `hard_pairs` do not
        divide it.
    """

    model: DualEncoder | Classifier
    loss: LossConfig
    optimizer: OptimizerConfig
    total_steps: int
    virtual_cores: int
    pairs_per_core: int
    microbatches: int
    seed: int
    mesh: Mesh
    hard_pairs: HardPairs | None = None

    def __post_init__(self) -> None:
        devices, cores = self.mesh.size, self.virtual_cores
        if cores % devices:
            raise InputError(
                f"config.virtual_cores is {cores}, which does not divide over {devices}"
                " devices; the global batch is split at virtual cores"
            )
        if self.microbatches < 1 or (cores // devices) % self.microbatches:
            raise InputError(
                f"config.microbatches is {self.microbatches}, which does not divide a"
                f" device's {cores // devices} virtual cores"
            )
        held = self.pairs_per_core * cores // (devices * self.microbatches)
        if self.microbatches > 1 and held % self.model.batch_norm_group:
            raise InputError(
                f"config.microbatches is {self.microbatches}: a device then holds"
                f" {held} pairs at a time, which cuts BatchNorm's groups of"
                f" {self.model.batch_norm_group} (config.batch_norm_cores)"
            )
        pairs, loss = cores * self.pairs_per_core, self.loss
        if not loss.contrasts:
            return
        try:
            make_tiling(
                pairs,
                self.mesh,
                loss.negatives,
                loss.tile,
                loss.precision,
                exchange=loss.exchange,
            )
        except ValueError as error:
            raise InputError(f"config.loss.{error}") from error
        if self.hard_pairs and pairs % self.hard_pairs.chunks:
            raise InputError(
                f"config.hard_pairs.chunks is {self.hard_pairs.chunks}, which does not"
                f" divide the global batch of {pairs} pairs"
            )

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step, see `make_schedule`."""
        return make_schedule(self.optimizer, self.total_steps)

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optimizer as an Optax transformation, see `make_optimizer`."""
        exempt = undecayed_parameters(self.model.config.towers)
        return make_optimizer(self.optimizer, self.schedule, exempt)
