import json
import os
import pathlib
import time

from align_jax.sweep.status import Status, format_status, read_status


def test_the_table_tells_what_is_known():
    statuses = [
        Status(
            id="one-12345678",
            state="running",
            step=1500,
            total=6000,
            pairs_per_second=1234.4,
            seconds_left=3725.2,
            metrics={"loss": 1.25},
        ),
        Status(
            id="two-12345678",
            state="waiting",
            step=0,
            total=None,
            pairs_per_second=None,
            seconds_left=None,
            metrics={},
        ),
    ]
    head, one, two, counts = format_status(statuses).splitlines()
    assert one.split() == (
        "one-12345678 running 1,500 / 6,000 1,234 1:02:05 loss 1.250".split()
    )
    assert two.split() == ["two-12345678", "waiting", "0"]
    assert head.index("step") + 4 == one.index("6,000") + 5
    assert counts == "1 running, 1 waiting"


def test_a_running_run_s_time_left_is_of_its_speed(place):
    run = place.runs()[0]
    (pathlib.Path(run.workdir)).mkdir(parents=True)
    config = json.dumps(run.fields)
    (pathlib.Path(run.workdir) / "config.json").write_text(config)
    rows = [
        {"step": 20, "train/loss": 3.0, "eval/coco/mean_recall": 0.25},
        {"step": 50, "train/loss": 2.0, "train/pairs_per_second": 256.0},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (pathlib.Path(run.workdir) / "metrics.jsonl").write_text(lines)
    metrics = pathlib.Path(run.workdir) / "metrics.jsonl"
    assert read_status(run).state == "running"  # elsewhere
    os.utime(metrics, (0, time.time() - 1000))
    status = read_status(run)
    assert (status.state, status.step, status.total) == ("stopped", 50, 100)
    assert status.seconds_left == 50 * 128 / 256
    assert status.metrics == {"train/loss": 2.0, "coco/mean_recall": 0.25}
