"""Runs a random search: trials, the best of each task, final runs and their scores.

    python main.py --config=configs/vtab.py --workdir=DIR ...

Every trial and every final run is a training run with a separate workdir. A search that
was killed therefore continues inside the interrupted run and repeats no finished one.
"""

import math
import os
import statistics
from typing import Any

import jax

from align_jax import places
from align_jax.config import CHECKPOINTS, is_claimed, read_config, write_config
from align_jax.devices.exchange import wait_for_all
from align_jax.devices.mesh import make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.errors import InputError
from align_jax.evaluation.runner import make_evaluators
from align_jax.input.training_data import open_training
from align_jax.report.run_kinds import check_workdir, fill_defaults
from align_jax.runs import workdir as folder
from align_jax.runs.provenance import add_provenance
from align_jax.runs.results import print_results, read_results
from align_jax.train import train
from align_jax.training import kept_programs
from align_jax.training.random_search_config import SearchConfig
from align_jax.training.training_runs import read_run_config

DIVERGED = -math.inf  # score of a run whose loss or temperature was not finite


def random_search(fields: dict[str, Any], workdir: str) -> None:
    """Runs or continues a search; see `SearchConfig`.

    With the field `only`, runs that trial alone and ends. Otherwise writes and prints
    results.json, whose scores are taken over the seeds of the final runs.
    "eval/<task>/<score>" is their median, ".../std" their population standard deviation
    and ".../trial" the number of the best trial, from 0. "eval/<group>/mean" and
    ".../std" are mean and standard deviation of the mean score of the group's tasks.

    Raises:
      InputError: bad input, found before the first trial begins; or later, all trials
        of a task or one of its final runs diverged, or a run lacks the metric's score.
      Preempted: the search received a notice to stop; the same command continues it.
    """
    config = read_config(SearchConfig, fields)
    config.check()
    reuse_memory()
    _check_data(config)
    check_workdir(workdir, fields)
    wait_for_all()  # until all have checked the search
    if config.only:
        # Many commands start at once, and they must not write the same file.
        if folder.leads() and not is_claimed(workdir):
            write_config(workdir, fill_defaults(fields))
            add_provenance(workdir)
        task, trial = config.trial_names()[config.only]
        chosen = config.trial_fields(task, trial)
        _run(chosen, os.path.join(workdir, config.only), config.metric)
        return
    with folder.locked_workdir(workdir):
        if folder.leads():
            write_config(workdir, fill_defaults(fields))
            add_provenance(workdir)
        _search(config, workdir)


def _search(config: SearchConfig, workdir: str) -> None:
    """Runs all trials and final runs, and writes the results of the search."""
    results: dict[str, float] = {}
    finals: dict[str, list[float]] = {}  # scores by task, one a seed
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
    """Runs a task's trials and returns the number of the best one, from 0.

    Raises:
      InputError: all trials diverged.
    """
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
    """Opens the data of each task's first trial and first final run.

    Raises:
      InputError: one of these runs cannot begin, or has no evaluator for its metric.
    """
    for task in config.tasks:
        for fields, metric in (
            (config.trial_fields(task, 0), config.metric),
            (config.final_fields(task, 0, 0), config.final_metric),
        ):
            run = read_run_config(fields, f"config {task}")
            phases, processes = run.batch_phases, jax.process_count()
            for phase in phases:
                run.make_plan(make_mesh(run.fsdp), phase)
            make_evaluators(run.evaluators)
            open_training(run.input, phases, processes)
            run.check_data()
            if metric.removeprefix("eval/").rpartition("/")[0] not in run.evaluators:
                raise InputError(
                    f"{metric!r} is of none of the evaluators of {task},"
                    f" {', '.join(run.evaluators)}"
                )


def _run(fields: dict[str, Any], workdir: str, metric: str) -> float:
    """Trains, unless the run is finished, and removes what only its next start reads.

    Returns:
      The run's score `metric`, or `DIVERGED`.
    """
    check_workdir(workdir, fields)
    if not folder.is_finished(workdir):
        try:
            train(fields, workdir)
        except FloatingPointError as error:  # every process raises it
            print(f"{workdir}: {error}", flush=True)
            if folder.leads():
                path = os.path.join(workdir, folder.RESULTS_FILE)
                places.write_json(path, {"diverged": str(error)})
        wait_for_all()  # until process 0 wrote them
        jax.clear_caches()  # the next run compiles another program
    if folder.leads():  # the checkpoints of all trials would fill the disk
        for name in (CHECKPOINTS, kept_programs.FOLDER):
            places.remove(os.path.join(workdir, name))
    results = read_results(os.path.join(workdir, folder.RESULTS_FILE))
    if "diverged" in results:
        return DIVERGED
    if metric not in results:
        known = ", ".join(name for name in results if name.startswith("eval/"))
        raise InputError(f"{workdir} has no score {metric!r}; it has {known}")
    return results[metric]
