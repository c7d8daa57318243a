"""What ends a command for a reason a user knows or can mend, and how it is shown."""

import signal
import sys
from collections.abc import Callable

STOPPED = 128 + signal.SIGTERM  # exit code of a run that was told to stop


class Preempted(Exception):
    """The run was told to stop and did."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was wanted and what to do.

    `main.py` prints it as one line and exits with 2 instead of showing a traceback.
    """


def run_command(name: str, command: Callable[[], None]) -> int:
    """Runs a command; bad input, a missing package or Ctrl-C ends in one line.

    Returns:
      The exit code: 0, 2 for bad input or a missing package, 130 for Ctrl-C.
    """
    try:
        command()
        return 0
    except InputError as error:
        message, code = str(error), 2
    except ModuleNotFoundError as error:
        mend = "run `make .venv`, or `pip install -r requirements.txt`"
        message, code = f"package {error.name!r} is missing: {mend}", 2
    except KeyboardInterrupt:
        message, code = "interrupted; the same command continues", 130
    print(f"{name}: {message}", file=sys.stderr)
    return code
