"""Times the parts of `benchmarks.gpu_check` one after another, within a budget.

All entries compile or load at the same time, and then each is timed with the GPU to
itself. A part waits until nothing compiles any more. If this takes too long for the
parts that have peers, the most important of those that are ready are timed meanwhile.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from benchmarks.gpu_parts import Entry, Part
from benchmarks.turns import Failure

POLL = 0.1  # seconds
SLACK = 2  # seconds that stay free beside all estimates
# An entry is killed after this number of times its estimate, and some seconds more.
OVERRUN, GRACE = 2, 10


class Process(Protocol):
    """The part of `TimedProcess` that a schedule needs."""

    def has_ended(self) -> bool:
        """Whether the process has ended."""

    def is_ready(self) -> bool:
        """Whether the process waits for its turn, or has had it."""

    def begin(self) -> None:
        """Gives the turn to the process."""

    def result(self) -> dict[str, Any]:
        """Returns the result of a process that has ended, or raises Failure."""

    def kill(self) -> None:
        """Ends the process, if it has not ended."""


class Budget:
    """Seconds that a check may take, from now on."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ):
        """Begins to count.

        Args:
          seconds: the budget.
          clock: function that returns the time in seconds.
          pause: function that waits for some seconds.
        """
        self.pause = pause
        self._seconds, self._clock, self._start = seconds, clock, clock()

    def spent(self) -> float:
        """Returns the seconds since the beginning."""
        return self._clock() - self._start

    def left(self) -> float:
        """Returns the seconds until the end."""
        return self._seconds - self.spent()


@dataclasses.dataclass
class Schedule:
    """Parts in the order of their importance, and the processes of their entries.

    Attributes:
      parts: the parts that have not been timed yet.
      processes: process of each entry, or the reason why it has none.
      budget: time of the whole check.
    """

    parts: list[Part]
    processes: dict[Entry, Process | str]
    budget: Budget

    def run(self) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
        """Yields each part, as soon as it has been timed, with a row for each entry.

        A row has the entry's name as "implementation" and its result or a "reason". It
        has names of other entries as "beside" if these were compiling.
        """
        try:
            while self.parts:
                part = self._choose()
                if part:
                    rows = [self._time(entry) for entry in part.entries]
                    self.parts.remove(part)
                    yield part, rows
                else:
                    self.budget.pause(POLL)
        finally:
            for process in self.processes.values():
                if not isinstance(process, str):
                    process.kill()

    def _choose(self) -> Part | None:
        """Returns the part that is timed now, or None to wait for one."""
        busy = {*self._preparing()}
        if not busy:
            return self.parts[0]
        left = self.budget.left()
        if left > SLACK + sum(p.seconds for p in self.parts if p.has_peer):
            return None
        kept = 0.0  # for more important parts
        for part in self.parts:
            if busy.isdisjoint(part.entries) and left >= kept + part.seconds:
                return part
            kept += part.seconds
        return None if left > self.parts[0].seconds else self.parts[0]

    def _preparing(self) -> Iterator[Entry]:
        """Yields the entries of the parts to come that compile or load."""
        for entry in (entry for part in self.parts for entry in part.entries):
            process = self.processes[entry]
            if not isinstance(process, str):
                if not process.has_ended() and not process.is_ready():
                    yield entry

    def _time(self, entry: Entry) -> dict[str, Any]:
        """Times an entry and returns its row."""
        process, row = self.processes[entry], {"implementation": entry.name}
        if isinstance(process, str):
            return row | {"reason": process}
        try:
            return self._take_turn(entry, process) | row
        except Failure as failure:
            return row | {"reason": f"{failure}"}
        finally:
            process.kill()

    def _take_turn(self, entry: Entry, process: Process) -> dict[str, Any]:
        """Lets a process take its turn and returns its result, or raises Failure."""
        begin, left = self.budget.spent(), self.budget.left()
        preparing = [*self._preparing()]
        if entry in preparing:
            raise Failure(f"was not ready after {begin:.0f} s")
        if not process.has_ended():
            if entry.seconds > left:
                raise Failure(
                    f"does not fit: its turn takes about {entry.seconds:g} s, and"
                    f" {max(left, 0):.0f} s are left"
                )
            process.begin()
        allowed = min(left, OVERRUN * entry.seconds + GRACE)
        while not process.has_ended():
            if self.budget.spent() - begin > allowed:
                raise Failure(f"was killed after {allowed:.0f} s of its turn")
            self.budget.pause(POLL)
        others = [other.name for other in preparing]
        return process.result() | ({"beside": others} if others else {})


def start(
    parts: Sequence[Part],
    launch: Callable[[Part, Entry], Process | str],
    budget: Budget,
) -> Schedule:
    """Starts the processes of all entries.

    Args:
      parts: the parts, the most important one first.
      launch: function that starts an entry's process, or returns a reason against it.
      budget: time of the whole check.
    """
    processes = {entry: launch(part, entry) for part in parts for entry in part.entries}
    return Schedule([*parts], processes, budget)
