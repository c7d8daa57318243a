"""What every training run's config has, in virtual cores whatever the hardware is."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from align_jax.config import leave_out, stored_fields
from align_jax.devices.kernel_choice import choose_kernels
from align_jax.devices.mesh import FSDP_AXIS, Placement, batch_split
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.training_data import InputConfig
from align_jax.losses.objective import LossConfig
from align_jax.models.classifier import Classifier, ClassifierConfig
from align_jax.models.dual_encoder import DualEncoder, ModelConfig
from align_jax.models.towers import execution_fields
from align_jax.training.checkpoint import CheckpointConfig
from align_jax.training.optimizer import OptimizerConfig
from align_jax.training.step_plan import StepPlan

# Fields that change how a run is computed and not its result; those of its towers come
# on top, see `run_execution`.
EXECUTION = (
    "microbatches",
    "fsdp",
    "checkpoint",
    "log_every_steps",
    "profile_steps",
)

# A second program, of steps without norms, is about 1 % faster than the one with norms.
# In a run of at most this many steps, compiling it takes longer than it saves.
SHORT_RUN = 10_000


def run_execution(fields: Mapping[str, Any]) -> list[str]:
    """Dotted paths of fields of a run's literal config that keep its result."""
    towers = execution_fields(fields.get("model", {}))
    return [*EXECUTION, *(f"model.{path}" for path in towers)]


