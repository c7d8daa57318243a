"""Tests of the bench of recipes: equal operations, honest choices, repeated runs."""

import argparse
import dataclasses
import json
import pathlib
import statistics

import pytest
import tensorflow_datasets as tfds

from align_jax import random_search as program
from align_jax.config import as_json, read_config
from align_jax.errors import InputError, Preempted
from align_jax.models.parameters import variable_shapes
from align_jax.training.random_search_config import SearchConfig
from align_jax.training.training_runs import read_run_config
from benchmarks import recipes as bench
from benchmarks.recipes_page import PAGE, Cell, find_reaching, make_table, write_page
from configs import recipes
from configs.recipes import RECIPES, Recipe
from data.records import records
from tests import tiny

BASE = recipes.get_config().to_dict()
PARTS = ("choose_a", "choose_b", "report_a", "report_b")


def search_of(name: str, base=BASE, steps=500) -> dict:
    return bench.make_search(base, name, RECIPES[name], steps, trials=4, seeds=3)


@pytest.mark.parametrize(
    ("count", "budget", "steps"),
    [
        (lambda n: 10.0 * n, 20.0, 2),
        (lambda n: 10.0 * n, 29.9, 2),
        (lambda n: 10.0 * n, 30.0, 3),
        (lambda n: 10.0 * n, 21_000.0, 2100),
        # Two phases: the first half of the steps costs 3 each, the second half 10.
        (lambda n: 3.0 * (n // 2) + 10.0 * (n - n // 2), 650.0, 100),
        (lambda n: 3.0 * (n // 2) + 10.0 * (n - n // 2), 659.9, 100),
        (lambda n: 3.0 * (n // 2) + 10.0 * (n - n // 2), 660.0, 101),
    ],
)
def test_the_steps_are_the_most_that_the_operations_pay_for(count, budget, steps):
    assert bench.fit_steps(count, budget) == steps
    assert count(steps) <= budget < count(steps + 1)


def test_a_budget_below_two_steps_is_refused():
    with pytest.raises(InputError, match=r"budget of 15 .* two steps of 10"):
        bench.fit_steps(lambda n: 10.0 * n, 15.0)


@pytest.mark.parametrize("name", RECIPES)
def test_choosing_never_sees_what_is_reported(name):
    search = read_config(SearchConfig, search_of(name))
    search.check()
    assert search.metric == "eval/choose/mean_recall"
    assert search.final_metric == "eval/report/mean_recall"
    trials = [search.trial_fields(name, trial) for trial in range(search.trials)]
    finals = [search.final_fields(name, 0, seed) for seed in search.seeds]
    for fields in trials:
        assert "report" not in json.dumps(fields)
        assert fields["total_steps"] == 500
    for fields in finals:
        assert "choose" not in json.dumps(fields)
        assert [*fields["evaluators"]] == [
            "report",
            *(f"report_{part}" for part in recipes.PARTS),
        ]
        assert fields["optimizer"] == trials[0]["optimizer"]
    assert {fields["seed"] for fields in trials} == {0}
    assert [fields["seed"] for fields in finals] == [1, 2, 3]


def test_every_recipe_gets_the_same_trials_in_a_range_of_its_own():
    drawn = []
    for name, recipe in RECIPES.items():
        search = read_config(SearchConfig, search_of(name))
        ((_, _, lowest, highest),) = recipe.space
        assert highest / lowest == pytest.approx(4)
        found = [search.trial_fields(name, i)["optimizer"] for i in range(4)]
        drawn.append([fields["learning_rate"] / lowest for fields in found])
        if name != "baseline":
            assert search.base != read_config(SearchConfig, search_of("baseline")).base
    assert all(points == pytest.approx(drawn[0]) for points in drawn)
    assert len({*drawn[0]}) == 4


def test_the_warm_up_keeps_its_part_of_the_steps():
    for steps, warmup in ((2100, 40), (1050, 20), (10, 1)):
        base = search_of("baseline", steps=steps)["base"]
        assert base["total_steps"] == base["evaluate_every_steps"] == steps
        assert base["optimizer"]["warmup_steps"] == warmup


@pytest.mark.parametrize("split", ["report_a", "choose_a+report_a", "test"])
def test_a_base_that_would_choose_by_other_splits_is_refused(split):
    base = {"evaluators": {"choose": {"split": split}}}
    with pytest.raises(InputError, match="whose splits begin with 'choose_'"):
        bench.reported(base)
    with pytest.raises(InputError, match="wanted one, 'choose'"):
        bench.reported({"evaluators": {"test": {"split": "choose_a"}}})


def make_base(root: pathlib.Path) -> dict:
    """Makes the base config of a tiny bench; writes its data."""
    sets = root / "sets"
    features = {"image": tiny.PAIR_FEATURES["image"], "texts": tiny.TEXTS}
    splits = {
        part: records.write_split(
            sets,
            "tiny",
            part,
            [
                records.make_example(image=tiny.draw(name, 9), texts=[name.encode()])
                for name in tiny.NAMES[i::4]
            ],
            count=3,
            shards=1,
        )
        for i, part in enumerate(PARTS)
    }
    records.write_metadata(sets, "tiny", tfds.features.FeaturesDict(features), splits)
    evaluator = {"kind": "retrieval", "directory": str(sets)}
    choose = evaluator | {"split": "choose_a+choose_b"}
    return tiny.make_run(root, total_steps=40, evaluators={"choose": choose})


def test_a_run_of_phases_costs_the_steps_of_each(tmp_path):
    count = bench.make_counter(make_base(tmp_path)).model

    def make(change):
        return Recipe("", change, ())

    small = make(lambda n: {"input.preprocess.image_size": 8})
    phases = make(lambda n: {"phases": ((0, {"image_size": 8}), (n // 4, {}))})
    whole, less = (count(recipe, 4) / 4 for recipe in (make(lambda n: {}), small))
    assert less < whole / 2
    assert count(phases, 8) == pytest.approx(2 * less + 6 * whole)


def test_the_operations_of_muons_iteration_are_counted(tmp_path):
    base = make_base(tmp_path)
    count = bench.make_counter(base).optimizer
    change = {
        "optimizer.kind": "muon",
        "optimizer.muon_matrices": ("^text_projection",),
    }
    lamb, muon = (Recipe("", lambda _, c=c: c, ()) for c in ({}, change))
    shapes = variable_shapes(read_run_config(base).model)
    a, b = sorted(shapes["params", "text_projection", "kernel"])
    products = 2 * (2 * a * a * b + a**3)  # X X', its square, and their sum times X
    assert count(lamb, 3) == 0
    assert count(muon, 3) == 3 * 5 * products


@pytest.fixture
def fake(monkeypatch):
    """Replaces training by scores; lists the runs that it made as (path, fields)."""
    ran: list[tuple[str, dict]] = []
    stop_at: list[str] = []

    def train(fields, workdir):
        name = "/".join(workdir.split("/")[-3:])
        if name in stop_at:
            raise Preempted(f"told to stop in {name}")
        ran.append((name, fields))
        program.write_config(workdir, as_json(fields))
        number = int(name[-1])
        # Trial 1 is the best; the seeds 1 and 2 have 0.4 and 0.6.
        score = (0.2, 0.3, 0.25)[number] if "trial" in name else 0.2 + 0.2 * number
        scores = {f"eval/{part}/mean_recall": score for part in fields["evaluators"]}
        program.places.write_json(f"{workdir}/results.json", scores)

    monkeypatch.setattr(program, "train", train)
    return ran, stop_at


def flags(workdir, names=(), shares=(0.5,), trials=3):
    return argparse.Namespace(
        workdir=str(workdir), recipes=[*names], shares=[*shares], trials=trials, seeds=2
    )


def test_a_bench_spends_equal_operations_and_repeats_no_run(
    tmp_path, fake, capsys, monkeypatch
):
    ran, stop_at = fake
    base, out = make_base(tmp_path), tmp_path / "out"
    tiny_pictures = Recipe(
        "8 pixels",
        lambda steps: {"input.preprocess.image_size": 8},
        RECIPES["baseline"].space,
    )
    monkeypatch.setitem(RECIPES, "small_pictures", tiny_pictures)
    stop_at.append("baseline_1/baseline/seed_2")
    with pytest.raises(Preempted):
        bench.run_bench(flags(out), base)
    assert [name for name, _ in ran] == [
        *(f"baseline_1/baseline/trial_0{i}" for i in range(3)),
        "baseline_1/baseline/seed_1",
    ]
    assert not (out / PAGE).exists()
    stop_at.clear()
    bench.run_bench(flags(out), base)
    assert [name for name, _ in ran[4:]] == ["baseline_1/baseline/seed_2"]
    names = ("baseline", "small_pictures")
    bench.run_bench(flags(out, names, shares=(0.5, 1.0)), base)  # one of them is done
    finished = [name for name, _ in ran]
    assert len(finished) == len({*finished}) == 4 * (3 + 2)
    cells = {(c.recipe, c.share): c for c in bench.read_cells(str(out))}
    assert [*cells] == [(name, share) for name in names for share in (0.5, 1.0)]
    assert cells["baseline", 1.0].steps == 40
    assert cells["baseline", 1.0].operations == 1.0
    assert cells["baseline", 0.5].steps == 20
    # A picture of 8 pixels costs less than half of one of 16.
    for share in (0.5, 1.0):
        cell = cells["small_pictures", share]
        assert cell.steps >= 2 * 40 * share
        assert share * (1 - 1 / cell.steps) < cell.operations <= share
    for cell in cells.values():
        assert cell.choose == [0.2, 0.3, 0.25]
        assert [*cell.scores] == ["report", "report_a", "report_b"]
        assert cell.scores["report"] == pytest.approx([0.4, 0.6])
    rates = {
        name: fields["optimizer"]["learning_rate"]
        for name, fields in ran
        if name.startswith("baseline_1/")
    }
    assert rates["baseline_1/baseline/seed_1"] == rates["baseline_1/baseline/trial_01"]
    assert "| small pictures | 0.4" in capsys.readouterr().out
    page = (out / PAGE).read_text()
    assert "small pictures reaches 50.0 with 0.49" in page
    ran.clear()
    with pytest.raises(InputError, match=r"another config \(config.trials: 3 -> 2\)"):
        bench.run_bench(flags(out, trials=2), base)
    assert not ran


def cell(recipe: str, operations: float, scores: list[float]) -> Cell:
    return Cell(
        recipe=recipe,
        share=operations,
        operations=operations,
        whole_operations=1.5 * operations,
        steps=round(2100 * operations),
        learning_rate=0.004,
        choose=[0.123, None],
        scores={"report": scores, "report_a": [score / 2 for score in scores]},
    )


def test_the_table_has_means_and_deviations(tmp_path):
    cells = [cell("baseline", 1.0, [0.2, 0.3, 0.4]), cell("small_batch", 0.4, [0.3])]
    table = make_table(cells)
    assert statistics.stdev([0.2, 0.3, 0.4]) == pytest.approx(0.1)
    assert [row[:6] for row in table.rows] == [
        ["baseline", "1.000", "1.500", "2,100", "0.004", "12.3 diverged"],
        ["small batch", "0.400", "0.600", "840", "0.004", "12.3 diverged"],
    ]
    assert [row[6:] for row in table.rows] == [
        ["30.0 ± 10.0", "15.0 ± 5.0"],
        ["30.0 ± –", "15.0 ± –"],
    ]
    write_page(str(tmp_path / PAGE), cells, {"seeds": 3, "trials": 2, "base": BASE})
    page = (tmp_path / PAGE).read_text()
    assert "3 runs" in page
    assert "30.0 ± 10.0" in page
    assert "small batch 30.0 with 0.400 of the operations" in page  # for the blind


def test_the_least_operations_for_the_baseline_s_score_are_found():
    whole = cell("baseline", 1.0, [0.2, 0.4])
    cells = [
        cell("baseline", 0.4, [0.2]),
        whole,
        cell("adamw", 0.2, [0.1]),
        cell("adamw", 0.4, [0.31]),
        cell("adamw", 1.0, [0.5]),
        cell("small_batch", 0.2, [0.25]),
        cell("small_batch", 0.4, [0.29]),
    ]
    assert find_reaching(cells) == [
        "baseline does not reach 30.0: it has 20.0 with 0.40 of the operations",
        "adamw reaches 30.0 with 0.40 of the operations",
        "small batch does not reach 30.0: it has 29.0 with 0.40 of the operations",
    ]
    assert find_reaching([whole]) == []
    assert find_reaching([dataclasses.replace(whole, recipe="adamw")]) == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--recipes=none", r"--recipes is 'none'; .*known: baseline"),
        ("--shares=0.4,0", "--shares has '0'; wanted numbers above 0"),
        ("--shares=nan", "--shares has 'nan'"),
        ("--trials=0", "--trials is 0; wanted 1 or more"),
        ("--seeds=-1", "--seeds is -1; wanted 1 or more"),
        ("--config.nothing=1", "no field 'nothing'"),
        ("more", "unexpected arguments: more"),
    ],
)
def test_bad_flags_are_refused(typed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        bench.read_flags([f"--workdir={tmp_path}", typed])


def test_flags_change_the_base_config(tmp_path):
    typed = ["--shares=0.2", "--config.total_steps=7", "--recipes=adamw"]
    found, base = bench.read_flags([f"--workdir={tmp_path}", *typed])
    assert (found.shares, found.recipes, found.seeds) == ([0.2], ["adamw"], 3)
    assert base["total_steps"] == 7
    assert found.workdir == str(tmp_path)
