"""The state that a training step changes: its creation, shapes and shardings."""

from functools import lru_cache, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from align_jax.devices.compiling import ONCE_OPTIONS, compile_fast
from align_jax.devices.mesh import state_sharding
from align_jax.models.parameters import first_inputs
from align_jax.training.kept_programs import FIRST_STATE, KeptPrograms
from align_jax.training.schedule_free import evaluation_point
from align_jax.training.step_plan import StepPlan


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: () int32, steps taken.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32.
      optimizer: the optimizer's state.
      average: moving averages of {"params", "batch_stats"}; None if the config has no
        `average_decay`.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    optimizer: Any
    average: dict | None = None

    @property
    def variables(self) -> dict:
        """{"params", "batch_stats"} for evaluation: the average if there is one.

        A schedule-free optimizer has an average of the parameters, which is computed at
        each call; the running statistics are those of its gradients' point.
        """
        params = evaluation_point(self.optimizer, self.params)
        return self.average or self.own_variables | {"params": params}

    @property
    def own_variables(self) -> dict:
        """{"params", "batch_stats"} of the last step, without averaging."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(plan: StepPlan, kept: KeptPrograms | None = None) -> TrainState:
    """Initialises the state of step 0 from the seed, sharded over the devices.

    Args:
      plan: plan of the run's step.
      kept: the run's kept programs; None to compile the program.
    """
    compile_one = partial(compile_create, plan)
    program = kept.get(FIRST_STATE, compile_one) if kept else compile_one()
    return program()


def compile_create(plan: StepPlan) -> jax.stages.Compiled:
    """Compiles the program, without arguments, that `create_state` runs."""
    create = jax.jit(partial(_create, plan), out_shardings=state_shardings(plan))
    return compile_fast(create.lower(), plan.mesh, ONCE_OPTIONS)


@lru_cache(maxsize=4)  # tracing takes seconds; each size of the batch has a plan
def abstract_state(plan: StepPlan) -> TrainState:
    """Returns a run's state with a sharded `jax.ShapeDtypeStruct` for each array."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=state_sharding(x.shape, plan.mesh)
        ),
        jax.eval_shape(partial(_create, plan)),
    )


def state_shardings(plan: StepPlan) -> TrainState:
    """Returns the sharding of every array of a run's state."""
    return jax.tree.map(lambda x: x.sharding, abstract_state(plan))


def _create(plan: StepPlan) -> TrainState:
    variables = plan.model.init(
        jax.random.key(plan.seed), *first_inputs(plan.model), train=False
    )
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})  # a model may have none
    averaged = plan.optimizer.average_decay is not None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        optimizer=plan.transformation.init(params),
        average={"params": params, "batch_stats": batch_stats} if averaged else None,
    )
