import fnmatch
import json
import re
import threading
import time

import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing import event_accumulator

from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import STARTED, Pace
from align_jax.runs.results import (
    PUBLISHED,
    collect_results,
    format_table,
    number_remarks,
    table_rows,
)
from align_jax.runs.telemetry import StepLog, open_writers


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def open_log(folder, start, total):
    lines, writer, past = open_writers(str(folder), start)
    return StepLog(lines, writer, Pace(8, {}, past), start, total)


def metrics(loss):
    return {"loss": jnp.float32(loss), "temperature": jnp.float32(0.1)}


def test_every_step_has_a_line_and_a_resumed_run_no_step_twice(tmp_path):
    log = open_log(tmp_path, 0, 4)
    for step in (1, 2, 3):
        log.add(step, metrics(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing

    log = open_log(tmp_path, 2, 4)
    log.add(3, metrics(30))
    log.close()
    assert read_metrics(str(tmp_path)) == rows_of(tmp_path)
    starts = [row["step"] for row in rows_of(tmp_path) if STARTED in row]
    assert starts == [0, 2]
    rows = [row for row in rows_of(tmp_path) if "train/loss" in row]
    assert [(r["step"], r["train/loss"]) for r in rows] == [(1, 1), (2, 2), (3, 30)]
    curves = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found = curves.Reload().Scalars("train/loss")
    assert [event.step for event in found] == [3, 3]  # each flush's last step


class Loss:
    """A loss that is computed when the test says so."""

    def __init__(self):
        self.computed = threading.Event()

    def block_until_ready(self):
        assert self.computed.wait(30)


def test_the_bar_begins_at_the_first_computed_step(tmp_path, capsys):
    log = open_log(tmp_path, 4, 9)
    with log.scoring():
        pass
    losses = [Loss() for _ in range(3)]
    steps = [metrics(1.0) | {"loss": loss} for loss in losses]
    for number, step in enumerate(steps[:2], 5):
        log.add(number, step)
    assert capsys.readouterr().err == "scoring the model before its first step\n"
    losses[0].computed.set()
    deadline = time.monotonic() + 30
    while log._pace.steps.finished != 5:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    log.add(7, steps[2])
    assert "5/9 [00:00<?" in capsys.readouterr().err
    for loss, step in zip(losses, steps, strict=True):
        loss.computed.set()
        step["loss"] = jnp.float32(2.0)
    with log.scoring():
        assert "scoring: " in capsys.readouterr().err
    log.close()
    assert "7/9" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path, bad):
    log = open_log(tmp_path, 0, 9)
    log.add(6, metrics(1.0))
    log.add(7, metrics(bad))
    with pytest.raises(FloatingPointError, match="the loss of step 7 is"):
        log.flush()


def test_results_hold_the_last_and_the_untrained_scores(tmp_path):
    _, writer, _ = open_writers(str(tmp_path), 0)
    scores = {"eval/a/i2t_recall@5": 0.1, "eval/a/i2t_chance@5": 0.05}
    writer.write_scalars(0, scores | {"eval/b/top1": 0.2, "eval/b/majority": 0.3})
    writer.write_scalars(5, {"train/loss": 2.0})
    writer.write_scalars(5, scores | {"eval/a/i2t_recall@5": 0.7})
    writer.write_scalars(5, {"eval/b/top1": 0.6, "eval/b/majority": 0.3})
    writer.close()
    results = collect_results(str(tmp_path))
    assert results["step"] == 5
    assert results["train/loss"] == 2.0
    rows = [
        (row.name, row.value, row.untrained, row.chance) for row in table_rows(results)
    ]
    assert rows == [
        ("eval/a/i2t_recall@5", 0.7, 0.1, 0.05),
        ("eval/b/top1", 0.6, 0.2, 0.3),
    ]
    first, *_ = format_table(results).splitlines()
    columns = ["measure", "trained", "step 0", "chance"]
    assert re.split(r"  +", first) == columns


def test_the_table_has_counts_and_published_numbers_where_there_are_some():
    results = {
        "eval/coco/t2i_recall@1": 0.5,
        "eval/coco/t2i_queries": 25_010,
        "eval/sorting/top1": 0.25,
    }
    head, retrieval, sorting, *remarks = format_table(results).splitlines()
    assert head.split() == ["measure", "trained", "queries", "ALIGN", "align-base"]
    numbers = ["0.500", "25,010", "0.456", "0.421", "[1,", "2]"]
    assert retrieval.split() == ["eval/coco/t2i_recall@1", *numbers]
    assert sorting.split() == ["eval/sorting/top1", "0.250"]
    starts = [line.split()[0] for line in remarks if line.startswith("[")]
    assert starts == ["[1]", "[2]"]
    assert "25,010 captions" in remarks[0]
    assert max(map(len, remarks)) <= 88
    assert "counts against our models" in " ".join(line.strip() for line in remarks)


def test_every_remark_is_on_published_measures_and_numbered_as_first_shown():
    for remark in PUBLISHED["remarks"]:
        for pattern in remark["on"]:
            assert fnmatch.filter(PUBLISHED["measures"], pattern), pattern
    names = [
        "eval/vtab_all/mean",
        "coco/mean",
        "coco/i2t_recall@1",
        "vtab_natural/mean",
    ]
    marks, texts = number_remarks(names)
    assert [*marks.values()] == ["[1]", "", "[2, 3]", "[1]"]
    assert ["VTAB" in texts[0], "25,010" in texts[1], len(texts)] == [True, True, 3]


def test_a_score_stands_beside_its_own_counts_and_chance_levels():
    results = {
        "step": 5,
        "train/loss": 1.0,
        "untrained/eval/coco/i2t_recall@5": 0.25,
        "eval/coco/i2t_recall@5": 0.5,
        "eval/coco/i2t_chance@5": 0.125,
        "eval/coco/i2t_queries": 8,
        "eval/coco/i2t_candidates": 9,
        "eval/coco/t2i_recall@5": 0.75,
        "eval/coco/t2i_queries": 7,
        "eval/coco/mean_recall": 0.625,
        "eval/simlex/nouns_spearman": -0.5,
        "eval/simlex/nouns_pairs": 6,
        "eval/probe/top1": 0.5,
        "eval/probe/mean_per_class": 0.25,
        "eval/probe/validation_top1": 0.75,
        "eval/probe/validation_queries": 4,
        "eval/probe/penalty_exponent": -2.0,
        "eval/probe/majority": 0.375,
        "eval/probe/queries": 5,
        "eval/probe/training_pictures": 40,
        "eval/shots/5_shot_top1": 0.5,
        "eval/shots/5_shot_std": 0.1,
        "eval/shots/queries": 3,
        "eval/new/margin": 1.5,
        "eval/new/chance": 0.0,
        "eval/dtd/top1": 0.875,
        "eval/dtd/std": 0.01,
        "eval/dtd/trial": 7,
    }
    rows = table_rows(results)
    assert [(r.name.removeprefix("eval/"), r.queries, r.chance) for r in rows] == [
        ("coco/i2t_recall@5", 8, 0.125),
        ("coco/t2i_recall@5", 7, None),
        ("coco/mean_recall", 8, None),
        ("simlex/nouns_spearman", 6, None),
        ("probe/top1", 5, 0.375),
        ("probe/mean_per_class", 5, None),
        ("probe/validation_top1", 4, None),
        ("shots/5_shot_top1", 3, None),
        ("new/margin", None, 0.0),
        ("dtd/top1", None, None),
    ]
    assert [row.value for row in rows] == [results[row.name] for row in rows]
    assert rows[0].untrained == 0.25
    assert rows[1].untrained is None
