"""The training step as compiled programs, with and without norms."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from align_jax.devices.compiling import compile_fast
from align_jax.devices.mesh import batch_split, replicated
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import abstract_state, state_shardings
from align_jax.training.train_step import train_step


def make_train_step(plan: StepPlan, norms: bool = False) -> jax.stages.Wrapped:
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
