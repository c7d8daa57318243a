"""The files of a run's folder, and the process that writes them."""

import contextlib
import os
from collections.abc import Iterator

import jax
from orbax.checkpoint import multihost

from align_jax import places
from align_jax.locks import PATIENCE, Lock, locked

METRICS_FILE = "metrics.jsonl"
PARTS_FOLDER = "metrics"  # in a bucket, instead of the file; see `metric_lines`
RESULTS_FILE = "results.json"


def leads() -> bool:
    """Returns whether this process is the first, which writes the folder's files."""
    return jax.process_index() == 0


def is_finished(workdir: str) -> bool:
    """Returns whether the folder holds `RESULTS_FILE`.

    It is written after metrics and checkpoints; only the report comes later.
    """
    return places.exists(os.path.join(workdir, RESULTS_FILE))


@contextlib.contextmanager
def locked_workdir(workdir: str) -> Iterator[Lock]:
    """Holds the folder's lock in the first process; the others wait until it does.

    Raises:
      InputError: another run holds the lock, or the folder cannot be written.
    """
    with locked(workdir) if leads() else contextlib.nullcontext(Lock()) as lock:
        wait_for_all = multihost.get_barrier_sync_fn()
        wait_for_all(key="workdir locked", timeout_ms=int(PATIENCE + 600) * 1000)
        yield lock
