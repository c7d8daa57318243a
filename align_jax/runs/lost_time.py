"""Splits the time of a run by cause: steps that were kept, and lost time."""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

STEPS = "steps"  # the only cause whose time is productive
# Causes of lost time, in the order in which a start meets them, and their meaning.
LOST = {
    "start_up": "start-up: imports, checks, opening data",
    "restore": "reading or making the first state",
    "compile": "compiling",
    "first_batch": "waiting for the first batch",
    "input": "waiting for later batches",
    "save": "steps held by a checkpoint",
    "evaluation": "evaluation",
    "repeated": "steps that ran again after a restart",
    "away": "no process, after the last metrics of a start",
}
PRODUCTIVE = "train/productive_seconds"  # total of the steps that were kept
WALL = "train/wall_seconds"  # since the start of the run's first process


def lost(cause: str) -> str:
    """Returns the name of the metric that holds the total of a key of `LOST`."""
    return f"train/lost_{cause}_seconds"


def process_started() -> float:
    """Returns when this process was started, in Unix seconds.

    Systems without /proc do not say it; there it is the time of this call.
    """
    now = time.time()
    try:
        text = pathlib.Path("/proc/self/stat").read_text()
    except OSError:
        return now
    ticks = int(text.rpartition(")")[2].split()[19])  # since the machine was started
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)


class Timesheet:
    """Gives each moment since a start to one cause: `STEPS` or a key of `LOST`.

    Attributes:
      begun: time of the start, in Unix seconds.
      cause: cause that the present moment belongs to.
      since: time at which `cause` took over, in Unix seconds.
      clock: function that returns the time in Unix seconds.
    """

    def __init__(
        self,
        begun: float | None = None,
        cause: str = "start_up",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Starts with a cause.

        Args:
          begun: time of the start, in Unix seconds; None is now.
          cause: cause of the time since `begun`.
          clock: function that returns the time in Unix seconds.
        """
        self.clock = clock
        self.begun = self.since = self._counted = clock() if begun is None else begun
        self.cause = cause
        self._seconds = dict.fromkeys((STEPS, *LOST), 0.0)

    def switch(self, cause: str) -> None:
        """Gives the time from now on to a cause."""
        now = self.clock()
        self._seconds[self.cause] += now - self._counted
        self._counted = now
        if cause != self.cause:
            self.since, self.cause = now, cause  # other threads read both

    @contextlib.contextmanager
    def doing(self, cause: str) -> Iterator[None]:
        """Gives the time inside the `with` statement to a cause."""
        before = self.cause
        self.switch(cause)
        try:
            yield
        finally:
            self.switch(before)

    def read(self) -> dict[str, float]:
        """Returns the seconds of each cause since `begun`."""
        self.switch(self.cause)
        return dict(self._seconds)


def list_causes(seconds: Mapping[str, float]) -> list[str]:
    """Returns lines with the seconds of each cause before a start's first step.

    Args:
      seconds: result of `Timesheet.read` right before the first step.
    """
    total = sum(seconds.values())
    lines = [
        f"{seconds[cause]:7.1f} s  {text}"
        for cause, text in LOST.items()
        if seconds[cause] >= 0.05
    ]
    return [f"{total:7.1f} s  before the first step:", *lines]


def split_time(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns {cause in words: seconds} of a run; {} if an earlier version ran it.

    Args:
      metrics: last values of the run's metrics, by name.
    """
    if WALL not in metrics:
        return {}
    named = {text: metrics.get(lost(cause), 0.0) for cause, text in LOST.items()}
    return {"steps that were kept": metrics[PRODUCTIVE], **named}
