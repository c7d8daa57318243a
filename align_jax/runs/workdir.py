"""The files of a run's folder, and the process that writes them."""

import os

import jax

from align_jax import places

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"


def leads() -> bool:
    """Returns whether this process is the first, which writes the folder's files."""
    return jax.process_index() == 0


def is_finished(workdir: str) -> bool:
    """Returns whether the folder holds `RESULTS_FILE`.

    It is written after metrics and checkpoints; only the report comes later.
    """
    return places.exists(os.path.join(workdir, RESULTS_FILE))
