"""Processes that prepare themselves at the same time and are timed one after another.

A program that is timed calls `wait_for_turn` when it has compiled or loaded all that it
needs. `TimedProcess` is the side of the process that started it.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, cast

READY = "ready for its turn"


def wait_for_turn() -> None:
    """Prints that this process is ready, and waits for a line on stdin.

    The process ends if stdin ends, as then nobody reads its result.
    """
    print(READY, flush=True)
    if not sys.stdin.readline():
        sys.exit("the program that started this one has ended")


class Failure(Exception):
    """A process ended without a result; the message is the reason, in one line."""


class TimedProcess:
    """A process that calls `wait_for_turn` and prints its result as a line of JSON."""

    def __init__(
        self, command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str]
    ):
        """Starts the process.

        Args:
          command: program and arguments.
          log: file for its output; stderr is in a file with the suffix .err beside it.
          environment: variables beside those of this process.
        """
        self._log, self._errors = log, log.with_suffix(".err")
        with self._log.open("w") as output, self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                bufsize=0,
                env={**os.environ, **environment},
                start_new_session=True,  # so that its processes end with it
            )
        self._stdin = cast(BinaryIO, self._process.stdin)

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def is_ready(self) -> bool:
        """Whether the process waits for its turn, or has had it."""
        return READY in self._log.read_text(errors="replace").splitlines()

    def begin(self) -> None:
        """Gives the turn to the process."""
        with contextlib.suppress(BrokenPipeError):  # `result` says why it has ended
            self._stdin.write(b"\n")

    def result(self) -> dict[str, Any]:
        """Returns the last line of the output of a process that has ended.

        Raises:
          Failure: the process failed, or its last line is no JSON object.
        """
        if code := self._process.wait():
            raise Failure(f"ended with {code}: {last_line(self._errors)}")
        try:
            found = json.loads(last_line(self._log))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Failure(f"printed no result, see {self._log}")
        return found

    def kill(self) -> None:
        """Kills the process and those that it started."""
        kill(self._process)
        self._stdin.close()


def last_line(path: pathlib.Path) -> str:
    """Returns a file's last line that is not blank, or its path if all lines are."""
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"{path}")


def kill(process: subprocess.Popen) -> None:
    """Kills what is left of a process and of those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
