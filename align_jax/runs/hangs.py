"""Reports a hang: which processes hold the others up, and what each of them is doing.

A run is never ended for it. A thread of each process looks at the steps. If none is
finished for too long, the process writes the stacks of its threads to stderr and to
WORKDIR/hangs/process_P_at_step_S.txt, where S is the last step whose batch it had. The
file also shows the others that the process is alive, and how far it has come. The first
process that has come far enough names those that lag behind.
"""

import faulthandler
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable

import jax

from align_jax import places
from align_jax.errors import warned
from align_jax.runs.lost_time import STEPS
from align_jax.runs.pace import Pace

FOLDER = "hangs"  # in a workdir
MEDIANS = 10  # median times of a step that pass before a hang is reported
LOOKS = 20  # looks at the steps in the shortest time before a report
WRITING = 5.0  # seconds that the files of other processes may need to appear
# Causes during which a step must come; compiling or evaluating is no hang.
WATCHED = {
    STEPS: "is computing",
    "first_batch": "is waiting for its batch",
    "input": "is waiting for its batch",
}


def set_aside_hangs(workdir: str) -> None:
    """Renames the reports of earlier starts, so that they do not count for this one."""
    folder = os.path.join(workdir, FOLDER)
    if places.exists(folder):
        places.move(folder, f"{folder}.{time.time():.0f}")


class HangWatch:
    """Looks at the steps of this process inside a `with` statement."""

    def __init__(self, workdir: str, seconds: float, pace: Pace) -> None:
        """Prepares to look.

        Args:
          workdir: path or URL of the run's folder.
          seconds: time without a finished step after which a hang is reported, unless
            `MEDIANS` steps take longer; 0 for no reports.
          pace: causes and steps of this process.
        """
        self._folder = os.path.join(workdir, FOLDER)
        self._seconds = seconds
        self._pace = pace
        self._reported: float | None = None  # last sign of life before the last report
        self._ended = threading.Event()

    def __enter__(self) -> "HangWatch":
        """Starts to look, in a thread."""
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops looking."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / LOOKS):
            with warned("a hang is not reported", "the run goes on"):
                self.look()

    def look(self) -> None:
        """Reports a hang if no step was finished for too long; each hang only once."""
        times, steps = self._pace.times, self._pace.steps
        cause, moved = times.cause, max(times.since, steps.moved)
        silence = times.clock() - moved
        limit = max(self._seconds, MEDIANS * steps.median())
        if cause not in WATCHED or silence <= limit or moved == self._reported:
            return
        self._reported = moved
        finished = steps.finished
        after = f"after step {finished}" if finished else "since the start"
        self._report(f"no step for {silence:.0f} s {after}", WATCHED[cause])
        if jax.process_count() == 1:
            return
        ended = self._ended.wait(WRITING + 2 * self._seconds / LOOKS)
        if ended or steps.finished != finished:  # the run goes on
            return
        begun = read_begun(places.list_names(self._folder))
        late = find_late(begun, finished, jax.process_count())
        if jax.process_index() == first_witness(begun, finished):
            who = ", ".join(map(str, late)) or "none"
            print(
                f"warning: {after}, these processes lag behind: {who} (of"
                f" {jax.process_count()}); stacks are in {self._folder}",
                file=sys.stderr,
                flush=True,
            )

    def _report(self, found: str, doing: str) -> None:
        """Writes the stacks of all threads to stderr and to a file in the workdir."""
        index = jax.process_index()
        text = f"warning: {found}: process {index} {doing}\n{dump_stacks()}"
        print(text, file=sys.stderr, flush=True)
        places.make_folder(self._folder)
        name = f"process_{index}_at_step_{self._pace.steps.begun}.txt"
        places.write_text(os.path.join(self._folder, name), text + "\n")


def dump_stacks() -> str:
    """Returns the stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().rstrip()


def read_begun(names: Iterable[str]) -> dict[int, int]:
    """Reads how far the processes have come, from the names of their reports.

    Returns:
      {number of a process: last step whose batch it had}, sorted by process.
    """
    begun: dict[int, int] = {}
    for name in names:
        if match := re.fullmatch(r"process_(\d+)_at_step_(\d+)\.txt", name):
            process, step = map(int, match.groups())
            begun[process] = max(step, begun.get(process, 0))
    return dict(sorted(begun.items()))


def find_late(begun: dict[int, int], finished: int, count: int) -> list[int]:
    """Returns the numbers of the processes that hold the others up.

    They are those that have not begun the next step or, if no process has, those that
    did not report.

    Args:
      begun: last step of each process that reported, see `read_begun`.
      finished: number of the last step that is finished.
      count: number of processes.
    """
    limit = finished if max(begun.values()) > finished else -1
    return [p for p in range(count) if begun.get(p, -1) <= limit]


def first_witness(begun: dict[int, int], finished: int) -> int:
    """Returns the first process that has begun the next step, or the first at all.

    Args:
      begun: last step of each process that reported, see `read_begun`.
      finished: number of the last step that is finished.
    """
    arrived = (process for process, step in begun.items() if step > finished)
    return next(arrived, next(iter(begun)))
