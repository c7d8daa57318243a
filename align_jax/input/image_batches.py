"""Turns batches of encoded pictures into batches of pixels, on all processors.

Python threads fill one array a batch. Decoding and resizing run without the interpreter
lock, which a picture needs for tens of microseconds only, so one process keeps dozens
of processors busy. The result does not depend on the number of threads.
"""

import collections
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from align_jax.input.preprocess import PreprocessConfig, train_image
from align_jax.input.scratch import Scratch, Spares

# Encoded pictures (B,), keys (B, 2) for `train_image`, sizes and augmentations, and any
# further data.
Encoded = tuple[Sequence[bytes], np.ndarray, PreprocessConfig, Any]

AHEAD = 2  # batches that are computed while the caller uses one
TASK_PICTURES = 4  # smallest number of pictures in one task of a thread
THREAD_TASKS = 4  # tasks of a batch for each thread, unless they would be smaller


class StartedBatch(NamedTuple):
    """A batch that threads prepare.

    Attributes:
      tasks: futures of some pictures each, in order; their results are the reasons of
        `augment_batches`.
      images: (B, image_size, image_size, 3) uint8, complete when all tasks are done.
      rest: further data of the batch.
    """

    tasks: list[Future]
    images: np.ndarray
    rest: Any


def augment_batches(
    batches: Iterator[Encoded],
    threads: int | None = None,
    ahead: int = AHEAD,
) -> Generator[tuple[np.ndarray, list[str], Any]]:
    """Runs `train_image` on every picture of every batch, some batches ahead.

    Args:
      batches: batches of encoded pictures, see `Encoded`.
      threads: number of threads; by default one a processor of this process.
      ahead: number of batches that are computed while the caller uses one.

    Yields:
      In the same order: images (B, image_size, image_size, 3) uint8, reasons (B,) why a
      picture cannot be used ("" if it can), and the further data of the batch.
    """
    threads = threads or _processors()
    spares, scratch = Spares(), Scratch()
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[StartedBatch] = collections.deque()
        for encoded, keys, config, rest in batches:
            images = spares.take(
                (len(encoded), config.image_size, config.image_size, 3)
            )
            tasks = _start(
                pool,
                encoded,
                keys,
                config=config,
                images=images,
                scratch=scratch,
                size=max(TASK_PICTURES, len(encoded) // (THREAD_TASKS * threads)),
            )
            waiting.append(StartedBatch(tasks, images, rest))
            if len(waiting) > ahead:
                yield _finish(waiting.popleft())
        while waiting:
            yield _finish(waiting.popleft())


def _processors() -> int:
    """Returns the number of processors this process may use, or of all if unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(
    pool: ThreadPoolExecutor,
    encoded: Sequence[bytes],
    keys: np.ndarray,
    config: PreprocessConfig,
    images: np.ndarray,
    scratch: Scratch,
    size: int,
) -> list[Future]:
    """Starts to fill `images` with tasks of `size` pictures; see `StartedBatch`."""
    numbers = keys.tolist()  # Python's integers are faster than NumPy's

    def fill(first: int) -> list[str]:
        reasons = []
        for i in range(first, min(first + size, len(encoded))):
            _, reason = train_image(encoded[i], numbers[i], config, images[i], scratch)
            reasons.append(reason)
        return reasons

    return [pool.submit(fill, i) for i in range(0, len(encoded), size)]


def _finish(batch: StartedBatch) -> tuple[np.ndarray, list[str], Any]:
    reasons = [reason for task in batch.tasks for reason in task.result()]
    return batch.images, reasons, batch.rest