@dataclasses.dataclass(frozen=True)
class Initial:
    """Where a model starts from instead of random parameters.

    Each is a source of `open_weights`.

    Attributes:
      model: a whole one of the same kind and size, for another corpus or schedule.
      image_tower: one that has an image tower of the model's size.
      text_tower: likewise; the run's vocabulary must be its own.
    """

    model: str | None = None
    image_tower: str | None = None
    text_tower: str | None = None

    def __post_init__(self) -> None:
        for name, source in dataclasses.asdict(self).items():
            if source == "":
                raise ValueError(f"{name} is empty; name where it comes from")
        if self.model is not None and (self.image_tower or self.text_tower):
            raise ValueError(
                f"model is {self.model}, a whole model, and there are towers; give one"
                " of them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
      run: which kind, a key of `TRAINING`.
      seed: of initial parameters, order of data, augmentation and dropout.
      total_steps: optimizer steps.
      virtual_cores: cores of the run's topology (paper: 1024).
      pairs_per_core: pairs on each (paper: 16); the global batch is their product.
      batch_norm_cores: virtual cores that share BatchNorm statistics.
      input: the training data.
      model: the towers.
      optimizer: the optimizer and its schedule.
      loss: the objective.
      checkpoint: when checkpoints are written.
      log_every_steps: steps between two flushes of the metrics. Each step has a line;
        norms of gradients and updates stand in that of a flush and, in a run of at most
        `SHORT_RUN` steps, in every line.
      evaluate_every_steps: steps between evaluations; step 0 and the last have one.
      evaluators: name -> {"kind": a key of EVALUATORS, and that evaluator's fields}.
      start_from: another run, or one of its checkpoints as RUN/checkpoints/STEP, whose
        whole state this run goes on from: a longer schedule, another corpus.
      initialize: what the model starts from.
      microbatches: parts that a device computes its share of the batch in, to save
        memory; the result is the same. A part holds whole BatchNorm groups.
      fsdp: devices that hold one copy of the state together, to save memory; the
        result is the same.
      profile_steps: first and last step to trace into WORKDIR/profile; () for none.
    """

    kind: ClassVar[str]  # of its weights, a key of `weights.KINDS`

    run: str
    seed: int
    total_steps: int
    virtual_cores: int
    pairs_per_core: int
    batch_norm_cores: int
    input: InputConfig
    model: ModelConfig | ClassifierConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    log_every_steps: int
    evaluate_every_steps: int
    evaluators: dict
    start_from: str | None = None
    initialize: Initial = Initial()
    microbatches: int = 1
    fsdp: int = 1
    profile_steps: tuple = ()

    @property
    def batch_size(self) -> int:
        """Pairs in the global batch."""
        return self.virtual_cores * self.pairs_per_core

    @property
    def batch_norm_group(self) -> int:
        """Images that share BatchNorm statistics."""
        return self.batch_norm_cores * self.pairs_per_core

    def __post_init__(self) -> None:
        if not 0 <= self.optimizer.warmup_steps < self.total_steps:
            raise ValueError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps}; it must be"
                f" from 0 to below total_steps, {self.total_steps}"
            )
        if self.virtual_cores % self.batch_norm_cores:
            raise ValueError(
                f"virtual_cores is {self.virtual_cores}, not a multiple of"
                f" batch_norm_cores, {self.batch_norm_cores}"
            )
        if self.start_from is not None and self.initialize != Initial():
            raise ValueError(
                f"start_from is {self.start_from}, a whole state, and initialize gives"
                " weights; give one of them"
            )
        if self.checkpoint.best_metric is not None and not self.evaluators:
            raise ValueError(
                f"checkpoint.best_metric is {self.checkpoint.best_metric!r}, but there"
                " are no evaluators"
            )
        steps = self.profile_steps
        if steps and (len(steps) != 2 or not 0 < steps[0] <= steps[1]):
            raise ValueError(
                f"profile_steps is {steps}; wanted the first and the last step, or ()"
            )

    def flushes(self, step: int) -> bool:
        """Whether metrics are written after a step."""
        return step == self.total_steps or step % self.log_every_steps == 0

    def measures_norms(self, step: int) -> bool:
        """Whether norms of gradients and updates are among a step's metrics."""
        return self.total_steps <= SHORT_RUN or self.flushes(step)

    def evaluates(self, step: int) -> bool:
        """Whether a step is followed by an evaluation."""
        due = step == self.total_steps or step % self.evaluate_every_steps == 0
        return due and bool(self.evaluators)

    def saves(self, step: int) -> bool:
        """Whether a step is followed by a checkpoint."""
        judged = self.checkpoint.best_metric is not None and self.evaluates(step)
        return judged or step % self.checkpoint.every_steps == 0

    def make_model(self, mesh: Mesh) -> DualEncoder | Classifier:
        """Builds the model."""
        placement = Placement(mesh) if mesh.shape[FSDP_AXIS] > 1 else None
        kernels = choose_kernels(self.model.image_tower.kernels, mesh)
        return self.model.build(self.batch_norm_group, placement, kernels)

    def make_plan(self, mesh: Mesh) -> StepPlan:
        """Puts together what a step is compiled for.

        Raises:
          InputError: the batch does not divide over the devices and microbatches.
        """
        return StepPlan(
            model=self.make_model(mesh),
            loss=self.loss,
            optimizer=self.optimizer,
            total_steps=self.total_steps,
            virtual_cores=self.virtual_cores,
            pairs_per_core=self.pairs_per_core,
            microbatches=self.microbatches,
            seed=self.seed,
            mesh=mesh,
        )

    def batch_shapes(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the global batch, split over the mesh."""
        side, split = self.input.preprocess.image_size, batch_split(mesh)
        shapes = {"images": ((side, side, 3), jnp.uint8), **self.target_shape()}
        return {
            name: jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=split)
            for name, (shape, dtype) in shapes.items()
        }

    def target_shape(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """What stands beside a batch's images: its name, shape a pair, and type."""
        raise NotImplementedError

    @property
    def evaluation_preprocess(self) -> PreprocessConfig:
        """Sizes of evaluation's pictures."""
        return self.input.preprocess

    def make_tokenizer(self) -> Tokenizer | None:
        """Reads the vocabulary; None where there is none."""
        return None

    def check_data(self) -> None:
        """Raises InputError for data that the model does not fit."""

    def identity(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """What a checkpoint of this run fits: its model and vocabulary."""
        model = stored_fields(self.model)
        model = leave_out(model, execution_fields(model))
        if tokenizer is None:
            return {"model": model}
        return {"model": model, "vocabulary_sha256": tokenizer.digest}
