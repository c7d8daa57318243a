"""Tests the shipped quickstart, shrunk to seconds, from raw pairs to the report."""

import itertools
import json
import shutil
import sys

import pytest

import main
from align_jax import train
from align_jax.config import leave_out, read_config
from align_jax.errors import InputError
from align_jax.evaluate import evaluate
from align_jax.runs.pace import Pace
from align_jax.training import run_config
from configs import corpus_quickstart, quickstart, quickstart_evaluate
from data.corpus.builder import build
from data.corpus.config import CorpusConfig
from data.samples.emoji_drawings import draw, list_concepts
from data.samples.quickstart_splits import write_evaluation, write_pairs
from tests import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def fields(root):
    """Builds the data of some concepts and shrinks the shipped config."""
    single = [concept for concept in list_concepts() if concept.single]
    concepts = single[::14]
    pictures = {
        path: draw(path) for concept in concepts for path in concept.drawings.values()
    }
    write_pairs(root / "pairs.parquet", concepts, pictures, seed=0)
    write_evaluation(root / "evaluation", concepts, pictures, seed=0)

    corpus = corpus_quickstart.get_config()
    corpus.ingest.path = str(root / "pairs.parquet")
    corpus.engine = {"workers": 1}  # one process: imports of others would take seconds
    corpus.evaluation_images = str(root / "evaluation" / "queries.parquet")
    build(read_config(CorpusConfig, corpus.to_dict()), root / "corpus")

    config = quickstart.get_config()
    config.total_steps = 4
    config.pairs_per_core = 4
    config.vocabulary = str(root / "corpus" / "records" / "vocabulary.txt")
    config.input.datasets.emoji.directory = str(root / "corpus" / "records")
    config.input.preprocess.resize, config.input.preprocess.image_size = 36, 32
    config.model.image_tower = {**tiny.IMAGE_TOWER}
    config.model.text_tower.layers, config.model.text_tower.hidden = 1, 64
    config.optimizer.warmup_steps = 2
    config.checkpoint.every_steps = 3
    config.log_every_steps = 2
    for name, evaluator in config.evaluators.items():
        evaluator.directory = str(root / "evaluation")
        if name == "category":
            evaluator.prompts = str(root / "evaluation" / "categories.json")
    return config.to_dict()


@pytest.fixture(scope="module")
def finished(root, fields):
    train.train(fields, str(root / "whole"))
    return root / "whole"


def values(workdir, name):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[name] for row in rows if name in row}


def losses(workdir):
    return values(workdir, "train/loss")


def test_a_run_leaves_results_checkpoints_and_a_report(finished):
    results = json.loads((finished / "results.json").read_text())
    for split in ("unseen_drawing", "unseen_concept"):
        for way in ("i2t", "t2i"):
            for prefix in ("", "untrained/"):
                recall = results[f"{prefix}eval/{split}/{way}_recall@5"]
                assert 0 <= recall <= 1
            assert 0 < results[f"eval/{split}/{way}_chance@5"] < 1
    assert {"eval/category/top1", "eval/category/majority"} <= set(results)
    assert results["step"] == 4
    assert sorted(losses(finished)) == [1, 2, 3, 4]
    for kind in ("gradient", "update"):  # in every step, as in all short runs
        norms = values(finished, f"train/{kind}_norm")
        towers = [
            values(finished, f"train/{tower}/{kind}_norm")
            for tower in ("image_tower", "text_tower")
        ]
        assert [*norms] == [*towers[0]] == [*towers[1]] == [1, 2, 3, 4]
        for step, norm in norms.items():
            of_towers = [tower[step] ** 2 for tower in towers]
            assert norm**2 >= 0.999 * sum(of_towers)
            moves = step > 1  # the first step's rate is 0
            assert (min(of_towers) > 0) == (kind == "gradient" or moves)
    assert "unseen_drawing" in (finished / "report.html").read_text()
    steps = {path.name for path in (finished / "checkpoints").iterdir()}
    assert {"3", "4"} <= steps


@pytest.mark.pods
def test_a_long_run_measures_norms_where_it_writes_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(run_config, "SHORT_RUN", 2)
    fields = tiny.make_run(tmp_path, total_steps=3, log_every_steps=2, evaluators={})
    fields["optimizer"]["kind"] = "sgd"  # the fewest operations to compile
    train.train(fields, str(tmp_path / "run"))
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    assert [*values(tmp_path / "run", "train/update_norm")] == [2, 3]


