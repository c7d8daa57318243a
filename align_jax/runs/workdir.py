"""A run's folder."""

import os

import jax

from align_jax import places

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"


def leads() -> bool:
    """Returns whether this process writes the folder's files."""
    return jax.process_index() == 0


def is_finished(workdir: str) -> bool:
    """Returns whether the folder holds a run's results."""
    return places.exists(os.path.join(workdir, RESULTS_FILE))
