"""The steps of a training run, with their metrics, evaluations and checkpoints."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from clu.metric_writers import MetricWriter

from align_jax.devices.exchange import wait_for_all
from align_jax.devices.runtime import return_memory
from align_jax.embed.embedder import Embedder
from align_jax.errors import Preempted
from align_jax.evaluation.runner import run_evaluators
from align_jax.input.pipeline import TrainBatches
from align_jax.locks import Lock
from align_jax.progress import doing
from align_jax.runs.lost_time import STEPS, Timesheet, list_causes
from align_jax.runs.pace import Pace
from align_jax.runs.preemption import Notice
from align_jax.runs.profiles import Profile
from align_jax.runs.telemetry import StepLog
from align_jax.runs.workdir import leads
from align_jax.training.checkpoint import Checkpoints
from align_jax.training.kept_programs import KeptPrograms
from align_jax.training.local_checkpoint import LocalCheckpoints
from align_jax.training.phase_programs import PhasePrograms, Steps
from align_jax.training.run_config import RunConfig
from align_jax.training.train_state import TrainState

COMPILING_LINE = "compiling the training step: minutes, or seconds if done before"


@dataclasses.dataclass
class TrainLoop:
    """A run that is ready to take its steps.

    Attributes:
      config: config of the run.
      state: state after the newest step; each step reuses its memory.
      programs: programs of the step in each phase.
      read: batches of this process, which count the pairs that they replace.
      batches: the global batches made of them.
      evaluators: evaluators by name.
      embedder: encoder for the evaluators.
      checkpoints: the run's checkpoints.
      local: the run's checkpoints on this machine's disk.
      writer: writer of the scores.
      log: writer of the steps' metrics.
      pace: speed of the steps.
      profile: profiles of the steps that the config names.
      lock: lock of the workdir.
      notice: notice to stop.
      times: causes of the time that the run takes.
      counted: whether `pace` has the operations of a step.
    """

    config: RunConfig
    state: TrainState
    programs: PhasePrograms
    read: TrainBatches
    batches: Iterator[dict[str, jax.Array]]
    evaluators: Mapping[str, Any]
    embedder: Embedder
    checkpoints: Checkpoints
    local: LocalCheckpoints
    writer: MetricWriter
    log: StepLog
    pace: Pace
    profile: Profile
    lock: Lock
    notice: Notice
    times: Timesheet
    counted: bool = False

    def run(self, start: int, kept: KeptPrograms) -> None:
        """Takes the steps after the first `start` ones, and saves the state.

        Args:
          start: number of steps that the run has taken.
          kept: the run's kept programs.

        Raises:
          NonFiniteError: a loss, temperature or array of the state is not finite.
          Preempted: a notice to stop came; the state is saved.
        """
        self.times.switch("compile")
        with doing(COMPILING_LINE, leads()):
            programs = self.programs.begin(start, kept)
        return_memory()  # of the compiler
        self.notice.leaves_at_once = False
        self.times.switch(STEPS)
        for step in range(start + 1, self.config.total_steps + 1):
            self._take(step, programs)
            if self.config.flushes(step):
                self._flush()
            stops, scores = self.notice.reached(step), None
            try:
                if self.config.evaluates(step) and not stops:
                    self._flush()
                    scores = self.evaluate(step)
                if self.programs.begins(step) and not stops:
                    self._flush()  # so that no interval has steps of two phases
                    programs = self._begin_phase(step)
            except Preempted:  # the run does it when it continues
                stops = True
            self._save(step, scores, stops)
            if stops:
                self.log.close()
                raise Preempted(f"told to stop; saved after step {step}")
        self.notice.leaves_at_once = True
        self.log.close()
        self.times.switch("save")  # nobody must wait for another step
        self.checkpoints.wait()
        wait_for_all()  # until all metrics are written

    def evaluate(self, step: int) -> dict[str, float]:
        """Scores the state after a step, and writes the scores.

        Raises:
          InputError: a score that the checkpoints are kept by is missing.
          Preempted: a notice to stop came; the scores are not written.
        """
        with self.times.doing("evaluation"), self.notice.leaving_at_once():
            self.embedder.load(self.state.variables)
            with self.log.scoring():
                scores = dict(run_evaluators(self.evaluators, self.embedder))
            self.embedder.load({})  # frees an average that was computed for it
            self.checkpoints.check_scores(scores)
            self.writer.write_scalars(step, scores)
            return scores

    def _take(self, step: int, programs: Steps) -> None:
        first = not self.pace.steps.begun
        with self.pace.waiting(step):
            batch = next(self.batches)
        if first and leads():
            print("\n".join(list_causes(self.times.read())), file=sys.stderr)
        self.profile.before(step)
        program = programs[self.config.measures_norms(step)]
        self.state, metrics = program(self.state, batch)
        self.profile.after(step, metrics)
        replaced = self.read.replaced.total()
        self.log.add(step, metrics | {"replaced_pairs": replaced})

    def _flush(self) -> None:
        self.lock.check()
        self.programs.check()
        if not self.counted:
            self.pace.change(*self.programs.first_work())
            self.counted = True
        self.log.flush()
        self.profile.look()

    def _begin_phase(self, step: int) -> Steps:
        with self.times.doing("compile"), self.notice.leaving_at_once():
            with self.log.showing("compiling"):
                program = self.programs.take(step)
            return_memory()  # of the compiler
            self.pace.change(program.pairs, program.flops)
            return program.steps

    def _save(self, step: int, scores: dict[str, float] | None, stops: bool) -> None:
        """Saves the state after a step if it is due, or if the run stops."""
        last = step == self.config.total_steps
        due = last or stops or self.config.saves(step)
        if not due and not self.local.saves(step):
            return
        self._flush()  # the metrics of a checkpoint's steps are written before it
        with self.times.doing("save"):
            if due:
                self.programs.wait_until_written()  # for the start after this one
                self.checkpoints.save(step, self.state, scores)
            else:
                self.local.save(step, self.state)
