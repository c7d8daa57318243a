"""The fields of a pretraining run."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from align_jax.checkpoint import CheckpointConfig
from align_jax.config import leave_out
from align_jax.errors import InputError
from align_jax.models.dual_encoder import DualEncoder, ModelConfig
from align_jax.objective import LossConfig
from align_jax.optimizer import OptimizerConfig
from align_jax.sharding import FSDP_AXIS, Placement, batch_split
from align_jax.tokenizer import Tokenizer, open_tokenizer
from align_jax.train_step import StepPlan
from align_jax.training_data import InputConfig

# How a model is computed, and how a run is: the result is the same.
MODEL_EXECUTION = (
    "image_tower.scan",
    "image_tower.rematerialise",
    "text_tower.scan",
    "text_tower.rematerialise",
)
EXECUTION = (
    "microbatches",
    "fsdp",
    "checkpoint",
    "log_every_steps",
    "profile_steps",
    *(f"model.{field}" for field in MODEL_EXECUTION),
)


@dataclasses.dataclass(frozen=True)
class InitialTowers:
    """Where towers start from instead of random parameters.

    Attributes:
      image_tower: any source of `open_weights` that has one; the model's must be of
        its size.
      text_tower: likewise; the run's vocabulary must be its own.
    """

    image_tower: str | None = None
    text_tower: str | None = None


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run, defined in virtual cores whatever the hardware is.

    Attributes:
      run: "pretrain".
      seed: of initial parameters, order of data, augmentation and dropout.
      total_steps: optimizer steps.
      virtual_cores: cores of the run's topology (paper: 1024).
      pairs_per_core: pairs on each (paper: 16); the global batch is their product.
      batch_norm_cores: virtual cores that share BatchNorm statistics.
      vocabulary: WordPiece vocabulary, vocab.txt or tokenizer.json.
      input: the training data.
      model: the towers.
      optimizer: the optimizer and its schedule.
      loss: the objective.
      checkpoint: when checkpoints are written.
      log_every_steps: steps between two flushes of the metrics; each step has a line.
      evaluate_every_steps: steps between evaluations; step 0 and the last have one.
      evaluators: name -> {"kind": a key of EVALUATORS, and that evaluator's fields}.
      start_from: another run, or one of its checkpoints as RUN/checkpoints/STEP, whose
        whole state this run goes on from: a longer schedule, another corpus.
      initialize: towers that start from weights.
      microbatches: parts that a device computes its share of the batch in, to save
        memory; the result is the same. A part holds whole BatchNorm groups.
      fsdp: devices that hold one copy of the state together, to save memory; the
        result is the same.
      profile_steps: first and last step to trace into WORKDIR/profile; () for none.
    """

    run: str
    seed: int
    total_steps: int
    virtual_cores: int
    pairs_per_core: int
    batch_norm_cores: int
    vocabulary: str
    input: InputConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    log_every_steps: int
    evaluate_every_steps: int
    evaluators: dict
    start_from: str | None = None
    initialize: InitialTowers = InitialTowers()
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

    def __post_init__(self):
        if not 0 <= self.optimizer.warmup_steps < self.total_steps:
            raise ValueError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps}; it must be"
                f" from 0 to below total_steps, {self.total_steps}"
            )
        labelled = [n for n, d in self.input.datasets.items() if d.label_feature]
        if labelled:
            raise ValueError(
                f"input.datasets {labelled} have a label_feature; pretraining wants"
                " texts"
            )
        if self.virtual_cores % self.batch_norm_cores:
            raise ValueError(
                f"virtual_cores is {self.virtual_cores}, not a multiple of"
                f" batch_norm_cores, {self.batch_norm_cores}"
            )
        if (self.loss.kind == "sigmoid") != (self.model.logit_bias_init is not None):
            raise ValueError(
                f"loss.kind is {self.loss.kind!r} and model.logit_bias_init is"
                f" {self.model.logit_bias_init}; the sigmoid loss wants a bias, the"
                " softmax none"
            )
        if self.start_from is not None and self.initialize != InitialTowers():
            raise ValueError(
                f"start_from is {self.start_from}, a whole state, and initialize gives"
                " towers; give one of them"
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
        if self.model.temperature_init < self.loss.temperature_floor:
            raise ValueError(
                f"model.temperature_init is {self.model.temperature_init}, below"
                f" loss.temperature_floor, {self.loss.temperature_floor}"
            )

    def evaluates(self, step: int) -> bool:
        """Whether a step is followed by an evaluation."""
        due = step == self.total_steps or step % self.evaluate_every_steps == 0
        return due and bool(self.evaluators)

    def saves(self, step: int) -> bool:
        """Whether a step is followed by a checkpoint."""
        judged = self.checkpoint.best_metric is not None and self.evaluates(step)
        return judged or step % self.checkpoint.every_steps == 0

    def make_model(self, mesh: Mesh) -> DualEncoder:
        """Builds the dual encoder."""
        placement = Placement(mesh) if mesh.shape[FSDP_AXIS] > 1 else None
        return DualEncoder(self.model, self.batch_norm_group, placement)

    def make_plan(self, mesh: Mesh) -> StepPlan:
        """Puts together what a step is compiled for.

        Raises:
          InputError: the batch does not divide over the devices and microbatches.
        """
        return StepPlan(
            self.make_model(mesh),
            self.loss,
            self.optimizer,
            self.total_steps,
            self.virtual_cores,
            self.pairs_per_core,
            self.microbatches,
            self.seed,
            mesh,
        )

    def batch_shapes(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the global batch, split over the mesh."""
        side, split = self.input.preprocess.image_size, batch_split(mesh)
        shapes = {
            "images": ((self.batch_size, side, side, 3), jnp.uint8),
            "tokens": ((self.batch_size, self.model.text_tower.max_tokens), jnp.int32),
        }
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
            for name, (shape, dtype) in shapes.items()
        }

    def make_tokenizer(self) -> Tokenizer:
        """Reads the vocabulary.

        Raises:
          InputError: it is missing, or larger than the text tower's embedding.
        """
        rows = self.model.text_tower.vocabulary_size
        tokenizer = open_tokenizer(self.vocabulary, self.model.text_tower.max_tokens)
        if tokenizer.size > rows:
            raise InputError(
                f"{self.vocabulary} has {tokenizer.size} tokens, but"
                f" config.model.text_tower.vocabulary_size is {rows}; raise it"
            )
        return tokenizer

    def identity(self, tokenizer: Tokenizer) -> dict:
        """What a checkpoint of this run fits: its model and vocabulary."""
        return {
            "model": leave_out(dataclasses.asdict(self.model), MODEL_EXECUTION),
            "vocabulary_sha256": tokenizer.digest,
        }
