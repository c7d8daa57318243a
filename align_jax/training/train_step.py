"""One training step: state in, state out, on any number of devices."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align_jax.devices.mesh import BATCH_AXES, batch_split, replicated, state_sharding
from align_jax.errors import InputError
from align_jax.losses.objective import LossConfig, compute_loss, hold_temperature
from align_jax.losses.tiles import make_tiling
from align_jax.models.batch_norm import mean_over_groups
from align_jax.models.classifier import Classifier
from align_jax.models.dual_encoder import DualEncoder
from align_jax.models.parameters import first_inputs
from align_jax.training.optimizer import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    trainable,
)

BLOCKS = "block_|layer_"  # what a tower's blocks are named

# CPUs: no sums by YNNPACK: its kernels have every number that is the same for many
# places written to memory for each of them, ones among them. GPUs: products as cuBLAS
# picks them, not by timing them, which takes minutes and may pick others the next time,
# with other last bits: a resumed run would not go on exactly (docs/performance.md).
COMPILER_OPTIONS = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}
# A program that runs once: it is compiled in half the time, to the same numbers.
ONCE_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a step is compiled for.

    Attributes:
      model: the dual encoder, or a classifier.
      loss: the objective.
      optimizer: the optimizer and its schedule.
      total_steps: of the schedule.
      virtual_cores: V; core v holds pairs v B/V to (v+1) B/V - 1.
      pairs_per_core: B / V.
      microbatches: parts the batch is computed in, one after the other, with the
        result of the whole; 1 for at once.
      seed: of the run; masks depend on it, the step and the virtual core only.
      mesh: the devices.

    Raises:
      InputError: the virtual cores do not divide over devices and microbatches, a
        BatchNorm group would be cut by a microbatch, or the loss has no such groups or
        tiles.
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

    def __post_init__(self):
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
            make_tiling(pairs, self.mesh, loss.negatives, loss.tile, loss.precision)
        except ValueError as error:
            raise InputError(f"config.loss.{error}") from error

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return make_schedule(self.optimizer, self.total_steps)

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optimizer."""
        return make_optimizer(self.optimizer, self.schedule)


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: () int32, steps taken.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32.
      optimizer: the optimizer's state.
      average: moving average of {"params", "batch_stats"}; None where there is none.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    optimizer: Any
    average: dict | None = None

    @property
    def variables(self) -> dict:
        """What is evaluated, {"params", "batch_stats"}: the average where there is."""
        return self.average or self.own_variables

    @property
    def own_variables(self) -> dict:
        """What the last step made, {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(plan: StepPlan) -> TrainState:
    """Initialises a state at step 0 from the seed, each device its own part."""
    return compile_create(plan)()


def compile_create(plan: StepPlan) -> jax.stages.Compiled:
    """Compiles what `create_state` runs."""
    create = jax.jit(partial(_create, plan), out_shardings=state_shardings(plan))
    return compile_fast(create.lower(), plan.mesh, ONCE_OPTIONS)


@lru_cache(maxsize=1)  # tracing a large model takes seconds
def abstract_state(plan: StepPlan) -> TrainState:
    """Shapes, types and shardings of a run's state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=state_sharding(x.shape, plan.mesh)
        ),
        jax.eval_shape(partial(_create, plan)),
    )


def state_shardings(plan: StepPlan) -> TrainState:
    """How every array of a run's state lies."""
    return jax.tree.map(lambda x: x.sharding, abstract_state(plan))


def _create(plan: StepPlan) -> TrainState:
    variables = plan.model.init(
        jax.random.key(plan.seed), *first_inputs(plan.model), train=False
    )
    averaged = plan.optimizer.average_decay is not None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer=plan.transformation.init(variables["params"]),
        average=dict(variables) if averaged else None,
    )


def make_train_step(plan: StepPlan, norms: bool = False):
    """`train_step` of a run, jitted; call as `step(state, batch)`."""
    shardings = state_shardings(plan)
    return jax.jit(
        partial(train_step, plan=plan, norms=norms),
        in_shardings=(shardings, batch_split(plan.mesh)),
        out_shardings=(shardings, replicated(plan.mesh)),
        donate_argnums=0,
    )


