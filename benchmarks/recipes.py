"""Compares training recipes that spend the same number of operations.

    python -m benchmarks.recipes --workdir=runs/recipes --shares=0.2,0.4

The recipes are those of `configs/recipes.py`; `--recipes=cosine,adamw` runs some of
them. A share is a part of the operations of the baseline's whole run (2,100 steps). A
recipe gets as many steps as the share pays for, counted as in
`align_jax.training.flops`. The baseline's whole run is always part of the bench.

For each recipe and share, `--trials` runs with different learning rates are scored on
the splits `choose_*`. The best settings are trained again with `--seeds` other seeds,
and only these runs are scored on the splits `report_*`. All recipes of a workdir have
the same numbers of trials and seeds.

WORKDIR/recipes.html has the table and a plot of all that was run in the workdir so far.
The same command continues an interrupted bench; finished runs are not repeated. Other
flags change fields of the base config, as in `--config.model.image_tower.width=0.5`.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from align_jax import places
from align_jax.command_line import read_command_line
from align_jax.config import CONFIG_FILE, change, choose, claim_folder
from align_jax.errors import InputError, run_command
from benchmarks.recipes_page import (
    BASELINE,
    PAGE,
    Cell,
    find_reaching,
    make_table,
    write_page,
)
from configs import recipes
from configs.recipes import RECIPES, Recipe

CHOOSE, REPORT = "choose", "report"  # first parts of the splits' names
SCORE = "mean_recall"
SEARCH_SEED = 0  # seed of the trials; the reported runs have the seeds from 1 on


def read_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns the flags and the literal base config.

    Raises:
      InputError: an unknown recipe or field, or a flag out of range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--recipes", default=",".join(RECIPES), metavar="NAME,NAME")
    parser.add_argument("--shares", default="0.4", metavar="SHARE,SHARE")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    flags, rest = parser.parse_known_args(argv)
    flags.recipes = flags.recipes.split(",")
    for name in flags.recipes:
        choose(RECIPES, name, "--recipes")
    flags.shares = [_read_share(text) for text in flags.shares.split(",")]
    for name in ("trials", "seeds"):
        if getattr(flags, name) < 1:
            raise InputError(f"--{name} is {getattr(flags, name)}; wanted 1 or more")
    workdir = f"--workdir={flags.workdir}"
    command = ["benchmarks.recipes", f"--config={recipes.__file__}", *rest, workdir]
    line = read_command_line(command)
    flags.workdir = line.workdir
    return flags, line.fields


def _read_share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 10:
        raise InputError(f"--shares has {text!r}; wanted numbers above 0, up to 10")
    return share


def settings(base: Mapping[str, Any], recipe: Recipe, steps: int) -> dict[str, Any]:
    """Returns the literal config of a recipe's run of some steps.

    The warm-up has the same part of the steps as in the base config.
    """
    warmup = round(base["optimizer"]["warmup_steps"] * steps / base["total_steps"])
    common = {
        "total_steps": steps,
        "evaluate_every_steps": steps,
        "optimizer.warmup_steps": max(1, warmup),
    }
    return change(base, [*common.items(), *recipe.change(steps).items()])


def reported(base: Mapping[str, Any]) -> dict[str, dict]:
    """Returns the evaluators of the reported runs: all parts together, and each part.

    Raises:
      InputError: the base config has other evaluators than `choose`, or its splits are
        not those to choose by.
    """
    found = base["evaluators"]
    splits = found[CHOOSE]["split"].split("+") if {*found} == {CHOOSE} else []
    if not splits or not all(split.startswith(f"{CHOOSE}_") for split in splits):
        raise InputError(
            f"config.evaluators is {found}; wanted one, {CHOOSE!r}, whose splits begin"
            f" with '{CHOOSE}_'"
        )
    ours = [REPORT + split.removeprefix(CHOOSE) for split in splits]
    parts = {REPORT: "+".join(ours)} | {split: split for split in ours}
    return {name: found[CHOOSE] | {"split": split} for name, split in parts.items()}


def make_search(
    base: Mapping[str, Any],
    name: str,
    recipe: Recipe,
    steps: int,
    trials: int,
    seeds: int,
) -> dict[str, Any]:
    """Returns the literal config of a recipe's random search, see `SearchConfig`.

    Args:
      base: literal base config.
      name: name of the recipe.
      recipe: the recipe.
      steps: number of steps of every run.
      trials: number of trials.
      seeds: number of reported runs.
    """
    return {
        "run": "random_search",
        "seed": SEARCH_SEED,
        "only": "",
        "base": settings(base, recipe, steps) | {"seed": SEARCH_SEED},
        "tasks": {name: ()},
        "space": recipe.space,
        "trials": trials,
        "metric": f"eval/{CHOOSE}/{SCORE}",
        "final": {name: (("evaluators", reported(base)),)},
        "final_metric": f"eval/{REPORT}/{SCORE}",
        "seeds": tuple(range(SEARCH_SEED + 1, SEARCH_SEED + 1 + seeds)),
    }


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts the operations of whole runs, given a recipe and a number of steps.

    Attributes:
      model: operations of the model.
      optimizer: operations of the optimizer's matrix products.
    """

    model: Callable[[Recipe, int], float]
    optimizer: Callable[[Recipe, int], float]


