import threading

from align_jax.runs.hangs import (
    HangWatch,
    find_late,
    first_witness,
    read_begun,
    set_aside_hangs,
)
from align_jax.runs.lost_time import STEPS, Timesheet
from align_jax.runs.pace import Pace
from tests.runs.pace_test import Clock


def test_a_hang_is_reported_once_with_stacks(tmp_path, capsys, monkeypatch):
    clock = Clock()
    pace = Pace(1, {}, [], Timesheet(clock=clock))
    watch = HangWatch(str(tmp_path), 300, pace)

    def reported(seconds):
        clock.now += seconds
        watch.look()
        return capsys.readouterr().err

    pace.times.switch("compile")
    assert not reported(9000)
    pace.times.switch(STEPS)
    with pace.waiting(1):
        assert not reported(300)
        found = reported(1)
        assert "no step for 301 s since the start: process 0 is waiting for" in found
    assert not reported(299)
    pace.steps.finished, pace.steps.moved = 1, clock.now
    with pace.waiting(2):
        pass
    assert not reported(300)
    found = reported(2)
    assert "no step for 302 s after step 1: process 0 is computing" in found
    assert "in test_a_hang_is_reported_once_with_stacks" in found
    assert not reported(1000)  # the same hang
    files = {path.name: path.read_text() for path in (tmp_path / "hangs").iterdir()}
    assert sorted(files) == ["process_0_at_step_0.txt", "process_0_at_step_2.txt"]
    assert files["process_0_at_step_2.txt"] == found

    pace.steps.finished, pace.steps.moved = 2, clock.now
    for cause in ("evaluation", "save"):
        with pace.times.doing(cause):
            assert not reported(1000)
    assert not reported(300)
    monkeypatch.setattr(pace.steps, "median", lambda: 100.0)
    assert not reported(700)  # ten steps take 1000 s
    assert "no step for 1001 s after step 2" in reported(1)


def test_a_watch_of_no_seconds_looks_never(tmp_path):
    before = {*threading.enumerate()}
    with HangWatch(str(tmp_path), 0, Pace(1, {}, [])):
        assert {*threading.enumerate()} == before
    with HangWatch(str(tmp_path), 300, Pace(1, {}, [])):
        (thread,) = {*threading.enumerate()} - before
    thread.join(10)
    assert not thread.is_alive()


def test_the_processes_behind_are_named_by_the_first_that_is_not():
    names = [
        *("process_0_at_step_12.txt", "process_0_at_step_58.txt"),
        *("process_11_at_step_60.txt", "process_2_at_step_57.txt", "a.tmp"),
    ]
    begun = read_begun(names)
    assert begun == {0: 58, 2: 57, 11: 60}
    assert find_late(begun, 57, 4) == [1, 2, 3]
    assert first_witness(begun, 57) == 0
    assert find_late({1: 57, 2: 58}, 57, 3) == [0, 1]
    assert first_witness({1: 57, 2: 58}, 57) == 2
    assert find_late({0: 58, 1: 58}, 57, 2) == []
    # Nobody has begun step 58: they wait for each other after step 57.
    assert find_late({1: 57, 2: 57}, 57, 4) == [0, 3]
    assert first_witness({1: 57, 2: 57}, 57) == 1


def test_reports_of_an_earlier_start_do_not_count(tmp_path):
    set_aside_hangs(str(tmp_path))
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs" / "process_1_at_step_58.txt").write_text("stacks")
    set_aside_hangs(str(tmp_path))
    (kept,) = tmp_path.glob("*/process_1_at_step_58.txt")
    assert kept.parent.name.startswith("hangs.")
    assert kept.read_text() == "stacks"
