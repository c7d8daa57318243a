"""The files of a run's folder, and the process that writes them."""

import contextlib
import fnmatch
import os
from collections.abc import Iterator

import jax
from orbax.checkpoint import multihost

from align_jax import places
from align_jax.errors import InputError
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


def check_path(workdir: str) -> None:
    """Checks that a run can write checkpoints to its folder.

    Orbax collects the arrays that it wrote by a pattern that starts with the folder's
    path. If the pattern does not match the path, it saves checkpoints without arrays.
    TensorStore, which writes the arrays, takes a backslash for a slash and refuses
    names that are not UTF-8.

    Args:
      workdir: path or URL of the run's folder.

    Raises:
      InputError: a name in the path is not read back as it is, such as "run [1]".
    """
    path = places.resolve(workdir)
    for name in path.split("/"):
        matches = fnmatch.fnmatchcase(name, name) and "**" not in name
        encoded = name.encode("utf-8", "ignore").decode()
        if not matches or encoded != name or "\\" in name:
            raise InputError(
                f"{path!r} cannot hold checkpoints, because {name!r} is not read back"
                " as it is; wanted names in UTF-8 without brackets, backslashes and **"
            )


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
