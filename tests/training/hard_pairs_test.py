"""Runs that choose each batch from a super-batch."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from align_jax.devices import mesh
from align_jax.errors import InputError
from align_jax.input.phases import Phase, count_pairs
from align_jax.input.pipeline import TrainBatches
from align_jax.input.training_data import open_training
from align_jax.plan import measure, plan
from align_jax.report.found_runs import find_runs
from align_jax.runs.metric_lines import read_metrics
from align_jax.train import train
from align_jax.training.batch_choice import choose_rows
from align_jax.training.checkpoint import Checkpoints
from align_jax.training.compiled_step import make_train_step
from align_jax.training.flops import count_model_flops
from align_jax.training.hard_pairs import HardPairs
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import read_run_config
from tests import steps, teachers, tiny
from tests.reference import choose_pairs_reference
from tests.run_tiny import rows

HARD = {"filter_ratio": 0.5, "chunks": 4, "scoring": "hard"}
LEARNABLE = HARD | {"scoring": "learnable", "reference_temperature": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (dataset,) = steps.read(root).input.datasets.values()
    teachers.write_teacher(root / "teacher", dataset)
    return root


def read(root, hard_pairs=LEARNABLE, **changes):
    """Makes a config with a teacher's embeddings in the batches."""
    part = {"directory": str(root / "train"), "teacher": str(root / "teacher")}
    part = {"datasets": {"tiny": part}, "teacher_width": teachers.WIDTH}
    return steps.read(root, hard_pairs=hard_pairs, input=part, **changes)


@pytest.mark.pods
def test_devices_and_a_resumed_run_agree(root, tmp_path, mesh_of, monkeypatch):
    monkeypatch.setattr(mesh, "SMALL", 2**10)
    config = read(root)
    expected = steps.run(dataclasses.replace(config, microbatches=4), mesh_of(1))
    config = dataclasses.replace(config, fsdp=2)
    identity = config.identity(config.make_tokenizer())
    checkpoints = Checkpoints(str(tmp_path), config.checkpoint, identity)
    found, _, end, text = steps.run(config, mesh_of(8, 2, 2), checkpoints=checkpoints)
    steps.assert_same(found, end.own_variables, expected)
    for name in ("hard_pairs/read_score", "hard_pairs/chosen_score"):
        theirs = [row[name] for row in expected[0]]
        assert [row[name] for row in found] == pytest.approx(theirs, abs=1e-5)
    for row in found:
        assert row["hard_pairs/chosen_score"] > row["hard_pairs/read_score"]
    assert "[112,112]" not in text  # logits of all pairs that were read


@pytest.mark.parametrize(("scoring", "kind"), [("learnable", "sigmoid"), ("hard", "")])
def test_the_step_chooses_by_the_models_that_the_scoring_names(
    root, mesh_of, scoring, kind
):
    hard, model = HARD, {}
    if kind:
        hard = LEARNABLE | {"reference_bias": -1.0, "gain": 2.0}
        model = {"logit_bias_init": -2.0}
    config = read(root, hard, model=model, loss={"kind": kind or "softmax"})
    devices = mesh_of(8)
    step, n = config.make_plan(devices), 2 * config.batch_size
    random = np.random.default_rng(0)
    vectors = [random.normal(size=(n, w)).astype(np.float32) for w in (6, 6, 4, 4)]
    vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    params = {"temperature": np.float32(0.3), "logit_bias": np.float32(-2.0)}
    params = params if kind else {"temperature": params["temperature"]}
    batch = dict(zip(("teacher_image", "teacher_text"), vectors[2:], strict=True))

    def choose(batch, params, outputs, key):
        return choose_rows(batch, params, outputs, key, step, config.hard_pairs)

    key = jax.random.key(3)
    chosen, _ = jax.jit(choose)(batch, params, tuple(vectors[:2]), key)
    judges = [(*vectors[:2], 0.3, -2.0 if kind else 0.0, 1.0)]
    judges += [(*vectors[2:], 0.2, -1.0, -1.0)] if kind else []
    key = jax.random.fold_in(key, 2**31)
    noise = np.stack(
        [jax.random.gumbel(jax.random.fold_in(key, i), (n,)) for i in range(4)]
    )
    gain = config.hard_pairs.gain
    expected = choose_pairs_reference(
        judges, noise, config.batch_size, config.loss.kind, gain
    )
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("scoring", ["hard", "learnable"])
def test_a_ratio_of_zero_is_the_run_without_a_choice(root, mesh_of, scoring):
    plain = steps.read(root)
    none = {"filter_ratio": 0.0, "scoring": scoring}
    config, devices = steps.read(root, hard_pairs=none), mesh_of(8)
    assert config.make_plan(devices) == plain.make_plan(devices)
    assert config.batch_phases == plain.batch_phases
    assert config.batch_shapes(devices) == plain.batch_shapes(devices)
    step, shapes = config.make_plan(devices), config.batch_shapes(devices)
    assert "hard_pairs" not in count_model_flops(step, shapes)


