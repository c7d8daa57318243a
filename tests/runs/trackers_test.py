"""Trackers without their packages: threads, failures, restarts."""

import io
import json
import threading
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from align_jax.config import write_config
from align_jax.errors import UNAWAITED, InputError, NonFiniteError, Preempted
from align_jax.report.pages import encode_uri
from align_jax.report.run_kinds import check_workdir, fill_defaults
from align_jax.runs.trackers import reporting
from align_jax.runs.trackers.reporting import Trackers
from align_jax.runs.trackers.tracked_run import TrackedRun
from align_jax.runs.trackers.trackio_run import TrackioConfig
from align_jax.runs.trackers.wandb_run import WandbConfig, WandbRun
from configs import quickstart

FIELDS = {"seed": 3, "model": {"image_tower": {"width": 0.25}}}


def make_plot():
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    return {
        "title": "loss",
        "alt": "",
        "picture": encode_uri(file.getvalue(), "png"),
    }


class Recorder:
    """A writer with clu's interface that keeps what it gets."""

    def __init__(self, fails_in=None):
        self.calls, self.fails_in = [], fails_in

    def __getattr__(self, method):
        return partial(self.call, method)

    def call(self, method, *values):
        self.calls.append((method, *values))
        if method == self.fails_in:
            raise OSError("the disk is\nfull")

    def rows(self):
        return [tuple(c[1:]) for c in self.calls if c[0] == "write_scalars"]


def report(workdir, steps, error=None, writer=None):
    """Reports steps, an error and a picture; returns what the tracker got."""
    writer = writer or Recorder()
    trackers = Trackers({}, [writer])
    with trackers.reporting(str(workdir), FIELDS):
        for step in steps:
            for feed in trackers.feeds:
                feed.write_scalars(step, {"train/loss": np.float32(step), "eval/a": 1})
                feed.flush()
        if error:
            raise error
        trackers.show(steps[-1], [make_plot()])
    return writer


def test_a_tracker_gets_config_numbers_pictures_and_alerts(tmp_path):
    writer = report(tmp_path, [1, 2])
    first, *_, (_, step, pictures), _, last = writer.calls
    assert first == (
        "write_hparams",
        {"seed": 3, "model.image_tower.width": 0.25},
    )
    assert writer.rows() == [
        (step, {"train/loss": float(step), "eval/a": 1.0}) for step in (1, 2)
    ]
    np.testing.assert_array_equal(pictures["report/loss"], [[[255, 0, 0]] * 3] * 2)
    assert step == 2
    assert last == ("close",)


@pytest.mark.parametrize("error", [NonFiniteError("it is nan", 2), Preempted("stop")])
def test_the_error_that_ends_a_run_is_an_alert(tmp_path, error):
    writer = Recorder()
    with pytest.raises(type(error)):
        report(tmp_path, [1, 2], error, writer)
    alerts = [call for call in writer.calls if call[0] == "write_texts"]
    assert alerts == [("write_texts", 2, {type(error).__name__: str(error)})]
    assert writer.calls[-1] == ("close",)


def test_a_resumed_run_continues_the_same_run_and_doubles_no_step(tmp_path):
    with pytest.raises(Preempted):
        report(tmp_path, [1, 2, 3], Preempted("stop"))
    path = tmp_path / "trackers/writer_0.json"
    before = json.loads(path.read_text())
    assert before["sent"] == {"train": 3, "eval": 3}
    # The scores of step 3 were not sent.
    path.write_text(json.dumps(before | {"sent": {"train": 3, "eval": 2}}))
    writer = report(tmp_path, [2, 3, 4])
    assert writer.rows() == [(3, {"eval/a": 1.0}), (4, {"train/loss": 4, "eval/a": 1})]
    after = json.loads(path.read_text())
    assert after == {"id": before["id"], "sent": {"train": 4, "eval": 4}}


