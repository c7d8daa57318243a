"""The training step as compiled programs, with and without norms in the metrics."""

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from align_jax.devices.compiling import compile_fast, tracing
from align_jax.devices.mesh import batch_split, replicated
from align_jax.losses.objective import Metrics
from align_jax.training.kept_programs import KeptPrograms
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import (
    TrainState,
    abstract_state,
    state_shardings,
)
from align_jax.training.train_step import drop_norms, train_step

NAMES = {False: "step", True: "step_with_norms"}  # names of the kept programs


def make_train_step(plan: StepPlan, norms: bool = False) -> jax.stages.Wrapped:
    """Returns a run's jitted `train_step`, to be called as `step(state, batch)`.

    A call reuses the memory of `state` (donation), which must not be used afterwards.
    """
    return _jit_step(partial(train_step, plan=plan, norms=norms), plan)


def _jit_step(step: Callable, plan: StepPlan) -> jax.stages.Wrapped:
    """Jits a function (state, batch) -> (state, metrics), which may reuse the state."""
    shardings = state_shardings(plan)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_split(plan.mesh)),
        out_shardings=(shardings, replicated(plan.mesh)),
        donate_argnums=0,
    )


def compile_step(
    plan: StepPlan, batch: dict[str, jax.ShapeDtypeStruct], norms: bool = False
) -> jax.stages.Compiled:
    """Compiles a run's step ahead of its first call.

    Args:
      plan: plan of the step.
      batch: shapes and shardings of the global batch, see `train_step`.
      norms: whether the metrics include norms of gradients and updates.
    """
    lowered = make_train_step(plan, norms).lower(abstract_state(plan), batch)
    return compile_fast(lowered, plan.mesh)


def compile_steps(
    plan: StepPlan,
    batch: dict[str, jax.ShapeDtypeStruct],
    kinds: Collection[bool],
    kept: KeptPrograms | None = None,
    begin: int = 0,
) -> dict[bool, jax.stages.Compiled]:
    """Compiles a run's step without norms (False), with norms (True), or both.

    Norms slow a step down by about 1 %, so in a long run the steps that do not log them
    have a program without norms, see `RunConfig.measures_norms`. Both programs are of
    one trace and are compiled at the same time.

    Args:
      plan: plan of the step.
      batch: shapes and shardings of the global batch, see `train_step`.
      kinds: keys of the result: False, True, or both.
      kept: the run's kept programs, which are loaded instead; None to compile all.
      begin: number of steps before the programs' phase, part of their kept names.

    Returns:
      The program with norms under True, and the one without norms under False.
    """
    state = abstract_state(plan)
    steps = {norms: make_train_step(plan, norms) for norms in kinds}
    if len(steps) > 1:
        steps[False] = _jit_step(_without_norms(steps[True]), plan)
    turns = threading.Lock()  # so that the second thread finds the first one's trace

    def compile_one(norms: bool) -> jax.stages.Compiled:
        with turns, tracing():
            lowered = steps[norms].lower(state, batch)
        return compile_fast(lowered, plan.mesh)

    def get(norms: bool) -> jax.stages.Compiled:
        name = f"{NAMES[norms]}_from_{begin}" if begin else NAMES[norms]
        if kept is None:
            return compile_one(norms)
        return kept.get(name, partial(compile_one, norms))

    with ThreadPoolExecutor() as pool:
        programs = pool.map(get, kinds)
        return dict(zip(kinds, programs, strict=True))


def _without_norms(step: Callable) -> Callable:
    """Returns a step without norms; it calls a jitted step with norms.

    JAX keeps the trace of the jitted step, and XLA drops the norms.
    """

    def train_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, Metrics]:
        state, metrics = step(state, batch)
        return state, drop_norms(metrics)

    return train_step
