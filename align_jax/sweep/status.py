"""Reads the progress of a sweep's runs from their folders."""

import dataclasses
import datetime
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from align_jax import places
from align_jax.config import is_claimed
from align_jax.locks import try_flock
from align_jax.report.run_kinds import check_workdir
from align_jax.runs import workdir as folder
from align_jax.runs.metric_lines import modified, read_last_metrics
from align_jax.runs.results import main_scores
from align_jax.sweep.config import SweepRun

SILENCE = 600  # seconds without metrics after which a run elsewhere counts as stopped
STATES = ("done", "failed", "running", "stopped", "waiting")


@dataclasses.dataclass(frozen=True)
class Status:
    """The progress of a run; None stands for an unknown number.

    Attributes:
      id: the run's id.
      state: one of `STATES`; a "stopped" run has begun and can continue, a "waiting"
        run has not begun.
      step: the last step with metrics; 0 if there are none.
      total: number of steps of the whole run; None for an evaluation.
      pairs_per_second: the last measured speed of all devices together.
      seconds_left: time to the last step at that speed.
      metrics: the latest "train/loss" and `main_scores`, by name.
    """

    id: str
    state: str
    step: int
    total: int | None
    pairs_per_second: float | None
    seconds_left: float | None
    metrics: dict[str, float]


def read_status(run: SweepRun) -> Status:
    """Reads the progress of a run from its folder.

    Raises:
      InputError: the folder belongs to another run, or the storage does not answer.
    """
    check_workdir(run.workdir, run.fields)
    rows = read_last_metrics(run.workdir)
    state = _state(run)
    step = max((int(row["step"]) for row in rows), default=0)
    total = run.fields.get("total_steps")
    latest: dict[str, float] = {}
    for row in rows:
        latest |= row
    speed = latest.get("train/pairs_per_second")
    left = None
    if speed and total:
        pairs = run.fields["virtual_cores"] * run.fields["pairs_per_core"]
        left = (total - step) * pairs / speed
    metrics = {n: latest[n] for n in ("train/loss",) if n in latest}
    metrics |= main_scores(latest)
    return Status(
        id=run.id,
        state=state,
        step=step,
        total=total,
        pairs_per_second=speed,
        seconds_left=left,
        metrics=metrics,
    )


def _state(run: SweepRun) -> str:
    if folder.is_finished(run.workdir):
        return "done"
    if is_locked(run):
        return "running"
    if places.exists(failure_path(run)):
        return "failed"
    if not is_claimed(run.workdir):
        return "waiting"
    # A run without a log was started elsewhere: new metrics show that it is running.
    silent = 0.0 if _has_log(run) else _seconds_silent(run)
    return "running" if 0 < silent < SILENCE else "stopped"


def _seconds_silent(run: SweepRun) -> float:
    """Returns the seconds since the last metric line; 0 if there is none."""
    grew = modified(run.workdir)
    return 0.0 if grew is None else max(time.time() - grew, 1e-3)


def failure_path(run: SweepRun) -> str:
    """Returns the path of the file, beside the run's folder, that describes a failure.

    The file exists if the run's last start by `run_here` failed.
    """
    return f"{run.workdir}.failed.json"


def log_path(run: SweepRun) -> str:
    """Returns the path of the file, beside the run's folder, with the run's output."""
    return f"{run.workdir}.log"


@contextmanager
def locked_log(run: SweepRun) -> Iterator[IO]:
    """Opens the run's log for appending, under an exclusive lock.

    A process that inherits the open file shares the lock. Therefore, if a sweep is
    killed, its run still holds the lock until the run ends. If another process holds
    the lock, this prints a line and waits. The log's folder is created.
    """
    places.make_folder(os.path.dirname(run.workdir))
    with places.appending(log_path(run)) as file:
        if not try_flock(file):
            print(f"{run.id} runs in another process; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _has_log(run: SweepRun) -> bool:
    """Whether the run has a log, which only `run_here` writes, on this machine."""
    return not places.is_url(run.workdir) and places.exists(log_path(run))


def is_locked(run: SweepRun) -> bool:
    """Whether a process on this machine holds the lock of the run's log.

    It is then running the run; see `locked_log`.
    """
    if not _has_log(run):
        return False
    with places.opening(log_path(run)) as file:
        return not try_flock(file, fcntl.LOCK_SH)


def format_status(statuses: Sequence[Status]) -> str:
    """Formats one or more runs as a table for a terminal.

    The last line is that of `count_states`.
    """
    width = max(len(status.id) for status in statuses)
    head = f"{'run':<{width}}  state    {'step':>17}  {'pairs/s':>9}  {'left':>8}"
    lines = [head + "  last metrics"]
    for status in statuses:
        step = f"{status.step:,}" + (f" / {status.total:,}" if status.total else "")
        speed = f"{status.pairs_per_second:,.0f}" if status.pairs_per_second else ""
        left = ""
        if status.state == "running" and status.seconds_left is not None:
            left = str(datetime.timedelta(seconds=round(status.seconds_left)))
        metrics = ", ".join(
            f"{name.removeprefix('train/')} {value:.3f}"
            for name, value in status.metrics.items()
        )
        line = f"{status.id:<{width}}  {status.state:<7}  {step:>17}  {speed:>9}"
        lines.append(f"{line}  {left:>8}  {metrics}".rstrip())
    return "\n".join([*lines, count_states(statuses)])


def count_states(statuses: Sequence[Status]) -> str:
    """Returns the number of runs of each state, such as "3 done, 1 waiting"."""
    counts = {state: sum(s.state == state for s in statuses) for state in STATES}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n)
