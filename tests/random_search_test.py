"""Tests of searches: draws, runs that are repeated or not, reported scores."""

import json

import numpy as np
import pytest

from align_jax import random_search as program
from align_jax.config import read_config
from align_jax.errors import InputError, Preempted
from align_jax.random_search import random_search
from align_jax.training.random_search_config import SearchConfig, draw_trial
from configs import vtab
from data.evaluation_sets.vtab_tasks import TASKS
from tests.training.classify_test import make_fields

SPACE = (
    ("optimizer.learning_rate", "log", 1e-3, 1.0),
    ("optimizer.rate_factors", "one_of", ((), (("^image_tower/", 0.1),))),
    ("total_steps", "one_of", (1, 2)),
)


def make_search(root, **changes):
    """Makes a search's config: two tasks of the tiny pictures, three trials each."""
    base = make_fields(root, evaluators={}, checkpoint={"every_steps": 9})
    colour = {"kind": "classification", "directory": str(root / "test")}
    evaluator = {"validation": {**colour, "split": "test[:6]"}}
    test = {"test": {**colour, "split": "test[6:]"}}
    fields = {
        "run": "random_search",
        "base": base,
        "tasks": {task: (("evaluators", evaluator),) for task in ("one", "two")},
        "space": SPACE,
        "trials": 3,
        "metric": "eval/validation/top1",
        "final": {task: (("evaluators", test),) for task in ("one", "two")},
        "final_metric": "eval/test/top1",
        "groups": {"first": ("one",), "all": ("one", "two")},
    }
    return fields | changes


@pytest.fixture
def fake(monkeypatch):
    """Replaces training by scores that a test chooses; lists the runs that it made."""
    ran, scores = [], {}

    def train(fields, workdir):
        name = "/".join(workdir.split("/")[-2:])
        if scores.get(name) is None:
            raise Preempted(f"told to stop in {name}")
        ran.append((name, fields))
        program.write_config(workdir, fields)
        if scores[name] == "diverges":
            raise FloatingPointError("the loss of step 1 is nan")
        program.places.make_folder(f"{workdir}/checkpoints/4")
        (evaluator,) = fields["evaluators"]
        results = {f"eval/{evaluator}/top1": scores[name]}
        program.places.write_json(f"{workdir}/results.json", results)

    monkeypatch.setattr(program, "train", train)
    return ran, scores


def test_a_killed_search_goes_on_and_finds_the_same_winner(tmp_path, fake):
    ran, scores = fake
    trials = {"one": (0.5, 0.75, 0.75), "two": (0.25, 0.0, 0.125)}
    for task, values in trials.items():
        scores |= {f"{task}/trial_0{i}": value for i, value in enumerate(values)}
    fields, out = make_search(tmp_path), tmp_path / "out"
    with pytest.raises(Preempted, match="told to stop in one/seed_0"):
        random_search(fields, str(out))
    of_one = (0.5, 0.25, 1.0)
    scores |= {f"one/seed_{i}": value for i, value in enumerate(of_one)}
    scores |= {f"two/seed_{i}": 0.125 for i in range(3)}
    before = [name for name, _ in ran]
    random_search(fields, str(out))
    names = [name for name, _ in ran]
    assert before == [f"one/trial_0{i}" for i in range(3)]
    assert len(names) == len(set(names)) == 2 * (3 + 3)
    results = json.loads((out / "results.json").read_text())
    assert results["eval/one/trial"] == 1
    assert results["eval/two/trial"] == 0
    assert results["eval/one/top1"] == 0.5  # the median
    assert results["eval/one/std"] == pytest.approx(np.std(of_one))
    # A group's line is the mean of the seeds, not of the tasks' medians.
    assert results["eval/first/mean"] == pytest.approx(1.75 / 3)
    means = [(score + 0.125) / 2 for score in of_one]
    assert results["eval/all/mean"] == pytest.approx(np.mean(means))
    assert results["eval/all/std"] == pytest.approx(np.std(means))
    config = dict(ran)
    final, trial = config["one/seed_2"], config["one/trial_01"]
    for name in ("optimizer", "total_steps", "model"):
        assert final[name] == trial[name]
    assert (final["seed"], [*final["evaluators"]]) == (2, ["test"])
    assert not list(out.rglob("checkpoints"))
    random_search(fields, str(out))
    assert len(ran) == len(names)


def test_trials_that_others_ran_are_found_done(tmp_path, fake):
    ran, scores = fake
    for task in ("one", "two"):
        scores |= {f"{task}/trial_0{i}": i / 4 for i in range(3)}
        scores |= {f"{task}/seed_{i}": 0.5 for i in range(3)}
    out = str(tmp_path / "out")
    for name in ("two/trial_02", "one/trial_00"):
        random_search(make_search(tmp_path, only=name), out)
    assert [name for name, _ in ran] == ["two/trial_02", "one/trial_00"]
    random_search(make_search(tmp_path), out)
    names = [name for name, _ in ran]
    assert len(names) == len({*names}) == 2 * (3 + 3)


