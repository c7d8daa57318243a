import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import pytest

from align_jax import places
from align_jax.errors import InputError
from align_jax.runs.profiles import STEPS, Profile


@pytest.fixture
def traced(monkeypatch):
    """A list of the folders and steps of all traces, which a stand-in writes."""
    traces, now = [], []

    def stop():
        traces.append((*now, step.last))
        path = pathlib.Path(now.pop(), "plugins", "profile", "now", "host.xplane.pb")
        path.parent.mkdir(parents=True)
        path.write_text(f"{len(traces)}")

    monkeypatch.setattr(jax.profiler, "start_trace", now.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    return traces


def step(profile, number):
    step.last = number
    profile.before(number)
    profile.after(number, {})


def test_the_planned_steps_are_traced_by_the_planned_process(
    tmp_path, traced, monkeypatch
):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with Profile(str(tmp_path), (2, 4), process=1) as profile:
            for number in range(1, 9):
                step(profile, number)
    assert traced == [(str(tmp_path / "profile" / "process_1"), 4)]
    with pytest.raises(InputError, match=r"profile_process is 3; wanted .* below 3"):
        Profile(str(tmp_path), (2, 4), process=3)
    Profile(str(tmp_path), (), process=3)  # fewer devices than when it was configured


def test_a_signal_or_a_file_asks_for_the_next_steps(tmp_path, traced):
    target, request = tmp_path / "profile", tmp_path / "profile_request_0"
    (tmp_path / "profile_request_1").touch()  # for another process
    handler = signal.getsignal(signal.SIGUSR1)
    with Profile(str(tmp_path), ()) as profile:
        step(profile, 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        for number in range(2, 20):
            step(profile, number)
        assert traced == [(str(target), 1 + STEPS)]
        (target / "plugins").rename(tmp_path / "first")
        request.touch()
        step(profile, 20)
        assert len(traced) == 1  # it looks at flushes only
        profile.look()
        deadline = time.monotonic() + 10
        while request.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        while len(traced) == 1:
            step(profile, step.last + 1)
            assert time.monotonic() < deadline
        assert traced[1][1] >= 20 + STEPS
        (target / "plugins").rename(tmp_path / "second")
        profile.before(100)
        os.kill(os.getpid(), signal.SIGUSR1)
        profile.before(101)
    assert len(traced) == 3  # the end of the run ends the trace
    assert signal.getsignal(signal.SIGUSR1) == handler
    assert (tmp_path / "profile_request_1").exists()


@pytest.mark.parametrize("refused", [False, True])
def test_a_trace_for_a_bucket_is_copied_there(
    tmp_path, traced, monkeypatch, capsys, refused
):
    monkeypatch.setattr(places, "is_url", lambda place: str(place).startswith("/"))
    path = tmp_path / "profile" / "plugins" / "profile" / "now" / "host.xplane.pb"
    if not refused:
        path.parent.mkdir(parents=True)  # a bucket needs no folders, this disk does
    with Profile(str(tmp_path), (1, 1)) as profile:
        step(profile, 1)
    ((folder, _),) = traced
    assert not pathlib.Path(folder).exists()
    assert path.exists() is not refused
    assert ("profile has no new trace" in capsys.readouterr().err) is refused


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, traced, capsys):
    (tmp_path / "profile").touch()  # a file where the folder should be
    with Profile(str(tmp_path), (1, 1)) as profile:
        step(profile, 1)
    assert "profile has no new trace: NotADirectory" in capsys.readouterr().err


def test_a_trace_names_the_operations_of_a_step(tmp_path):
    with Profile(str(tmp_path), (1, 2)) as profile:
        for number in (1, 2):
            profile.before(number)
            result = jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((64, 64)))
            profile.after(number, {"loss": result})
    (path,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    names = {event.name for plane in planes for x in plane.lines for event in x.events}
    assert any("dot" in name for name in names)
