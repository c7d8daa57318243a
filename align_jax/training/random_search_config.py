"""The config of a random search over fields of a run, for one or more tasks."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.config import change
from align_jax.ranges import Count, Seed
from align_jax.training.run_config import run_execution
from align_jax.training.training_runs import read_run_config


@dataclasses.dataclass(frozen=True)
class Draw:
    """A distribution from which a search draws the values of a config field.

    Attributes:
      fits: function that returns whether the distribution's arguments are valid. The
        arguments are the items after its name in `SearchConfig.space`.
      draw: function from a random generator and these arguments to a value of the
        field.
    """

    fits: Callable[[Sequence[Any]], bool]
    draw: Callable[[np.random.Generator, Sequence[Any]], Any]


DRAWS = {
    "log": Draw(
        fits=lambda ends: len(ends) == 2 and _are_rising_numbers(ends),
        draw=lambda random, ends: float(np.exp(random.uniform(*np.log(ends)))),
    ),
    "one_of": Draw(
        fits=lambda values: (
            len(values) == 1 and isinstance(values[0], tuple | list) and bool(values[0])
        ),
        draw=lambda random, values: values[0][random.integers(len(values[0]))],
    ),
}

Changes = tuple[tuple[str, Any], ...]  # pairs of a field's dotted path and its value


def _are_rising_numbers(ends: Sequence[Any]) -> bool:
    """Returns whether values are finite numbers above 0 in rising order."""
    numbers = all(type(end) in (int, float) for end in ends)
    return numbers and 0 < ends[0] <= ends[1] < math.inf


def _is_draw(row: tuple) -> bool:
    """Returns whether a row of `SearchConfig.space` has the form described there."""
    if len(row) < 3 or not all(isinstance(name, str) for name in row[:2]):
        return False
    return row[1] in DRAWS and DRAWS[row[1]].fits(row[2:])


def search_execution(fields: Mapping[str, Any]) -> list[str]:
    """Returns the dotted paths of config fields that do not change a search's result.

    Args:
      fields: the search's literal config.
    """
    return [*(f"base.{path}" for path in run_execution(fields["base"])), "only"]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """A random search: trials of every task, then final runs of each task's best trial.

    Attributes:
      run: the string "random_search".
      base: fields of a training run, without those that the tasks set.
      tasks: task name -> (dotted path, value) pairs of the fields that the task sets.
      space: one tuple for each searched field, (dotted path, "log", lowest, highest) or
        (dotted path, "one_of", values). "log" draws uniformly on a logarithmic scale.
        All tasks have the same trials.
      trials: number of trials for each task.
      metric: score that the best trial maximises, such as "eval/validation/top1"; the
        first trial wins a tie.
      final: task name -> (dotted path, value) pairs, the changes to the best trial's
        fields for the final runs.
      final_metric: score of the final runs that is reported, such as "eval/test/top1".
      seeds: seeds of the final runs, one run each.
      groups: group name -> tasks whose mean is reported.
      seed: seed of the draws.
      only: "TASK/trial_NN" to run that trial alone, so that many processes can share
        the search's workdir. A later search with "", which runs everything, does not
        repeat finished trials.
    """

    run: str
    base: dict
    tasks: dict[str, Changes]
    space: tuple[tuple, ...]
    trials: Count
    metric: str
    final: dict[str, Changes]
    final_metric: str
    seeds: tuple[Seed, ...] = (0, 1, 2)
    groups: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    seed: Seed = 0
    only: str = ""

    def __post_init__(self) -> None:
        if not self.seeds or not self.tasks:
            raise ValueError("seeds and tasks: wanted one or more of each")
        for task in self.tasks:
            if not re.fullmatch(r"\w[\w.-]*", task):
                raise ValueError(
                    f"tasks has the name {task!r}, which is no name of a folder; wanted"
                    " letters, digits, _, - and ."
                )
        for draw in self.space:
            if not _is_draw(draw):
                raise ValueError(
                    f"space holds {draw!r}; wanted (path, 'log', lowest, highest) above"
                    " 0, or (path, 'one_of', values)"
                )
        for group, tasks in self.groups.items():
            if not tasks or group in self.tasks:
                raise ValueError(
                    f"groups has {group!r}: {tasks!r}; wanted one or more tasks, and"
                    " another name than a task's"
                )
        unknown = {t for tasks in self.groups.values() for t in tasks} - {*self.tasks}
        if unknown:
            raise ValueError(f"groups name {sorted(unknown)}, which are no tasks")
        if {*self.final} != {*self.tasks}:
            raise ValueError(
                f"final is of {sorted(self.final)}; wanted the tasks,"
                f" {sorted(self.tasks)}"
            )
        if self.only and self.only not in self.trial_names():
            raise ValueError(
                f"only is {self.only!r}; wanted a trial, from"
                f" {next(iter(self.trial_names()))!r}"
            )

    def trial_names(self) -> dict[str, tuple[str, int]]:
        """Returns (task, number from 0) of every trial by its folder, TASK/trial_NN."""
        return {
            f"{task}/trial_{trial:02}": (task, trial)
            for task in self.tasks
            for trial in range(self.trials)
        }

    def trial_fields(self, task: str, trial: int) -> dict[str, Any]:
        """Returns the literal config of a task's trial."""
        fields = change(self.base, self.tasks[task])
        return change(fields, draw_trial(self.space, self.seed, trial))

    def final_fields(self, task: str, trial: int, seed: int) -> dict[str, Any]:
        """Returns the literal config of a final run.

        Args:
          task: name of the task.
          trial: number of the task's best trial.
          seed: seed of the run.
        """
        fields = change(self.trial_fields(task, trial), self.final[task])
        return fields | {"seed": seed}

    def check(self) -> None:
        """Reads every run's config; raises InputError if a field is wrong."""
        for task in self.tasks:
            for trial in range(self.trials):
                read_run_config(self.trial_fields(task, trial), f"config {task}")
            read_run_config(self.final_fields(task, 0, 0), f"config.final.{task}")


def draw_trial(space: tuple, seed: int, trial: int) -> list[tuple[str, Any]]:
    """Draws the values of a trial's fields; they depend on the arguments only.

    Args:
      space: searched fields, see `SearchConfig`.
      seed: seed of the draws.
      trial: number of the trial, from 0.

    Returns:
      (dotted path, value) pairs.
    """
    random = np.random.default_rng((seed, trial))
    return [(path, DRAWS[kind].draw(random, values)) for path, kind, *values in space]
