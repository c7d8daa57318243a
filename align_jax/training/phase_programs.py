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

    A thread compiles the phase of a start's first step, while the start makes its state
    and opens its data, and then the later phases, one after the other. The start waits
    for its first phase only, until all processes have its programs.

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
        self._first: Future[Steps] | None = None  # programs of the start's phase
        self._written: Future[None] = Future()  # done when these are kept
        self._counted: Future[tuple[int, dict[str, float]]] = Future()
        self._taken = threading.Event()  # set when `begin` has them, or nobody waits
        self._closed = False

    def prepare(self, start: int, kept: KeptPrograms | None = None) -> None:
        """Begins to compile the programs of a start's phase; does not wait for them.

        Args:
          start: number of steps that the run has taken.
          kept: the run's kept programs, which are loaded; None to compile all.
        """
        number = find_phase(self._phases, start)
        self._first = Future()
        self._later = {n: Future() for n in range(number + 1, len(self._phases))}
        work = partial(self._work, self._first, number, start, kept)
        threading.Thread(target=work, name=UNAWAITED, daemon=True).start()

    def begin(self, start: int, kept: KeptPrograms | None = None) -> Steps:
        """Returns the programs that a start needs in its phase; compiles later ones.

        The arguments are those of `prepare`, which is called if nobody has before.
        """
        if self._first is None:
            self.prepare(start, kept)
        assert self._first is not None
        steps = self._first.result()
        self._wait(start)
        self._taken.set()
        return steps

    def wait_until_written(self) -> None:
        """Waits until the kept programs of `begin` are in the run's folder."""
        self._written.result()

    def first_work(self) -> tuple[int, dict[str, float]]:
        """Returns the pairs and operations of a step in the phase of `begin`.

        They are those of `pairs_after` and `count_flops`, counted beside the first
        steps; a call waits for them.
        """
        return self._counted.result()

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
        self._taken.set()

    def _wait(self, step: int) -> None:
        """Waits until all processes have the programs of the steps after `step`.

        On CPUs only the first process reads compiled programs from JAX's cache, so the
        others compile longer, but a first collective waits only half a minute.
        """
        self._wait_for_all(key=f"step {step} compiled", timeout_ms=COMPILING * 1000)

    def _work(
        self,
        first: Future[Steps],
        number: int,
        start: int,
        kept: KeptPrograms | None,
    ) -> None:
        """Compiles and keeps the programs of phase `number`, and of later phases."""
        try:
            first.set_result(self._compile(number, start, kept))
        except BaseException as error:  # `begin` raises it
            first.set_exception(error)
            return
        self._taken.wait()  # until the program of the first state is there, too
        try:
            if kept and not self._closed:
                kept.write()
            self._written.set_result(None)
        except BaseException as error:  # `wait_until_written` raises it
            self._written.set_exception(error)
        try:
            flops = {} if self._closed else self.count_flops(start)
            self._counted.set_result((self.pairs_after(start), flops))
        except BaseException as error:  # `first_work` raises it
            self._counted.set_exception(error)
        for later, future in self._later.items():
            if self._closed:
                return
            phase = self._phases[later]
            try:
                flops = self.count_flops(phase.start)
                steps = self._compile(later, phase.start, kept)
                if kept:
                    kept.write()
                future.set_result(PhaseProgram(steps, phase.pairs_read, flops))
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
