"""The config fields of every training run.

The batch is given in virtual cores, so that a run does not depend on its hardware.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, get_type_hints

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from align_jax.config import READER, leave_out, read_part, stored_fields
from align_jax.devices.kernel_choice import choose_kernels
from align_jax.devices.mesh import FSDP_AXIS, Placement, batch_split
from align_jax.errors import InputError
from align_jax.input import teacher
from align_jax.input.phases import Phase, find_phase
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.training_data import InputConfig
from align_jax.losses.objective import LossConfig
from align_jax.models.classifier import Classifier, ClassifierConfig
from align_jax.models.dual_encoder import DualEncoder, ModelConfig
from align_jax.models.towers import execution_fields
from align_jax.ranges import Count, Natural, Seed
from align_jax.training.checkpoint import CheckpointConfig
from align_jax.training.optimizer import OptimizerConfig
from align_jax.training.phase_config import PhaseFields, make_phases, read_phases
from align_jax.training.step_plan import StepPlan

# Fields that change how a run is computed but not its result. `run_execution` adds the
# fields of the towers.
EXECUTION = """microbatches fsdp checkpoint log_every_steps profile_steps
    profile_process hang_seconds trackers""".split()

# A second program without norms is about 2 % faster than the program with norms. In a
# run of at most this many steps, compiling it takes longer than it saves.
SHORT_RUN = 10_000


def run_execution(fields: Mapping[str, Any]) -> list[str]:
    """Returns the dotted paths of config fields that do not change a run's result.

    Args:
      fields: the run's literal config.
    """
    towers = execution_fields(fields.get("model", {}))
    return [*EXECUTION, *(f"model.{path}" for path in towers)]


def model_identity(
    model: ModelConfig | ClassifierConfig, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Returns the fields that a checkpoint of a model must match.

    They are "model", the model's config without fields that only change execution, and,
    with a tokenizer, "vocabulary_sha256".
    """
    fields = stored_fields(model)
    identity: dict[str, Any] = {"model": leave_out(fields, execution_fields(fields))}
    if tokenizer is not None:
        identity["vocabulary_sha256"] = tokenizer.digest
    return identity


@dataclasses.dataclass(frozen=True)
class ModelFields:
    """The fields of a run's config that its weights need.

    Attributes:
      kind: type of the weights, see `RunConfig.kind`.
      model: config of the model.
      preprocess: picture sizes in evaluation.
      vocabulary: path of the vocabulary that the run was started with; "" for a run
        without texts.
    """

    kind: str
    model: ModelConfig | ClassifierConfig
    preprocess: PreprocessConfig
    vocabulary: str = ""