def compile_step(
    plan: StepPlan, batch: dict[str, jax.ShapeDtypeStruct], norms: bool = False
) -> jax.stages.Compiled:
    """Compiles a run's step ahead of its first call.

    Args:
      plan: of the step.
      batch: shapes of the global batch, see `train_step`, with their shardings.
      norms: whether its metrics have those of gradients and updates.
    """
    lowered = make_train_step(plan, norms).lower(abstract_state(plan), batch)
    return compile_fast(lowered, plan.mesh)


def compile_steps(
    plan: StepPlan, batch: dict[str, jax.ShapeDtypeStruct], kinds: Collection[bool]
) -> dict[bool, jax.stages.Compiled]:
    """Compiles a run's steps of some kinds, without (False) and with norms (True).

    Norms cost a step some percent, so the steps between two that show them have a
    program without. The compiler works on both at once.
    """
    abstract_state(plan)  # is traced once
    with ThreadPoolExecutor() as pool:
        programs = pool.map(partial(compile_step, plan, batch), kinds)
        return dict(zip(kinds, programs, strict=True))


def compile_fast(
    lowered: jax.stages.Lowered, mesh: Mesh, options: Mapping = COMPILER_OPTIONS
) -> jax.stages.Compiled:
    """Compiles for a mesh with its platform's options, by default a step's."""
    try:
        return lowered.compile(options.get(mesh.devices.flat[0].platform))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # by a compiler that knows an option no more