def make_counter(base: Mapping[str, Any]) -> Counter:
    """Returns a counter for the base config.

    A step of the same shapes and model is traced once.
    """
    from align_jax.devices.mesh import make_mesh
    from align_jax.training.flops import count_flops, count_model_flops
    from align_jax.training.train_state import abstract_state
    from align_jax.training.training_runs import read_run_config

    known: dict[Any, float] = {}

    def count_model(recipe: Recipe, steps: int) -> float:
        run = read_run_config(settings(base, recipe, steps))
        mesh, phases = make_mesh(run.fsdp), run.batch_phases
        ends = [*(phase.start for phase in phases[1:]), steps]
        work = 0.0
        for phase, end in zip(phases, ends, strict=True):
            shapes = run.batch_shapes(mesh, phase)
            key = (run.model, run.loss, *((n, x.shape) for n, x in shapes.items()))
            if key not in known:
                plan = run.make_plan(mesh, phase)
                known[key] = sum(count_model_flops(plan, shapes).values())
            work += (end - phase.start) * known[key]
        return work

    def count_optimizer(recipe: Recipe, steps: int) -> float:
        run = read_run_config(settings(base, recipe, steps))
        plan = run.make_plan(make_mesh(run.fsdp))
        state = abstract_state(plan)
        update = plan.transformation.update
        return steps * count_flops(update, state.params, state.optimizer, state.params)

    return Counter(count_model, count_optimizer)


def fit_steps(count: Callable[[int], float], budget: float) -> int:
    """Returns the largest number of steps whose operations are at most `budget`.

    Args:
      count: function from a number of steps, from 2 on, to operations; it rises.
      budget: number of operations.

    Raises:
      InputError: the budget does not pay for two steps.
    """
    if count(least := 2) > budget:
        raise InputError(
            f"a budget of {budget:.3g} operations does not pay for two steps of"
            f" {count(least) / least:.3g}; wanted larger --shares"
        )
    most = 2 * least
    while count(most) <= budget:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        if count(middle) <= budget:
            least = middle
        else:
            most = middle
    return least


def read_cell(
    workdir: str,
    search: Mapping[str, Any],
    name: str,
    share: float,
    operations: float,
    whole_operations: float,
) -> Cell:
    """Reads the scores of a finished search.

    Args:
      workdir: folder of the search.
      search: literal config of the search.
      name: name of the recipe.
      share: part of the baseline's operations that a run may have.
      operations: operations of the model in each run, as the same part.
      whole_operations: operations of the model and the optimizer, as the same part.
    """
    from align_jax.runs.results import read_results

    def read(run: str) -> dict[str, Any]:
        return read_results(os.path.join(workdir, name, run, "results.json"))

    seeds = [f"seed_{seed}" for seed in search["seeds"]]
    runs = [read(run) for run in seeds]
    evaluators = dict(search["final"][name])["evaluators"]
    config = places.read_object(os.path.join(workdir, name, seeds[0], "config.json"))
    return Cell(
        recipe=name,
        share=share,
        operations=operations,
        whole_operations=whole_operations,
        steps=config["total_steps"],
        learning_rate=config["optimizer"]["learning_rate"],
        choose=[
            read(f"trial_{trial:02}").get(search["metric"])
            for trial in range(search["trials"])
        ],
        scores={part: [r[f"eval/{part}/{SCORE}"] for r in runs] for part in evaluators},
    )


def run_bench(flags: argparse.Namespace, base: dict[str, Any]) -> None:
    """Runs or continues the bench, and writes the page after each recipe's search."""
    from align_jax.random_search import random_search

    reported(base)
    identity = {"base": base, "trials": flags.trials, "seeds": flags.seeds}
    claim_folder(flags.workdir, identity)
    count = make_counter(base)
    whole = count.model(RECIPES[BASELINE], base["total_steps"])
    page = os.path.join(flags.workdir, PAGE)
    asked = [(name, share) for share in flags.shares for name in flags.recipes]
    for name, share in dict.fromkeys([(BASELINE, 1.0), *asked]):
        recipe = RECIPES[name]
        steps = fit_steps(partial(count.model, recipe), share * whole)
        search = make_search(
            base, name, recipe, steps, trials=flags.trials, seeds=flags.seeds
        )
        print(f"{name}, {share:g} of the operations: {steps:,} steps", flush=True)
        place = os.path.join(flags.workdir, f"{name}_{share:g}")
        random_search(search, place)
        operations = count.model(recipe, steps)
        both = operations + count.optimizer(recipe, steps)
        cell = read_cell(place, search, name, share, operations / whole, both / whole)
        places.write_json(f"{place}.json", dataclasses.asdict(cell))
        write_page(page, read_cells(flags.workdir), identity)
    cells = read_cells(flags.workdir)
    print(make_table(cells).markdown(), *find_reaching(cells), page, sep="\n\n")


def read_cells(workdir: str) -> list[Cell]:
    """Returns the finished cells of a bench, by recipe in the order of `RECIPES`."""
    paths = [
        os.path.join(workdir, name)
        for name in places.list_names(workdir)
        if name.endswith(".json") and name != CONFIG_FILE
    ]
    found = [Cell(**places.read_object(path)) for path in paths]
    order = [*RECIPES]
    return sorted(found, key=lambda cell: (order.index(cell.recipe), cell.share))


def main(argv: Sequence[str]) -> None:
    """Runs the bench that the flags describe."""
    flags, base = read_flags(argv)
    from align_jax.devices.runtime import reuse_memory, start

    start()  # before the import of TensorFlow, which writes logs
    reuse_memory()
    run_bench(flags, base)


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.recipes", lambda: main(sys.argv[1:])))