@dataclasses.dataclass(frozen=True)
class Initial:
    """Sources of a model's initial values, instead of random ones.

    A source is anything that `open_weights` reads.

    Attributes:
      model: source of the complete model, of the run's type and size.
      image_tower: source that has an image tower of the model's size.
      text_tower: source that has a text tower of the model's size and the run's
        vocabulary.
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
      run: type of run, a key of `TRAINING`.
      seed: seed of initial parameters, data order, augmentation and dropout.
      total_steps: number of optimizer steps.
      virtual_cores: number of virtual cores, parts of the batch that stand for ALIGN's
        TPU cores whatever the hardware is (ALIGN: 1024).
      pairs_per_core: pairs on each virtual core (ALIGN: 16). The global batch has
        virtual_cores * pairs_per_core pairs.
      batch_norm_cores: number of virtual cores that share BatchNorm statistics, a
        divisor of virtual_cores.
      input: the training data.
      model: the towers.
      optimizer: the optimizer and its schedule.
      loss: the objective.
      checkpoint: schedule of the checkpoints.
      log_every_steps: steps between two flushes of the metrics. Every step has a line.
        Norms of gradients and updates are in the line of a flush; in a run of at most
        `SHORT_RUN` steps they are in every line.
      evaluate_every_steps: steps between evaluations; step 0 and the last step have
        one. Without evaluators there are none.
      evaluators: name -> {"kind": a key of EVALUATORS, and that evaluator's fields}.
      start_from: another run, or one of its checkpoints as RUN/checkpoints/STEP. This
        run continues from its full state, for a longer schedule or another corpus.
      initialize: sources of the model's initial values.
      microbatches: number of parts in which a device computes its share of the batch,
        one after the other, to save memory; the result is the same. A part holds whole
        BatchNorm groups.
      phases: tuples (step, {field of `PhaseConfig`: value, ...}). From this step to
        that of the next tuple, batches have these sizes; the first step is 0.
      fsdp: number of devices that one copy of the state is split over, to save memory;
        the result is the same.
      profile_steps: numbers of the first and the last step to trace into
        WORKDIR/profile; () for none.
      profile_process: number of the process that traces them.
      hang_seconds: time without a step after which each process writes its stacks, and
        one names the processes that hold the others up; ten steps if they take longer;
        0 for never.
      trackers: {key of TRACKERS: that tracker's fields}; the run is reported to each.
    """

    kind: ClassVar[str]  # type of its weights, a key of `WEIGHTS_KINDS`

    run: str
    seed: Seed
    total_steps: Count
    virtual_cores: Count
    pairs_per_core: Count
    batch_norm_cores: Count
    input: InputConfig
    model: ModelConfig | ClassifierConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    log_every_steps: Count
    evaluate_every_steps: Count
    evaluators: dict[str, dict]
    start_from: str | None = None
    initialize: Initial = Initial()
    microbatches: Count = 1
    fsdp: Count = 1
    phases: PhaseFields = dataclasses.field(default=(), metadata={READER: read_phases})
    profile_steps: tuple[Count, ...] = ()
    profile_process: Natural = 0
    hang_seconds: Natural = 300
    trackers: dict[str, dict] = dataclasses.field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Pairs in the global batch, unless a phase changes it."""
        return self.virtual_cores * self.pairs_per_core

    @property
    def batch_phases(self) -> tuple[Phase, ...]:
        """The phases in order: one for a run without `phases`; see `make_phases`."""
        whole = Phase(0, self.batch_size, self.input.preprocess, self.text_length)
        cores, steps = self.batch_norm_cores, self.total_steps
        return make_phases(self.phases, whole, self.pairs_per_core, cores, steps)

    @property
    def text_length(self) -> int | None:
        """Length of the longest token sequences; None for a run without texts."""
        return None

    @property
    def batch_norm_group(self) -> int:
        """Images that share BatchNorm statistics."""
        return self.batch_norm_cores * self.pairs_per_core

    def __post_init__(self) -> None:
        self.optimizer.check_steps(self.total_steps)
        if self.virtual_cores % self.batch_norm_cores:
            raise ValueError(
                f"virtual_cores is {self.virtual_cores}, not a multiple of"
                f" batch_norm_cores, {self.batch_norm_cores}"
            )
        _ = self.batch_phases  # raises ValueError if a phase is wrong
        if self.start_from == "":
            raise ValueError("start_from is empty; name a run, or None")
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
        if steps and (len(steps) != 2 or steps[0] > steps[1]):
            raise ValueError(
                f"profile_steps is {steps}; wanted the first and the last step, or ()"
            )

    @classmethod
    def read_model(cls, fields: Mapping[str, Any], where: str) -> ModelFields:
        """Reads the part of a run's literal config that its weights need.

        Other fields may be missing, or wrong in this version of the code.

        Args:
          fields: literal config of the run.
          where: path of `fields`, for messages.

        Raises:
          InputError: a field of the part is missing or wrong.
        """
        return ModelFields(
            kind=cls.kind,
            model=read_part(get_type_hints(cls)["model"], fields, "model", where),
            preprocess=read_part(PreprocessConfig, fields, "input.preprocess", where),
        )

    def flushes(self, step: int) -> bool:
        """Returns whether the metrics are flushed after a step."""
        return step == self.total_steps or step % self.log_every_steps == 0

    def measures_norms(self, step: int) -> bool:
        """Returns whether a step's metrics include norms of gradients and updates."""
        return self.total_steps <= SHORT_RUN or self.flushes(step)

    def evaluates(self, step: int) -> bool:
        """Returns whether an evaluation follows a step."""
        due = step == self.total_steps or step % self.evaluate_every_steps == 0
        return due and bool(self.evaluators)

    def saves(self, step: int) -> bool:
        """Returns whether the schedule has a checkpoint after a step.

        The last step has one in any case.
        """
        judged = self.checkpoint.best_metric is not None and self.evaluates(step)
        return judged or step % self.checkpoint.every_steps == 0

    def make_model(self, mesh: Mesh) -> DualEncoder | Classifier:
        """Builds the model for the devices of a mesh."""
        placement = Placement(mesh) if mesh.shape[FSDP_AXIS] > 1 else None
        kernels = choose_kernels(self.model.image_tower.kernels, mesh)
        return self.model.build(self.batch_norm_group, placement, kernels)

    def make_plan(self, mesh: Mesh, phase: Phase | None = None) -> StepPlan:
        """Collects everything that the training step is compiled for.

        Args:
          mesh: devices of the run.
          phase: one of `batch_phases`; None for the first one.

        Raises:
          InputError: the batch does not fit the devices, the microbatches or the loss,
            see `StepPlan`.
        """
        phase = phase or self.batch_phases[0]
        try:
            return self._plan(mesh, phase)
        except InputError as error:
            if not self.phases:
                raise
            number = find_phase(self.batch_phases, phase.start)
            raise InputError(f"in config.phases[{number}], {error}") from error

    def _plan(self, mesh: Mesh, phase: Phase) -> StepPlan:
        return StepPlan(
            model=self.make_model(mesh),
            loss=self.loss,
            optimizer=self.optimizer,
            total_steps=self.total_steps,
            virtual_cores=phase.pairs // self.pairs_per_core,
            pairs_per_core=self.pairs_per_core,
            microbatches=self.microbatches,
            seed=self.seed,
            mesh=mesh,
        )

    def batch_shapes(
        self, mesh: Mesh, phase: Phase | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and shardings of the fields of a global batch.

        Images (B, H, W, 3) are uint8, tokens (B, L) or labels (B,) int32, a teacher's
        embeddings (B, D) float32. `phase` is one of `batch_phases`, None the first one.
        """
        phase = phase or self.batch_phases[0]
        side, length = phase.preprocess.image_size, phase.max_tokens
        name, target = ("labels", ()) if length is None else ("tokens", (length,))
        split, pairs = batch_split(mesh), phase.pairs_read
        shapes = {"images": ((side, side, 3), jnp.uint8), name: (target, jnp.int32)}
        if width := self.input.teacher_width:
            shapes |= dict.fromkeys(teacher.FIELDS, ((width,), jnp.float32))
        return {
            name: jax.ShapeDtypeStruct((pairs, *shape), dtype, sharding=split)
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def evaluation_preprocess(self) -> PreprocessConfig:
        """Picture sizes in evaluation."""
        return self.input.preprocess

    def make_tokenizer(self) -> Tokenizer | None:
        """Reads the vocabulary; returns None for a run without texts."""
        return None

    def check_data(self) -> None:
        """Raises InputError if the data does not fit the model."""

    def identity(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Returns the fields that a checkpoint of this run must match."""
        return model_identity(self.model, tokenizer)
