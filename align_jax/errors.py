"""Errors a user can fix, and how commands print them."""

import contextlib
import importlib.metadata
import os
import re
import select
import signal
import struct
import sys
import threading
import tokenize
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor

from align_jax.quiet import drop_start_lines

UNAWAITED = "unawaited"  # name of a thread for which a process does not wait at its end
STDOUT = 1  # file descriptor
STOPPED = 128 + signal.SIGTERM  # exit code of a run that stopped after SIGTERM
UNREAD = 128 + signal.SIGPIPE  # exit code of a command whose output nobody reads

# The requirement that brings a package whose import has another name.
BROUGHT_BY = {
    "PIL": "pillow",
    "absl": "absl-py",
    "faiss": "faiss-cpu",
    "google": "google-cloud-storage",
    "h11": "uvicorn",
    "h5py": "tensorflow",
    "ibis": "ibis-framework",
    "keras": "tensorflow",
    "llvmlite": "numba",
    "orbax": "orbax-checkpoint",
    "pydantic": "fastapi",
    "starlette": "fastapi",
    "tensorstore": "orbax-checkpoint",
    "trackio": "gradio-client",  # the extra lacks Trackio itself, see docs/trackers.md
    "yaml": "PyYAML",
}
# Errors of `numpy.load` and `zipfile` for a damaged .npz file, beside OSError.
DAMAGED_NPZ = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,  # for a flag of encryption or an unknown compression
    SyntaxError,  # of a header
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
KILLED = "It was killed, most often for lack of memory; the same command continues."
REINSTALL = "run `make .venv`, or `pip install -r requirements.txt`"


class Preempted(Exception):
    """The run stopped early because it received a notice to stop."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was wanted and what to do.

    Commands print it as one line and exit with 2 instead of showing a traceback.
    """


class NonFiniteError(FloatingPointError):
    """The loss, the temperature or the state of a step holds NaN or infinity.

    Attributes:
      step: number of the step.
      advice: change of the config that may help.
    """

    def __init__(self, message: str, step: int, advice: str = "") -> None:
        super().__init__(message)
        self.step = step
        self.advice = advice


def check_count(place: str, count: int, expected: int, what: str) -> None:
    """Raises InputError if a data set has another number of parts than expected.

    Args:
      place: name of the file, folder or split, for the message.
      count: number of its parts.
      expected: number that it must have; 0 for any number above 0.
      what: name of the parts, such as "pictures".
    """
    if not count or expected not in (0, count):
        wanted = f"{expected:,}" if expected else "one or more"
        raise InputError(f"{place} has {count:,} {what}; wanted {wanted}")


def one_line(error: BaseException) -> str:
    """Returns an error's message with every run of white space as one space."""
    return " ".join(str(error).split())


@contextlib.contextmanager
def warned(failure: str, advice: str) -> Iterator[None]:
    """Turns an error inside the `with` statement into one line on stderr.

    This is for output that a program can do without. A notice to stop is raised.

    Args:
      failure: failure in words, such as "report.html is not written".
      advice: consequence for the user.
    """
    try:
        yield
    except Preempted:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"warning: {failure}: {type(error).__name__}: {one_line(error)}"
            f" ({frame.filename}, line {frame.lineno}); {advice}",
            file=sys.stderr,
            flush=True,
        )


def printable(text: str) -> str:
    """Returns a text for a terminal: control characters become escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def missing_package(name: str) -> str:
    """Returns a line that says which of our extras installs a package.

    Args:
      name: name by which the package is imported.
    """
    name = name.partition(".")[0]
    package = BROUGHT_BY.get(name, name).replace("_", "-").lower()
    try:
        requirements = importlib.metadata.requires("align-jax") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout without installation
        requirements = []
    for requirement in requirements:
        found = re.match(r"[\w.-]+", requirement)
        if found and found[0].replace("_", "-").lower() == package:
            extra = re.search(r"extra == .([\w-]+)", requirement)
            ours = f"[{extra[1]}]" if extra else ""
            return (
                f"package {name!r} is missing: install align-jax{ours}, in a checkout"
                f" by `pip install -e '.{ours}'`"
            )
    return f"package {name!r} is missing: {REINSTALL}"


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command; an error that a user can fix is printed as one line on stderr.

    All other errors are raised. TensorFlow's lines at its import are dropped.

    Args:
      name: name of the command, printed before the error.
      command: the command, without arguments; it may return its exit code.

    Returns:
      The exit code: the command's result, or 0; 2 for bad input, a missing package, a
      loss that is not finite, or a killed process of the command; 130 for Ctrl-C; 141
      if the program that read the output has ended, as `head` does; 143 for a notice to
      stop.
    """
    drop_start_lines()
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _is_unread():
            raise
        return UNREAD
    except (InputError, FloatingPointError) as error:
        message, code = str(error), 2
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            message = missing_package(error.name)
        else:
            message = f"{one_line(error)}: {REINSTALL}"
        code = 2
    except BrokenExecutor as error:
        message, code = f"{one_line(error)} {KILLED}", 2
    except KeyboardInterrupt:
        message, code = "interrupted; the same command continues", 130
    except Preempted as error:
        message, code = f"{error}; the same command continues", STOPPED
    print(f"{name}: {message}", file=sys.stderr)
    return code


def end_unawaited(code: int) -> int:
    """Returns an exit code; ends the process with it if a thread is `UNAWAITED`.

    A thread in a compiler cannot be stopped. Python would not wait for it, but would
    abort the process when the compiler returns.
    """
    if any(thread.name == UNAWAITED for thread in threading.enumerate()):
        import jax  # loaded already, by the thread

        jax.distributed.shutdown()  # as at the end of any process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _is_unread() -> bool:
    """Returns whether nobody reads stdout; if so, drops the text that waits in it."""
    pipe = select.poll()
    pipe.register(STDOUT)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    # Python flushes once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True
