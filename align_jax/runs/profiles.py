"""Traces steps of a process for TensorBoard's profiler, as planned or on demand."""

import contextlib
import os
import pathlib
import shutil
import signal
import tempfile
import threading

import jax

from align_jax import places
from align_jax.errors import InputError, warned

FOLDER = "profile"  # in a workdir
REQUEST = "profile_request_"  # name of a request in a workdir, with a process's number
STEPS = 5  # steps that are traced on demand


class Profile:
    """Traces some steps of this process inside a `with` statement.

    A run's config plans a trace of one process. While the run goes on, SIGUSR1 to a
    process, or a file WORKDIR/profile_request_P for process P, which it then removes,
    asks for a trace of its next `STEPS` steps. The first process writes its traces to
    WORKDIR/profile, process P to WORKDIR/profile/process_P.
    """

    def __init__(self, workdir: str, steps: tuple[int, ...], process: int = 0) -> None:
        """Plans a trace.

        Args:
          workdir: path or URL of the run's folder.
          steps: first and last step of the planned trace, or () for none.
          process: number of the process whose steps are planned to be traced.

        Raises:
          InputError: steps are planned, and there is no process of that number.
        """
        count, own = jax.process_count(), jax.process_index()
        if steps and process >= count:
            raise InputError(
                f"config.profile_process is {process}; wanted a number below {count},"
                " the number of processes"
            )
        self._planned = steps if steps and process == own else (0, 0)
        self._target = os.path.join(workdir, FOLDER)
        if own:
            self._target = os.path.join(self._target, f"process_{own}")
        self._request = os.path.join(workdir, f"{REQUEST}{own}")
        self._asked = threading.Event()
        self._last: int | None = None  # last step of the present trace
        # Other threads cannot listen to signals.
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Profile":
        """Begins to listen for SIGUSR1, if this is the main thread."""
        if self._listens:
            self._handler = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set())
            signal.siginterrupt(signal.SIGUSR1, False)  # reading and writing go on
        return self

    def __exit__(self, *_: object) -> None:
        """Stops listening; ends and writes a trace that has begun."""
        self._end()
        if self._listens:
            signal.signal(signal.SIGUSR1, self._handler)

    def look(self) -> None:
        """Looks for the file of a request, in the background."""
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        with contextlib.suppress(InputError):  # storage that fails fails the run soon
            if places.exists(self._request):
                places.remove(self._request)
                self._asked.set()

    def before(self, step: int) -> None:
        """Starts a trace if one is planned or asked for and none has begun."""
        first, last = self._planned
        if self._last is not None:
            return
        if self._asked.is_set():
            self._asked.clear()
            first, last = step, step + STEPS - 1
        if first <= step <= last:
            with warned(f"step {step} is not traced", "the run goes on"):
                in_bucket = places.is_url(self._target)  # JAX writes to gs:// only
                self._folder = tempfile.mkdtemp() if in_bucket else self._target
                jax.profiler.start_trace(self._folder)
                self._last = last

    def after(self, step: int, outputs: dict[str, jax.Array]) -> None:
        """Ends the trace with its last step, once the outputs are computed."""
        if self._last is not None and step >= self._last:
            jax.block_until_ready(outputs)
            self._end()

    def _end(self) -> None:
        """Ends and writes the trace, if one has begun."""
        if self._last is None:
            return
        self._last = None
        with warned(f"{self._target} has no new trace", "the run goes on"):
            try:
                jax.profiler.stop_trace()
                if self._folder != self._target:
                    _copy_folder(pathlib.Path(self._folder), self._target)
            finally:
                if self._folder != self._target:
                    shutil.rmtree(self._folder, ignore_errors=True)


def _copy_folder(folder: pathlib.Path, target: str) -> None:
    """Copies all files of a local folder to a path or URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            copy = os.path.join(target, path.relative_to(folder))
            places.write_bytes(copy, path.read_bytes())
