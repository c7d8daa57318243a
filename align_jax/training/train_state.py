"""The state that a training step changes: its creation, shapes and shardings."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from align_jax.devices.compiling import ONCE_OPTIONS, compile_fast, tracing
from align_jax.devices.mesh import place_array, state_sharding
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
    compile_one = partial(compile_draws, plan)
    program = kept.get(FIRST_STATE, compile_one) if kept else compile_one()
    draws = iter(program())
    shapes, tree = jax.tree.flatten(abstract_state(plan))
    leaves = [
        next(draws)
        if value is None
        else place_array(np.full(like.shape, value, like.dtype), like.sharding)
        for value, like in zip(_constants(plan), shapes, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def compile_draws(plan: StepPlan) -> jax.stages.Compiled:
    """Compiles the program, without arguments, that `create_state` runs.

    Its results are the arrays of the state that are no constants, in their order. The
    others, such as moments of 0, are most of the state, and the host fills them.
    """
    return _compile_once(
        partial(_draw, plan), _drawn(plan, state_shardings(plan)), plan
    )


def compile_create(plan: StepPlan) -> jax.stages.Compiled:
    """Compiles a program, without arguments, that makes the state of step 0."""
    return _compile_once(_creation(plan), state_shardings(plan), plan)


def _compile_once(
    create: Callable, shardings: Any, plan: StepPlan
) -> jax.stages.Compiled:
    with tracing():
        lowered = jax.jit(create, out_shardings=shardings).lower()
    return compile_fast(lowered, plan.mesh, ONCE_OPTIONS)


def _draw(plan: StepPlan) -> list[jax.Array]:
    return _drawn(plan, _creation(plan)())


def _drawn(plan: StepPlan, state: TrainState) -> list:
    """Returns the leaves of a state, or of a tree like it, that are no constants."""
    leaves = zip(_constants(plan), jax.tree.leaves(state), strict=True)
    return [leaf for value, leaf in leaves if value is None]


@lru_cache(maxsize=4)
def _constants(plan: StepPlan) -> list[Any]:
    """Returns the one number that fills each array of the first state, or None."""
    with tracing():
        traced = _creation(plan).trace().jaxpr.jaxpr
    filled = {
        equation.outvars[0]: equation.invars[0].val
        for equation in traced.eqns
        if equation.primitive.name == "broadcast_in_dim"
        and isinstance(equation.invars[0], Literal)
    }
    return [
        leaf.val if isinstance(leaf, Literal) else filled.get(leaf)
        for leaf in traced.outvars
    ]


@lru_cache(maxsize=4)  # tracing takes seconds; each size of the batch has a plan
def _creation(plan: StepPlan) -> jax.stages.Wrapped:
    """Returns `_create` of a plan, jitted, so that JAX keeps its trace."""
    return jax.jit(partial(_create, plan))


@lru_cache(maxsize=4)
def abstract_state(plan: StepPlan) -> TrainState:
    """Returns a run's state with a sharded `jax.ShapeDtypeStruct` for each array."""
    with tracing():
        shapes = jax.eval_shape(_creation(plan))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=state_sharding(x.shape, plan.mesh)
        ),
        shapes,
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
