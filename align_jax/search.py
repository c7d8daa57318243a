"""Runs a random search: trials, the best of each task, final runs and their scores.

    python main.py --config=configs/vtab.py --workdir=DIR ...

Every trial and every final run is a training run with a workdir of its own, so a search
that was killed goes on with the run that it was in, and none is made twice.
"""

import os
import statistics
from typing import Any

import jax
import tensorflow as tf
from jax.experimental import multihost_utils

from align_jax import workdir as folder
from align_jax.checkpoint import FOLDER
from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.search_config import SearchConfig
from align_jax.train import train


def search(fields: dict[str, Any], workdir: str) -> None:
    """Runs or continues a search; see `SearchConfig`.

    Writes results.json: "eval/<task>/<score>" the median over the seeds, ".../std"
    their deviation, ".../trial" the best trial, and "eval/<group>/mean" the groups'.

    Raises:
      InputError: bad input, found before the first trial begins.
      Preempted: told to stop; the same command continues.
    """
    config = read_config(SearchConfig, fields)
    config.check()
    folder.check(workdir, fields)
    if folder.leads():
        folder.claim(workdir, fields)
    results: dict[str, float] = {}
    score = config.final_metric.rpartition("/")[2]
    for task in config.tasks:
        trial, scores = _choose(config, task, workdir), []
        for seed in config.seeds:
            final = config.final_fields(task, trial, seed)
            place = os.path.join(workdir, task, f"seed_{seed}")
            scores.append(_run(final, place, config.final_metric))
        results |= {
            f"eval/{task}/{score}": statistics.median(scores),
            f"eval/{task}/std": statistics.pstdev(scores),
            f"eval/{task}/trial": trial,
        }
    for group, tasks in {**config.groups, "all": [*config.tasks]}.items():
        medians = [results[f"eval/{task}/{score}"] for task in tasks]
        results[f"eval/{group}/mean"] = statistics.fmean(medians)
    if folder.leads():
        folder.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
        for name, value in results.items():
            print(f"{name:<48}{value:>10.4f}")


def _choose(config: SearchConfig, task: str, workdir: str) -> int:
    """Runs a task's trials and returns the best one's number."""
    scores = []
    for trial in range(config.trials):
        place = os.path.join(workdir, task, f"trial_{trial:02}")
        scores.append(_run(config.trial_fields(task, trial), place, config.metric))
        print(f"{task}, trial {trial}: {config.metric} {scores[-1]:.4f}", flush=True)
    return scores.index(max(scores))


def _run(fields: dict[str, Any], workdir: str, metric: str) -> float:
    """Trains, unless it was done before, and returns the score."""
    folder.check(workdir, fields)
    if not folder.is_finished(workdir):
        train(fields, workdir)
        multihost_utils.sync_global_devices(workdir)  # the first process wrote it
        jax.clear_caches()  # the next run is another program
    if folder.leads():  # a checkpoint a trial would fill any disk
        checkpoints = os.path.join(workdir, FOLDER)
        if tf.io.gfile.exists(checkpoints):
            tf.io.gfile.rmtree(checkpoints)
    results = folder.read_json(os.path.join(workdir, folder.RESULTS_FILE))
    if metric not in results:
        known = ", ".join(name for name in results if name.startswith("eval/"))
        raise InputError(f"{workdir} has no score {metric!r}; it has {known}")
    return results[metric]