def test_an_interrupted_run_goes_on_to_the_same_losses(
    root, fields, finished, monkeypatch, capsys
):
    place = train.global_batches

    def interrupt_at_the_fourth(batches, mesh):
        yield from itertools.islice(place(batches, mesh), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "global_batches", interrupt_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train.train(fields, str(root / "parts"))
    monkeypatch.undo()
    train.train(fields, str(root / "parts"))
    assert "after step 3" in capsys.readouterr().out
    assert losses(root / "parts") == losses(finished)
    mine, whole = (
        json.loads((folder / "results.json").read_text())
        for folder in (root / "parts", finished)
    )
    clocked = [f"train/{name}" for name in Pace(1, {}, []).end_interval(1)]
    assert leave_out(mine, clocked) == leave_out(whole, clocked)


def test_a_finished_run_does_nothing_more(fields, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    train.train(fields, str(finished))
    printed = capsys.readouterr().out
    assert "finished: nothing to do" in printed
    assert "t2i_recall@5" in printed
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_evaluating_alone_gives_the_same_scores(root, fields, finished):
    config = quickstart_evaluate.get_config()
    config.checkpoint = str(finished)
    config.evaluators = fields["evaluators"]
    evaluate(config.to_dict(), str(root / "again"))
    again, results = (
        json.loads((folder / "results.json").read_text())
        for folder in (root / "again", finished)
    )
    assert {name for name in again if name.startswith("eval/")} == {
        name for name in results if name.startswith("eval/")
    }
    assert all(results[name] == again[name] for name in again)
    assert (root / "again" / "report.html").exists()


def test_bad_input_is_refused_before_anything_is_written(root, fields, finished):
    def refused(message, workdir="new", **changes):
        with pytest.raises(InputError, match=message):
            train.train(fields | changes, str(root / workdir))

    refused("config has no field 'sed'; did you mean 'seed'", sed=1)
    refused(
        "virtual_cores is 12, which does not divide over 8",
        virtual_cores=12,
        batch_norm_cores=4,
    )
    refused("not a multiple of batch_norm_cores, 3", batch_norm_cores=3)
    refused("warmup_steps is 2; .* below total_steps, 2", total_steps=2)
    for name in ("evaluate_every_steps", "log_every_steps", "batch_norm_cores"):
        refused(f"{name} is 0; wanted 1 or more", **{name: 0})
    refused("no vocabulary at nowhere", vocabulary="nowhere")
    refused(
        "no TFDS dataset in '.*/nowhere'",
        input={**fields["input"], "datasets": {"emoji": {"directory": "nowhere"}}},
    )
    small = {**fields["model"]["text_tower"], "vocabulary_size": 9}
    refused(
        "vocabulary_size is 9; raise it", model={**fields["model"], "text_tower": small}
    )
    image = {**fields["model"]["image_tower"], "frozen_statistics": False}
    for model, optimizer, message in (
        ({}, {"frozen": ("txt",)}, "frozen has the pattern 'txt', which fits no param"),
        ({"image_tower": image}, {"frozen": ("^image",)}, "set .*frozen_statistics"),
        ({"logit_bias_init": -9.0}, {}, "sigmoid loss wants a bias, the softmax none"),
        ({"temperature_init": 0.001}, {}, "0.001, below loss.temperature_floor, 0.01"),
    ):
        refused(
            message,
            model={**fields["model"], **model},
            optimizer={**fields["optimizer"], **optimizer},
        )
    refused(
        "config.loss.negatives is 0.3; wanted 1 / a whole number",
        loss={**fields["loss"], "negatives": 0.3},
    )
    refused("microbatches is 2, which does not divide a device's 1", microbatches=2)
    assert not (root / "new").exists()
    before = (finished / "results.json").read_text()
    refused("another config .*config.seed: 0 -> 1", "whole", seed=1)
    assert (finished / "results.json").read_text() == before


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    return main.main()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.total_stepz=3",
            "no field 'total_stepz'; did you mean 'total_steps'",
        ),
        ("--config.total_steps=many", "invalid literal for int() with base 10: 'many'"),
        ("--config.run=train", "config.run is 'train'; did you mean 'pretrain'?"),
        ("config.seed=5", "unexpected arguments: config.seed=5; a flag begins with"),
        ("extra", "unexpected arguments: extra; a flag begins with --"),
    ],
)
def test_the_command_line_ends_in_one_line(monkeypatch, capsys, flag, message):
    arguments = ["--config=configs/quickstart.py", "--workdir=unused", flag]
    assert command(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch, capsys):
    def missing(fields, workdir):
        raise ModuleNotFoundError("no", name="tensorflow_text")

    monkeypatch.setattr(main, "kinds_of_runs", lambda: {"pretrain": missing})
    arguments = ["--config=configs/quickstart.py", "--workdir=unused"]
    assert command(monkeypatch, *arguments) == 2
    assert "package 'tensorflow_text' is missing" in capsys.readouterr().err


def test_a_damaged_workdir_is_named(root, fields, finished):
    copy = root / "damaged"
    shutil.copytree(finished, copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        train.train(fields, str(copy))
