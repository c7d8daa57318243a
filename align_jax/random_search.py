"""Runs a random search: trials, the best of each task, final runs and their scores.

    python main.py --config=configs/vtab.py --workdir=DIR ...

Every trial and every final run is a training run with a workdir of its own, so a search
that was killed goes on with the run that it was in, and none is made twice.
"""

import math
import os
import statistics
from typing import Any

import jax
from jax.experimental import multihost_utils

from align_jax import places
from align_jax.config import read_config
from align_jax.devices.mesh import make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.errors import InputError
from align_jax.evaluation.runner import make_evaluators
from align_jax.input.training_data import open_training
from align_jax.runs import workdir as folder
from align_jax.runs.provenance import write_provenance
from align_jax.runs.results import print_results
from align_jax.train import train
from align_jax.training.checkpoint import FOLDER
from align_jax.training.random_search_config import SearchConfig, search_execution
from align_jax.training.run_config import run_execution
from align_jax.training.training_runs import read_run_config

DIVERGED = -math.inf  # the score of a run that left the finite numbers


def random_search(fields: dict[str, Any], workdir: str) -> None:
    """Runs or continues a search; see `SearchConfig`.

    Writes results.json: "eval/<task>/<score>" the median over the seeds, ".../std"
    their deviation, ".../trial" the best trial; "eval/<group>/mean" the mean over the
    seeds of the mean over the group's tasks, ".../std" its deviation.

    Raises:
      InputError: bad input, found before the first trial begins; or no trial of a task,
        or not all of its final runs, stayed within the finite numbers.
      Preempted: told to stop; the same command continues.
    """
    config = read_config(SearchConfig, fields)
    config.check()
    reuse_memory()
    _check_data(config)
    folder.check(workdir, fields, search_execution(fields))
    multihost_utils.sync_global_devices("the search is checked")
    # Those that run one trial each begin at once, and do not write the same file.
    if folder.leads() and not (config.only and folder.is_claimed(workdir)):
        folder.claim(workdir, fields)
        write_provenance(workdir)
    if config.only:
        chosen = config.trial_fields(*config.trial_names()[config.only])
        _run(chosen, os.path.join(workdir, config.only), config.metric)
        return
    results: dict[str, float] = {}
    finals: dict[str, list[float]] = {}  # by task, one a seed
    score = config.final_metric.rpartition("/")[2]
    for task in config.tasks:
        trial, finals[task] = _choose(config, task, workdir), []
        for seed in config.seeds:
            final = config.final_fields(task, trial, seed)
            place = os.path.join(workdir, task, f"seed_{seed}")
            finals[task].append(_run(final, place, config.final_metric))
        if min(finals[task]) == DIVERGED:
            raise InputError(f"a final run of {task} in {workdir} diverged")
        results |= {
            f"eval/{task}/{score}": statistics.median(finals[task]),
            f"eval/{task}/std": statistics.pstdev(finals[task]),
            f"eval/{task}/trial": trial,
        }
    for group, tasks in config.groups.items():
        columns = zip(*(finals[task] for task in tasks), strict=True)
        means = [statistics.fmean(column) for column in columns]
        results[f"eval/{group}/mean"] = statistics.fmean(means)
        results[f"eval/{group}/std"] = statistics.pstdev(means)
    if folder.leads():
        places.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
        print_results(workdir)


def _choose(config: SearchConfig, task: str, workdir: str) -> int:
    """Runs a task's trials and returns the best one's number."""
    scores = []
    for trial in range(config.trials):
        place = os.path.join(workdir, task, f"trial_{trial:02}")
        scores.append(_run(config.trial_fields(task, trial), place, config.metric))
        print(f"{task}, trial {trial}: {config.metric} {scores[-1]:.4f}", flush=True)
    if max(scores) == DIVERGED:
        raise InputError(
            f"all {config.trials} trials of {task} in {workdir} diverged; search lower"
            " rates, in a new workdir"
        )
    return scores.index(max(scores))


def _check_data(config: SearchConfig) -> None:
    """Opens what the runs will need; raises InputError where one cannot begin."""
    for task in config.tasks:
        for fields, metric in (
            (config.trial_fields(task, 0), config.metric),
            (config.final_fields(task, 0, 0), config.final_metric),
        ):
            run = read_run_config(fields, f"config {task}")
            run.make_plan(make_mesh(run.fsdp))
            make_evaluators(run.evaluators)
            open_training(run.input, run.batch_size, jax.process_count())
            run.check_data()
            if metric.removeprefix("eval/").rpartition("/")[0] not in run.evaluators:
                raise InputError(
                    f"{metric!r} is of none of the evaluators of {task},"
                    f" {', '.join(run.evaluators)}"
                )


def _run(fields: dict[str, Any], workdir: str, metric: str) -> float:
    """Trains, unless it was done before, and returns the score, or `DIVERGED`."""
    folder.check(workdir, fields, run_execution(fields))
    if not folder.is_finished(workdir):
        try:
            train(fields, workdir)
        except FloatingPointError as error:  # every process sees it
            print(f"{workdir}: {error}", flush=True)
            if folder.leads():
                path = os.path.join(workdir, folder.RESULTS_FILE)
                places.write_json(path, {"diverged": str(error)})
        multihost_utils.sync_global_devices(workdir)  # the first process wrote it
        jax.clear_caches()  # the next run is another program
    if folder.leads():  # a checkpoint a trial would fill any disk
        places.remove(os.path.join(workdir, FOLDER))
    results = places.read_json(os.path.join(workdir, folder.RESULTS_FILE))
    if "diverged" in results:
        return DIVERGED
    if metric not in results:
        known = ", ".join(name for name in results if name.startswith("eval/"))
        raise InputError(f"{workdir} has no score {metric!r}; it has {known}")
    return results[metric]
