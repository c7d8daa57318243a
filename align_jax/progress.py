"""Says what a program is doing while there is nothing else to see."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def doing(what: str, shown: bool = True) -> Iterator[None]:
    """Says on stderr what the `with` statement does.

    A terminal also shows the seconds that it takes, as they pass. Other output inside
    the `with` statement is written over the line. The line disappears if an error is
    raised. Elsewhere, such as in a log file, the line has no seconds.

    Args:
      what: activity in words, such as "compiling the training step".
      shown: whether to say anything.
    """
    if not shown or not sys.stderr.isatty():
        if shown:
            print(what, file=sys.stderr, flush=True)
        yield
        return
    begun, ended = time.monotonic(), threading.Event()
    with _own_stderr() as terminal:

        def show(end: str = "\r") -> None:
            seconds = time.monotonic() - begun
            print(f"{what}: {seconds:.0f} s", end=end, file=terminal, flush=True)

        def tick() -> None:
            show()
            while not ended.wait(1):
                show()

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield
        except BaseException:
            ended.set()
            ticking.join()
            print("\r\x1b[K", end="", file=terminal, flush=True)  # clears the line
            raise
        ended.set()
        ticking.join()
        show("\n")


@contextlib.contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """Yields a second stream to the terminal, which stays if stderr is redirected."""
    try:
        number = os.dup(sys.stderr.fileno())
    except OSError:  # not a file
        yield sys.stderr
        return
    with open(number, "w") as stream:
        yield stream
