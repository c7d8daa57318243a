"""Measures steps on the devices, from a thread that waits for their results."""

import collections
import queue
import statistics
import threading
import time
from collections.abc import Callable

import jax

RECENT = 100  # steps from which the median is computed


class StepTimes:
    """The times of steps on the devices.

    The loop runs ahead of the devices, so a clock in the loop does not see single
    steps. A step's time begins when the step is handed over, or when the step before it
    ends if that is later. So it excludes waiting for input.

    Attributes:
      begun: number of the last step whose batch has arrived; 0 before the first one.
      finished: number of the last step whose results are computed; 0 before that.
      moved: time at which `finished` last changed, in Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Prepares to measure.

        Args:
          clock: function that returns the time in Unix seconds.
        """
        self.begun = self.finished = 0
        self.moved = 0.0
        self._clock = clock
        self._seconds: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, step: int, result: jax.Array) -> None:
        """Adds a step that was handed over, with one of its results."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, daemon=True)
            self._thread.start()
        self._waiting.put((step, self._clock(), result))

    def _wait(self) -> None:
        while (added := self._waiting.get()) is not None:
            step, handed_over, result = added
            try:
                jax.block_until_ready(result)
            except Exception:  # the loop meets the same error when it reads the result
                return
            now = self._clock()
            seconds = now - max(handed_over, self.moved)
            self._seconds.append(seconds)
            self._recent.append(seconds)
            self.finished, self.moved = step, now

    def take_deviation(self) -> float:
        """Returns the standard deviation of the seconds a step since the last call."""
        seconds, self._seconds = self._seconds, []
        return statistics.pstdev(seconds) if seconds else 0.0

    def median(self) -> float:
        """Returns the median of the last `RECENT` steps, in seconds; 0 before them."""
        recent = list(self._recent)
        return statistics.median(recent) if recent else 0.0

    def close(self) -> None:
        """Ends the thread, unless the devices never finish a step."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout=5)
