"""Weights & Biases offline and Trackio on this machine, which `make test-trackers`
installs, beside the metric lines of a run that was interrupted."""

import json
import os
import subprocess
import sys

import pytest

from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import STARTED
from align_jax.runs.telemetry import StepLog
from align_jax.runs.trackers.reporting import Trackers
from align_jax.train import train
from tests import tiny
from tests.run_tiny import rows

pytestmark = pytest.mark.trackers
PLOTS = {
    "report/loss",
    "report/temperature",
    "report/pairs per second",
    "report/pairs",
    "report/colour",
    "report/pairs cosine similarity",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the workdir of a run that broke in step 4, after step 3 was written."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        # Trackio reads it at its import.
        patch.setenv("TRACKIO_DIR", str(root / "trackio"))
        assert "trackio" not in sys.modules
        trackers = {"wandb": {"mode": "offline"}, "trackio": {}}
        fields = tiny.make_run(root / "data", trackers=trackers)
        add = StepLog.add

        def break_down(log, step, metrics):
            if step == 4:
                raise RuntimeError("the power failed")
            add(log, step, metrics)

        with pytest.MonkeyPatch.context() as breaking:
            breaking.setattr(StepLog, "add", break_down)
            with pytest.raises(RuntimeError, match="the power failed"):
                train(fields, str(root / "run"))
        train(fields, str(root / "run"))
        yield root / "run"


def inspect(run):
    """Reads the records of W&B's files by W&B's reader, in the order of the starts."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    found = []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        told = subprocess.run([*command, str(file)], check=True, capture_output=True)
        found += map(json.loads, told.stdout.splitlines())
    return found


def points(found):
    """Returns {(step, name): values} of rows {"step": ..., name: number}."""
    values = {}
    for row in found:
        for name, value in row.items():
            if name.startswith(("train/", "eval/")):
                values.setdefault((row["step"], name), []).append(value)
    return values


def check_points(run, found):
    """Compares a tracker's rows with the metric lines."""
    lines = [row for row in read_metrics(str(run)) if STARTED not in row]
    written, found = points(lines), points(found)
    assert found.keys() == written.keys()
    clocked = written.keys() - points(rows(run)).keys()
    for point, values in written.items():
        step, _ = point
        if point not in clocked:
            assert len(found[point]) == 1  # no step twice
        if point not in clocked or step != 3:  # step 3 was timed at both starts
            assert found[point] == values, point
    assert len(written) > 100


def test_weights_and_biases_holds_the_numbers_of_the_metric_lines(run):
    records = inspect(run)
    check_points(run, [r["history"]["item"] for r in records if "history" in r])
    starts = [r["run"] for r in records if "run" in r]
    assert len(starts) == 2
    state = json.loads((run / "trackers/wandb.json").read_text())
    for start in starts:
        assert start["run_id"] == state["id"]
        assert start["run_group"] == run.parent.name
        assert start["display_name"] == "run"
    assert starts[0]["config"]["update"]["optimizer"]["warmup_steps"] == 1
    (alert,) = [r["alert"] for r in records if "alert" in r]
    assert (alert["title"], alert["text"]) == (
        "RuntimeError",
        "step 3: the power failed",
    )
    assert [r["exit"].get("exit_code", 0) for r in records if "exit" in r] == [1, 0]
    (axis,) = {r["metric"]["step_metric"] for r in records if "metric" in r}
    assert axis == "step"
    pictures = {
        name.removesuffix("._type")
        for r in records
        if "history" in r
        for name in r["history"]["item"]
        if name.startswith("report/") and name.endswith("._type")
    }
    assert pictures == PLOTS
    assert len([*run.glob("wandb/offline-run-*/files/media/images/report/*.png")]) == 6


def test_trackio_holds_the_numbers_of_the_metric_lines(run):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (found,) = trackio.Api().runs("align_jax")
    state = json.loads((run / "trackers/trackio.json").read_text())
    assert found.name == f"run-{state['id']}"
    lines = SQLiteStorage.get_logs("align_jax", run=found.name)
    check_points(run, lines)
    assert found.config["_Group"] == run.parent.name
    assert found.config["optimizer"]["warmup_steps"] == 1
    (alert,) = found.alerts()
    assert (alert["title"], alert["step"]) == ("RuntimeError", 3)
    pictures = {name for line in lines for name in line if name.startswith("report/")}
    assert pictures == PLOTS


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({}, "nobody is logged in to Weights & Biases; run `wandb login`, or set"),
        ({"WANDB_API_KEY": "0" * 40}, "Failed to authenticate with http://127.0.0.1:9"),
    ],
)
def test_a_run_goes_on_without_login_and_without_network(tmp_path, variables, fault):
    script = (
        "from align_jax.runs.trackers.reporting import Trackers\n"
        "trackers = Trackers({'wandb': {}})\n"
        "with trackers.reporting('.', {}):\n"
        "    for feed in trackers.feeds:\n"
        "        feed.write_scalars(1, {'train/loss': 1.0})\n"
        "print('the run ended')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
        | {"PYTHONPATH": str(tiny.__file__).rpartition("/tests/")[0]}
        | variables,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0
    assert found.stdout == "the run ended\n"
    (line,) = [line for line in found.stderr.splitlines() if "warning" in line]
    assert line.startswith("warning: the tracker wandb failed: ")
    assert fault in line


def test_a_sweeps_runs_are_runs_of_one_group(tmp_path):
    """Two runs one after the other in a process, as in a random search."""
    for name in ("a", "b"):
        trackers = Trackers({"wandb": {"mode": "offline"}})
        (tmp_path / name).mkdir()
        with trackers.reporting(str(tmp_path / name), {"name": name}):
            trackers.feeds[0].write_scalars(1, {"train/loss": 1.0})
    found = [r["run"] for n in "ab" for r in inspect(tmp_path / n) if "run" in r]
    assert [run["display_name"] for run in found] == ["a", "b"]
    assert {run["run_group"] for run in found} == {tmp_path.name}
    assert len({run["run_id"] for run in found}) == 2
