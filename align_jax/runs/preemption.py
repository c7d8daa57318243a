"""Notices to stop a run: SIGTERM, or a pod's notice, which arrives as SIGTERM.

A run of one process handles the signal itself. In a run of several processes, JAX's
preemption service agrees on a step after which all of them save and end.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from align_jax.errors import STOPPED, Preempted

GRACE = 20  # seconds; clouds give 30 from the signal to the kill


class Notice:
    """Listens for SIGTERM inside a `with` statement.

    Attributes:
      leaves_at_once: whether the signal raises `Preempted` at once. This is safe while
        the state does not change, as during an evaluation. It has an effect in runs of
        one process only. It begins as True, and the signal sets it to False.
    """

    def __init__(self, grace: float = GRACE) -> None:
        """Prepares to listen.

        Args:
          grace: seconds from the signal after which the process ends, even in a
            compiler, if the `with` statement has not ended; for runs of one process.
        """
        self.leaves_at_once = True
        self._grace = grace
        self._told = threading.Event()
        self._raised: Preempted | None = None
        self._left = threading.Event()
        self._alone = jax.process_count() == 1
        main_thread = threading.current_thread() is threading.main_thread()
        self._listens = self._alone and main_thread  # other threads cannot

    def __enter__(self) -> "Notice":
        """Begins to listen in a run of one process, if this is the main thread."""
        if self._listens:
            # A handler in Python waits for C code to return, such as the compiler. The
            # byte that the signal writes to this pipe does not wait.
            read, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            threading.Thread(target=self._watch, args=(read,), daemon=True).start()
            self._handler = signal.signal(signal.SIGTERM, self._handle)
            signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops listening.

        Raises:
          Preempted: the signal raised it, and the interrupted code raised another error
            instead.
        """
        self._left.set()
        if self._listens:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, self._handler)
            os.close(self._pipe)
        self._uncover(error)

    def _uncover(self, error: BaseException | None) -> None:
        """Raises the `Preempted` that the signal raised if `error` followed from it.

        Libraries may fail in the `finally` block of code that the signal interrupts.
        """
        context = error and error.__context__
        while context is not None:
            if context is self._raised:
                raise self._raised
            context = context.__context__

    @contextlib.contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Lets the signal raise `Preempted` inside the `with` statement."""
        self.leaves_at_once = True
        try:
            if self._told.is_set():  # since the step's `reached`
                self._leave()
            yield
        except Exception as error:
            self._uncover(error)
            raise
        self.leaves_at_once = False

    def reached(self, step: int) -> bool:
        """Returns whether the run must stop after this step.

        All processes must ask after every step, and get the same answer.
        """
        if self._alone:
            return self._told.is_set()
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, *_: object) -> None:
        self._told.set()
        if self.leaves_at_once:
            self._leave()

    def _leave(self) -> NoReturn:
        self.leaves_at_once = False  # a second signal must not cut the saving short
        self._raised = Preempted("told to stop; nothing new to save")
        raise self._raised

    def _watch(self, pipe: int) -> None:
        """Ends the process `grace` seconds after SIGTERM, unless `__exit__` ran before.

        Args:
          pipe: descriptor from which the numbers of received signals are read.
        """
        with os.fdopen(pipe, "rb", 0) as file:
            while signals := file.read(1):
                if signals[0] == signal.SIGTERM and not self._left.wait(self._grace):
                    print(
                        f"main.py: told to stop; left after {self._grace} s without"
                        " saving; the same command continues from the last checkpoint,"
                        " or begins again if there is none",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(STOPPED)