def test_a_run_reads_super_batches_in_the_order_of_the_pairs(root):
    config = read(root, HARD, phases=((0, {"virtual_cores": 4}), (2, {})))
    first, second = config.batch_phases
    assert (first.pairs, first.pairs_read) == (28, 56)
    assert (second.pairs, second.pairs_read) == (56, 112)
    assert count_pairs(config.batch_phases, 3) == 2 * 56 + 112
    whole = (Phase(0, 56, config.input.preprocess, 6),)
    data = [open_training(config.input, p, 1) for p in (config.batch_phases, whole)]
    batches = [TrainBatches(part, config.make_tokenizer(), 0) for part in data]
    for _ in range(2):  # the batches of a run that trains on all of them
        mine, theirs = (next(part) for part in batches)
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.pods
def test_a_killed_run_ends_in_the_same_bits_and_counts_the_pairs_that_it_read(
    root, tmp_path, mesh_of
):
    fields = tiny.make_run(root, hard_pairs=HARD, evaluators={}, total_steps=4)
    fields["checkpoint"] = {"every_steps": 1, "keep": 4}
    train(fields, str(tmp_path / "whole"))
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / str(step))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    train(fields, str(run))
    assert rows(run) == rows(tmp_path / "whole")
    (found,) = find_runs([str(run)])
    assert found.measures["pairs_seen"] == 4 * 32
    assert found.measures["pairs_trained"] == 4 * 16
    config = read_run_config(fields)
    work = count_model_flops(
        config.make_plan(mesh_of(8)), config.batch_shapes(mesh_of(8))
    )
    assert found.measures["flops"] == pytest.approx(4 * sum(work.values()))
    totals = [row.get("train/model_tflops", 0) for row in read_metrics(str(run))]
    assert max(totals) == pytest.approx(4 * sum(work.values()) / 1e12)
    written = json.loads((run / "config.json").read_text())["hard_pairs"]
    assert written.items() >= HARD.items()


def test_the_forward_pass_of_the_super_batch_is_counted(root, mesh_of):
    def count(hard_pairs):
        config, devices = read(root, hard_pairs), mesh_of(8)
        shapes = config.batch_shapes(devices)
        return count_model_flops(config.make_plan(devices), shapes)

    plain, hard, learnable = count(None), count(HARD), count(LEARNABLE)
    easy = count(LEARNABLE | {"scoring": "easy_reference"})
    towers = plain["image_tower"] + plain["text_tower"]
    # Products of 112 pairs with three of four chunks of 14, both directions.
    products = 2 * 112 * 3 * 14 * 2
    width = steps.read(root).model.width
    assert easy["hard_pairs"] == products * teachers.WIDTH
    assert learnable["hard_pairs"] == hard["hard_pairs"] + easy["hard_pairs"]
    forward = hard["hard_pairs"] - products * width
    assert forward == pytest.approx(2 * towers / 3, rel=0.02)
    assert {**learnable, "hard_pairs": 0} == {**plain, "hard_pairs": 0}


def test_a_plan_says_how_many_pairs_are_chosen(root, capsys, monkeypatch):
    monkeypatch.setattr("align_jax.plan._try", lambda *_: "not compiled")
    plan(tiny.make_run(root, hard_pairs=HARD), "here")
    printed = capsys.readouterr().out
    assert "16 pairs a step chosen from 32, 2 a device" in printed
    assert "GFLOP a trained pair" in printed
    assert re.search(r"hard_pairs \d", printed)