def train_step(
    state: TrainState, batch: dict[str, jax.Array], plan: StepPlan, norms: bool = False
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step on the global batch.

    Args:
      state: before the step; donated when compiled.
      batch: images (B, H, W, 3) and tokens (B, L) or labels (B,), split over the mesh.
      plan: the rest.
      norms: whether to measure the gradients' and updates'.

    Returns:
      The state after the step and its scalar metrics.
    """
    key = jax.random.fold_in(jax.random.key(plan.seed), state.step)
    core_ids = jnp.arange(plan.virtual_cores)
    gradient = accumulate if plan.microbatches > 1 else at_once
    (loss, (metrics, batch_stats)), gradients = gradient(
        state.params, state.batch_stats, batch, key, core_ids, plan
    )
    updates, optimizer_state = plan.transformation.update(
        gradients, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    params = hold_temperature(params, plan.loss.temperature_floor)
    metrics |= {
        "loss": loss,
        "learning_rate": jnp.asarray(plan.schedule(state.step)),
    }
    if norms:
        metrics |= _norms(gradients, updates, plan)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        optimizer=optimizer_state,
        average=state.average,
    )
    if state.average is not None:
        new_state = new_state.replace(average=_follow(new_state, plan))
    return new_state, metrics


def _norms(gradients: dict, updates: dict, plan: StepPlan) -> dict[str, jax.Array]:
    """Norms of each tower and of all."""
    norms = {}
    for kind, tree in (("gradient", gradients), ("update", updates)):
        squared = {name: optax.tree.norm(x, squared=True) for name, x in tree.items()}
        for tower in plan.model.towers:
            norms[f"{tower}/{kind}_norm"] = jnp.sqrt(squared[tower])
        norms[f"{kind}_norm"] = jnp.sqrt(sum(squared.values()))
    return norms


def _follow(state: TrainState, plan: StepPlan) -> dict:
    """The moving average after a step; early ones weigh recent steps more."""
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(plan.optimizer.average_decay, step / (step + 9.0))
    return optax.tree.add(
        optax.tree.scale(decay, state.average),
        optax.tree.scale(1.0 - decay, state.own_variables),
    )


def at_once(params, batch_stats, batch, key, core_ids, plan):
    """Value, auxiliary outputs and gradients of `loss_fn`."""
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    return gradient(params, batch_stats, batch, key, core_ids, plan)


def loss_fn(
    params: dict,
    batch_stats: dict,
    batch: dict[str, jax.Array],
    key: jax.Array,
    core_ids: jax.Array,
    plan: StepPlan,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
    """Loss of a batch; returns (loss, (metrics, new running statistics))."""
    outputs, batch_stats = encode(params, batch_stats, batch, key, core_ids, plan)
    loss, metrics = score(params, outputs, batch, plan)
    return loss, (metrics, mean_over_groups(batch_stats))


def encode(params, batch_stats, batch, key, core_ids, plan):
    """The towers' outputs of a batch, (B, D) each, and each group's statistics."""
    params = _gather_outer(_hold_frozen(params, plan), plan)
    outputs, changed = plan.model.apply(
        {"params": params, "batch_stats": batch_stats},
        *(batch[name] for name in plan.model.inputs),
        core_ids,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return outputs, changed["batch_stats"]


def _gather_outer(params: dict, plan: StepPlan) -> dict:
    """Whole parameters, but for those of the blocks, which gather their own."""
    placement = plan.model.placement
    if placement is None:
        return params
    towers = plan.model.towers
    outer = {name: x for name, x in params.items() if name not in towers}
    gathered = placement.gather(outer)
    for tower in towers:
        blocks = {n: x for n, x in params[tower].items() if re.match(BLOCKS, n)}
        others = {n: x for n, x in params[tower].items() if n not in blocks}
        gathered[tower] = blocks | placement.gather(others)
    return gathered


def score(params, outputs, batch, plan):
    """Loss and metrics of the towers' outputs of a batch."""
    params, labels = _hold_frozen(params, plan), batch.get("labels")
    return compute_loss(outputs, labels, params, plan.loss, plan.mesh)


def accumulate(params, batch_stats, batch, key, core_ids, plan):
    """What `at_once` returns, in the memory of one microbatch.

    All outputs are computed first, the loss over all pairs gives their cotangents,
    then each microbatch is computed again to pull its own back (GradCache, arXiv
    2101.06983). Masks are drawn by virtual core and BatchNorm's groups lie within a
    microbatch, so the result is that of the whole batch, up to rounding.
    """
    pieces = (_split(batch, plan), _split(core_ids, plan))

    def embed(_, piece):
        return None, encode(params, batch_stats, piece[0], key, piece[1], plan)

    _, (outputs, statistics) = lax.scan(embed, None, pieces)
    gradient = jax.value_and_grad(
        partial(score, batch=batch, plan=plan), (0, 1), has_aux=True
    )
    (loss, metrics), (gradients, cotangents) = gradient(params, _join(outputs, plan))

    def pull_back(gradients, piece):
        (batch, core_ids), cotangent = piece
        _, pull = jax.vjp(
            lambda params: encode(params, batch_stats, batch, key, core_ids, plan)[0],
            params,
        )
        return optax.tree.add(gradients, *pull(cotangent)), None

    pieces = (pieces, _split(cotangents, plan))
    gradients, _ = lax.scan(pull_back, gradients, pieces)
    # All started from the same statistics: their mean is one update with all groups.
    return (loss, (metrics, mean_over_groups(statistics))), gradients


def _split(tree, plan):
    """(B, ...) to (microbatches, B / microbatches, ...), a part of each device."""
    shape = (plan.mesh.size, plan.microbatches, -1)
    sharding = NamedSharding(plan.mesh, PartitionSpec(None, BATCH_AXES))

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(*shape, *x.shape[1:]).swapaxes(0, 1)
        parts = parts.reshape(plan.microbatches, -1, *x.shape[1:])
        return lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map(split, tree)


def _join(tree, plan):
    """Undoes `_split`."""
    shape = (plan.microbatches, plan.mesh.size, -1)

    def join(x: jax.Array) -> jax.Array:
        parts = x.reshape(*shape, *x.shape[2:]).swapaxes(0, 1)
        whole = parts.reshape(-1, *x.shape[2:])
        return lax.with_sharding_constraint(whole, batch_split(plan.mesh))

    return jax.tree.map(join, tree)


def _hold_frozen(params: Mapping, plan: StepPlan) -> dict:
    """The parameters, without a gradient where the optimizer keeps them."""
    return jax.tree.map(
        lambda x, moves: x if moves else lax.stop_gradient(x),
        params,
        trainable(plan.optimizer, params),
    )