def test_a_trial_that_diverges_is_the_worst_and_is_not_run_again(tmp_path, fake):
    ran, scores = fake
    scores |= {"one/trial_00": "diverges", "one/trial_01": 0.0, "one/trial_02": 0.25}
    scores |= {f"one/seed_{i}": 0.5 for i in range(3)}
    scores |= {f"two/trial_0{i}": "diverges" for i in range(3)}
    for _ in range(2):
        with pytest.raises(InputError, match=r"all 3 trials of two in .* diverged"):
            random_search(make_search(tmp_path), str(tmp_path / "out"))
    assert len(ran) == 3 + 3 + 3
    assert {name for name, _ in ran} >= {"one/seed_2", "two/trial_02"}


@pytest.mark.pods
def test_a_real_search_trains_and_tests(tmp_path):
    changes = {"space": (("total_steps", "one_of", (4,)),), "groups": {}}
    fields = make_search(tmp_path, trials=1, seeds=(0,), **changes)
    for part in ("tasks", "final"):
        fields[part].pop("two")
    random_search(fields, str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= results["eval/one/top1"] <= 1
    trained = json.loads((tmp_path / "out/one/seed_0/config.json").read_text())
    assert [*trained["evaluators"]] == ["test"]


def test_draws_depend_on_their_number_alone_and_fill_the_space():
    drawn = [dict(draw_trial(SPACE, 0, trial)) for trial in range(200)]
    assert drawn == [dict(draw_trial(SPACE, 0, trial)) for trial in range(200)]
    rates = np.log10([d["optimizer.learning_rate"] for d in drawn])
    assert -3 <= rates.min() < -2.8
    assert -0.2 < rates.max() <= 0
    assert abs(rates.mean() + 1.5) < 0.2
    assert {d["total_steps"] for d in drawn} == {1, 2}
    assert dict(draw_trial(SPACE, 1, 0)) != drawn[0]


def test_what_does_not_fit_is_refused_before_the_first_trial(tmp_path, fake):
    def refused(message, **changes):
        with pytest.raises(InputError, match=message):
            random_search(make_search(tmp_path, **changes), str(tmp_path / "new"))

    refused("no field 'learning_rat'", space=(("optimizer.learning_rat", "log", 1, 2),))
    refused("space holds .*wanted", space=(("total_steps", "uniform", 1, 2),))
    refused("space holds .*wanted", space=(("optimizer.b1", "log", 0.0, 1.0),))
    refused("space holds .*wanted", space=(("total_steps", "one_of", ()),))
    refused("'seed.a' is no field: 'seed' is 0", space=(("seed.a", "one_of", (1,)),))
    refused("eval/val/top1' is of none of the eval.*validation", metric="eval/val/top1")
    streams = (("input.streams", "one_of", (7,)),)
    refused("does not divide over input.streams = 7", space=streams)
    refused("groups name .'three'.", groups={"all": ("three",)})
    refused("final is of ..; wanted the tasks", final={})
    refused("config.trials is 0; wanted 1 or more", trials=0)
    refused("only is 'one/trial_3'; wanted a trial, from 'one/", only="one/trial_3")
    assert not (tmp_path / "new").exists()
    assert not fake[0]


def test_a_score_that_is_not_there_lists_those_that_are(tmp_path, fake):
    fake[1]["one/trial_00"] = 0.5
    fields = make_search(tmp_path, metric="eval/validation/top2")
    with pytest.raises(InputError, match=r"no score .*top2'; it has eval/validation/t"):
        random_search(fields, str(tmp_path / "out"))


def test_vtab_is_one_search_for_19_tasks():
    fields = vtab.get_config()
    fields.base.initialize.image_tower = "RUN"
    config = read_config(SearchConfig, fields.to_dict())
    config.check()
    assert vtab.CLASSES == {name: task.classes for name, task in TASKS.items()}
    sizes = {group: len(tasks) for group, tasks in config.groups.items()}
    assert sizes == {
        "vtab_natural": 7,
        "vtab_specialized": 4,
        "vtab_structured": 8,
        "vtab_all": 19,
    }
    assert config.trials == 50
    some = read_config(SearchConfig, vtab.get_config("pets,dtd").to_dict())
    assert {*some.tasks} == {"vtab_pets", "vtab_dtd"}
    assert not some.groups
    final = some.final_fields("vtab_pets", 7, 1)
    assert [*final["input"]["datasets"]] == ["train", "validation"]
    assert final["evaluators"]["test"]["directory"] == "evaluation/vtab/pets"
    for trial in range(50):
        one, other = (some.trial_fields(task, trial) for task in some.tasks)
        assert one["optimizer"] == other["optimizer"]