@pytest.mark.pods
def test_a_plan_measures_the_super_batch(root, mesh_of):
    def needs(**changes):
        config = steps.read(root, **changes)
        return measure(config.make_plan(mesh_of(8)), config).parts

    pairs = 7 * (32 * 32 * 3 + 4 * 6)  # bytes of a device's pictures and tokens
    assert 0 <= needs()["batch"] - pairs < 64
    assert 0 <= needs(hard_pairs=HARD)["batch"] - 2 * pairs < 64


@pytest.mark.parametrize(
    ("hard_pairs", "changes", "message"),
    [
        ({"ratio": 0.5}, {}, "config.hard_pairs has no field 'ratio'"),
        ({"filter_ratio": 1.0}, {}, "filter_ratio is 1.0; wanted 0 or more, below 1"),
        (
            {"filter_ratio": 0.7},
            {},
            "hard_pairs.filter_ratio is 0.7; wanted 1 - 1 / a whole number",
        ),
        ({"filter_ratio": 0.832}, {}, "filter_ratio is 0.832; wanted 1 - 1 / a whole"),
        ({"chunks": 0}, {}, "config.hard_pairs.chunks is 0; wanted 1 or more"),
        ({"gain": 0.0}, {}, "config.hard_pairs.gain is 0.0; wanted above 0"),
        (
            {"scoring": "easy"},
            {},
            "hard_pairs.scoring is 'easy'; known: learnable, hard",
        ),
        (
            {"scoring": "learnable", "reference_temperature": 0.1},
            {},
            "hard_pairs.scoring is 'learnable', which needs a reference, but"
            " input.teacher_width is 0",
        ),
        (
            HARD | {"reference_temperature": 0.1},
            {},
            "hard_pairs.reference_temperature is 0.1; wanted None for scoring 'hard'",
        ),
        (
            HARD,
            {"loss": {"negatives": 0.5}},
            "loss.negatives is 0.5 and hard_pairs chooses pairs",
        ),
    ],
)
def test_bad_choices_are_refused_by_field(root, hard_pairs, changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        steps.read(root, hard_pairs=hard_pairs, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batches", [*range(2, 13), 20])
def test_a_ratio_may_be_rounded_to_three_digits(batches):
    ratio = 1 - 1 / batches
    for written in (ratio, round(ratio, 3), round(ratio, 4)):
        assert HardPairs(filter_ratio=written).batches == batches


def test_a_reference_needs_its_scalars(root):
    lacking = LEARNABLE | {"reference_temperature": None}
    message = "hard_pairs.reference_temperature is None; wanted a number for scoring"
    with pytest.raises(InputError, match=message):
        read(root, lacking)
    sigmoid = {"model": {"logit_bias_init": -2.0}, "loss": {"kind": "sigmoid"}}
    message = "hard_pairs.reference_bias is None; wanted a number for .* with a bias"
    with pytest.raises(InputError, match=message):
        read(root, **sigmoid)


def test_chunks_divide_the_batch_of_every_phase(root, mesh_of):
    config = steps.read(root, hard_pairs=HARD | {"chunks": 16})
    message = "config.hard_pairs.chunks is 16, which does not divide the global batch"
    with pytest.raises(InputError, match=f"{message} of 56 pairs"):
        config.make_plan(mesh_of(8))


def test_the_step_traces_with_every_kind_of_choice(root, mesh_of):
    distilled = {"distillation": 0.5, "teacher_temperature": 0.1}
    for hard_pairs, loss in (
        (HARD, {}),
        (LEARNABLE, distilled),
        (LEARNABLE | {"scoring": "easy_reference"}, {}),
    ):
        config, devices = read(root, hard_pairs, loss=loss), mesh_of(8)
        step, shapes = config.make_plan(devices), config.batch_shapes(devices)
        traced = make_train_step(step).trace(abstract_state(step), shapes)
        assert {"hard_pairs/read_score"} < {*traced.out_info[1]}


def test_errors_of_the_input_name_the_super_batch(root):
    config = read(root, LEARNABLE | {"filter_ratio": 0.8})
    for streams, message in (
        (4, "of a super-batch of 280 pairs are in the super-batch more than once"),
        (3, "the global super-batch of 280 pairs does not divide over input.streams"),
    ):
        part = dataclasses.replace(config.input, streams=streams)
        with pytest.raises(InputError, match=message):
            open_training(part, config.batch_phases, 1)
