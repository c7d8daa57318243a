import json

import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing import event_accumulator

from align_jax.runs.pace import STARTED, Pace
from align_jax.runs.results import collect_results, format_table, table_rows
from align_jax.runs.telemetry import StepLog, open_writers, read_metrics


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def open_log(folder, start, total):
    writers = open_writers(str(folder), start)
    return StepLog(*writers, Pace(8, {}, []), start, total)


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
    rows = [row for row in rows_of(tmp_path) if STARTED not in row]
    assert [(r["step"], r["train/loss"]) for r in rows] == [(1, 1), (2, 2), (3, 30)]
    curves = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found = curves.Reload().Scalars("train/loss")
    assert [event.step for event in found] == [3, 3]  # each flush's last step


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path, bad):
    log = open_log(tmp_path, 0, 9)
    log.add(6, metrics(1.0))
    log.add(7, metrics(bad))
    with pytest.raises(FloatingPointError, match="the loss of step 7 is"):
        log.flush()


def test_results_hold_the_last_and_the_untrained_scores(tmp_path):
    _, writer = open_writers(str(tmp_path), 0)
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
    assert first.split() == ["measure", "trained", "untrained", "chance"]


def test_the_table_has_counts_and_published_numbers_where_there_are_some():
    results = {
        "eval/coco/t2i_recall@1": 0.5,
        "eval/coco/t2i_queries": 25_010,
        "eval/sorting/top1": 0.25,
    }
    head, retrieval, sorting = map(str.split, format_table(results).splitlines())
    assert head == ["measure", "trained", "queries", "ALIGN", "align-base"]
    assert retrieval == ["eval/coco/t2i_recall@1", "0.500", "25,010", "0.456", "0.421"]
    assert sorting == ["eval/sorting/top1", "0.250"]
