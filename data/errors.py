"""The error for what a user can mend, and how a command shows it."""

import sys
from collections.abc import Callable


class DataError(ValueError):
    """Bad input: the message says what was found, what was wanted and what to do."""


def run_command(name: str, command: Callable[[], None]) -> int:
    """Runs a command; bad input, a missing package or Ctrl-C ends in one line.

    Returns:
      The exit code: 0, 2 for bad input or a missing package, 130 for Ctrl-C.
    """
    try:
        command()
        return 0
    except DataError as error:
        message, code = str(error), 2
    except ImportError as error:
        found = f"package {error.name!r} is missing"
        if not isinstance(error, ModuleNotFoundError) or not error.name:
            found = str(error).strip().splitlines()[0]
        mend = "run `make .venv`, or `pip install -r requirements.txt`"
        message, code = f"{found}: {mend}", 2
    except KeyboardInterrupt:
        message, code = "interrupted; the same command continues", 130
    print(f"{name}: {message}", file=sys.stderr)
    return code
