"""Compiles the steps of a run's phases: the current at once, later ones in a thread."""

import dataclasses
import threading
from concurrent.futures import Future
from functools import partial

import jax
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from align_jax.errors import UNAWAITED
from align_jax.input.phases import find_phase
from align_jax.training.compiled_step import compile_steps
from align_jax.training.flops import count_model_flops
from align_jax.training.kept_programs import KeptPrograms
from align_jax.training.run_config import RunConfig

COMPILING = 7200  # seconds that one process may compile longer than another
Steps = dict[bool, jax.stages.Compiled]  # by kind of step, see `compile_steps`


@dataclasses.dataclass(frozen=True)
class PhaseProgram:
    """The step of a phase, compiled and counted.

    Attributes:
      steps: programs of the kinds of step that the phase has.
      pairs: number of pairs that a step reads.
      flops: operations of a step by part of the model, see `count_model_flops`.
    """

    steps: Steps
    pairs: int
    flops: dict[str, float]


class PhasePrograms:
    """Compiles the steps of a run's phases, each before its phase begins.

    A start waits for the phase of its first step only, until all processes have its
    programs. While it trains, a thread compiles those of later phases, one phase after
    the other.

    Attributes:
      plans: plan of each phase's step.
    """

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        """Makes the plans; compiles nothing.

        Args:
          config: config of the run.
          mesh: devices of the run.

        Raises:
          InputError: the batch of a phase does not fit, see `RunConfig.make_plan`.
        """
        self._config, self._mesh = config, mesh
        self._phases = config.batch_phases
        self.plans = [config.make_plan(mesh, phase) for phase in self._phases]
        self._wait_for_all = multihost.get_barrier_sync_fn()
        self._later: dict[int, Future[PhaseProgram]] = {}
        self._closed = False

    def begin(self, start: int, kept: KeptPrograms | None = None) -> Steps:
        """Returns the programs that a start needs in its phase; compiles later ones.

        Args:
          start: number of steps that the run has taken.
          kept: the run's kept programs, which are loaded; None to compile all.
        """
        number = find_phase(self._phases, start)
        steps = self._compile(number, start, kept)
        if kept:
            kept.write()
        self._wait(start)
        self._later = {n: Future() for n in range(number + 1, len(self._phases))}
        if self._later:
            work = partial(self._work, kept)
            threading.Thread(target=work, name=UNAWAITED, daemon=True).start()
        return steps

    def compile_all(self, kept: KeptPrograms) -> None:
        """Loads or compiles the programs of all phases; does not write them."""
        for number, phase in enumerate(self._phases):
            self._compile(number, phase.start, kept)

    def count_flops(self, step: int) -> dict[str, float]:
        """Counts the operations of the step after `step` steps, by part."""
        number = find_phase(self._phases, step)
        shapes = self._config.batch_shapes(self._mesh, self._phases[number])
        return count_model_flops(self.plans[number], shapes)

    def pairs_after(self, step: int) -> int:
        """Returns the number of pairs that the step after `step` steps reads."""
        return self._phases[find_phase(self._phases, step)].pairs_read

    def begins(self, step: int) -> bool:
        """Returns whether a later phase begins after `step` steps."""
        number = find_phase(self._phases, step)
        return number in self._later and self._phases[number].start == step

    def take(self, step: int) -> PhaseProgram:
        """Returns the programs of the phase that begins after `step` steps.

        It waits until all processes have them, and raises the error if that failed.
        """
        program = self._later[find_phase(self._phases, step)].result()
        self._wait(step)
        return program

    def check(self) -> None:
        """Raises the error of a later phase whose step cannot be compiled."""
        for future in self._later.values():
            if future.done():
                future.result()

    def close(self) -> None:
        """Lets the thread end after the phase that it compiles."""
        self._closed = True

    def _wait(self, step: int) -> None:
        """Waits until all processes have the programs of the steps after `step`.

        On CPUs only the first process reads compiled programs from JAX's cache, so the
        others compile longer, but a first collective waits only half a minute.
        """
        self._wait_for_all(key=f"step {step} compiled", timeout_ms=COMPILING * 1000)

    def _work(self, kept: KeptPrograms | None) -> None:
        for number, future in self._later.items():
            if self._closed:
                return
            start = self._phases[number].start
            try:
                flops = self.count_flops(start)
                steps = self._compile(number, start, kept)
                if kept:
                    kept.write()
                pairs = self._phases[number].pairs_read
                future.set_result(PhaseProgram(steps, pairs, flops))
            except BaseException as error:  # `take` and `check` raise it
                future.set_exception(error)

    def _compile(self, number: int, start: int, kept: KeptPrograms | None) -> Steps:
        """Compiles the programs of the steps after `start` of phase `number`."""
        following = [phase.start for phase in self._phases[number + 1 :]]
        last = min([*following, self._config.total_steps])
        kinds = {
            self._config.measures_norms(step) for step in range(start + 1, last + 1)
        }
        shapes = self._config.batch_shapes(self._mesh, self._phases[number])
        begin = self._phases[number].start
        return compile_steps(self.plans[number], shapes, kinds, kept, begin)