@pytest.mark.parametrize("method", ["write_hparams", "write_scalars", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_line(tmp_path, capsys, method):
    writer = report(tmp_path, [1, 2], writer=Recorder(fails_in=method))
    assert [call[0] for call in writer.calls].count(method) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: the tracker writer_0 failed: OSError: the disk is full ("
    )
    assert line.endswith("; the run goes on without it")


def test_a_run_that_ends_while_its_tracker_begins_keeps_the_id(tmp_path):
    ids = []
    for _ in range(2):
        report(tmp_path, [1], writer=Recorder(fails_in="write_hparams"))
        ids.append(json.loads((tmp_path / "trackers/writer_0.json").read_text())["id"])
    assert ids[0] == ids[1]


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path, capsys):
    (tmp_path / "trackers").write_text("a file")
    assert report(tmp_path, [1, 2]).calls == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "the tracker writer_0 failed: InputError" in line


def test_a_damaged_file_of_a_tracker_stops_no_run(tmp_path, capsys):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers/writer_0.json").write_text('{"id": 3')
    assert report(tmp_path, [1]).calls == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "the tracker writer_0 failed: InputError" in line


def test_a_tracker_that_hangs_delays_neither_steps_nor_the_end(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(reporting, "PATIENCE", 0.05)
    monkeypatch.setattr(reporting, "WAITING_CALLS", 10)
    released = threading.Event()
    writer = Recorder()
    writer.write_hparams = lambda _: released.wait(30)
    begun = time.process_time()
    report(tmp_path, range(1, 101), writer=writer)
    assert time.process_time() - begun < 1
    (thread,) = [t for t in threading.enumerate() if t.name == UNAWAITED]
    released.set()
    thread.join(30)
    behind, end = capsys.readouterr().err.splitlines()
    assert behind == (
        "warning: the tracker writer_0 has 10 calls behind; numbers are left out"
    )
    assert end.startswith("warning: the tracker writer_0 did not end within 0.05 s")


def test_only_the_first_process_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "leads", lambda: False)
    assert report(tmp_path, [1]).calls == []
    assert not [*tmp_path.iterdir()]


def test_a_config_of_trackers_is_checked_before_the_run(tmp_path, monkeypatch):
    cases = {
        "name in config.trackers is 'wandbb'; did you mean 'wandb'": {"wandbb": {}},
        "config.trackers.wandb has no field 'projekt'": {"wandb": {"projekt": "x"}},
        "config.trackers.wandb: mode is 'of'": {"wandb": {"mode": "of"}},
        "config.trackers.trackio.project is 3": {"trackio": {"project": 3}},
    }
    for message, trackers in cases.items():
        with pytest.raises(InputError, match=message):
            Trackers(trackers)
    monkeypatch.setattr(reporting, "find_spec", lambda name: None)
    for name in ("wandb", "trackio"):
        with pytest.raises(InputError, match=f"trackers.{name} needs the package"):
            Trackers({name: {}})
    monkeypatch.undo()
    monkeypatch.setattr(
        reporting, "TRACKERS", {"wandb_": WandbRun, "trackio_": WandbRun}
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("wandb_", "trackio_"):
        (tmp_path / name).mkdir()  # as W&B makes one for its files
        with pytest.raises(InputError, match=f"trackers.{name} needs the package"):
            Trackers({name: {}})
    assert WandbConfig().mode == "online"
    assert TrackioConfig().space_id is None


def test_a_run_continues_with_other_trackers(tmp_path):
    fields = quickstart.get_config().to_dict()
    write_config(tmp_path, fill_defaults(fields))
    check_workdir(tmp_path, fields | {"trackers": {"trackio": {"project": "x"}}})
    with pytest.raises(InputError, match="belongs to another config"):
        check_workdir(tmp_path, fields | {"seed": 7})


def test_runs_of_a_sweep_share_a_group():
    for workdir in ("gs://bucket/sweep/b5-1f", "/runs/sweep/b5-1f/"):
        run = TrackedRun(workdir, "id", {})
        assert (run.name, run.group) == ("b5-1f", "sweep")
