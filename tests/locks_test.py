import errno
import json
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from align_jax import locks
from align_jax.errors import InputError
from align_jax.locks import LOCK_FILE, locked
from align_jax.train import train
from data import quickstart
from tests import tiny
from tests.places_test import run

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import sys, time
from align_jax.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_and_free_once_its_holder_is_killed(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError) as error, locked(folder):
            pass
        wanted = (
            rf"{folder} is in use by process {holder.pid} on {socket.gethostname()}"
        )
        wanted += r" since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00; wait for its end, or"
        assert re.match(wanted, str(error.value))
        os.kill(holder.pid, signal.SIGKILL)
    assert (folder / LOCK_FILE).exists()
    with locked(folder) as lock:
        lock.check()
        assert json.loads((folder / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert [*folder.iterdir()] == []


def test_a_lock_leaves_no_new_folder_and_no_file_behind(tmp_path):
    with pytest.raises(ValueError, match="bad input"), locked(tmp_path / "new"):
        raise ValueError("bad input")
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
        with (
            pytest.raises(InputError, match=r"used is in use"),
            locked(f"{tmp_path}/used"),
        ):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "file"]


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with locked(tmp_path):
        child = multiprocessing.get_context("fork").Process(
            target=time.sleep, args=(9,)
        )
        child.start()
    with locked(tmp_path):
        child.kill()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", tmp_path / "file", "/proc/self/run"):
        with pytest.raises(
            InputError, match=rf"{folder}.* cannot be written: .*; what"
        ):
            with locked(folder):
                pass


def test_programs_and_builds_refuse_a_folder_in_use(tmp_path, monkeypatch):
    fields = tiny.make_run(tmp_path, evaluators={})
    with locked(tmp_path / "run"), pytest.raises(InputError, match="run is in use by"):
        train(fields, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["quickstart", f"--out={tmp_path}/data"])
    with locked(tmp_path / "data"), pytest.raises(InputError, match="is in use by"):
        quickstart.main()


@pytest.fixture
def heartbeat(monkeypatch):
    """Locks by a heartbeat, as in a bucket, of some milliseconds."""

    def refuse(file, mode=0):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks, "try_flock", refuse)
    for name, seconds in {"BEAT": 0.02, "PATIENCE": 0.3, "SETTLE": 0.01}.items():
        monkeypatch.setattr(locks, name, seconds)


def test_a_heartbeat_keeps_others_away(tmp_path, heartbeat):
    with locked(tmp_path) as lock:
        first = (tmp_path / LOCK_FILE).read_text()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
            with locked(tmp_path):
                pass
        time.sleep(0.1)
        lock.check()
        later = (tmp_path / LOCK_FILE).read_text()
        assert len(first) == len(later)
        assert first != later
    assert [*tmp_path.iterdir()] == []


def test_a_heartbeat_that_stopped_is_taken_over_whatever_the_clocks_say(
    tmp_path, heartbeat, capsys
):
    lock_file = tmp_path / LOCK_FILE
    left = {"owner": "a", "host": "there", "pid": 7, "since": "2099-01-01 00:00:00"}
    for text in (json.dumps(left), "\0" * 40):
        lock_file.write_text(text)
        for clock in (0, 4_000_000_000):
            os.utime(lock_file, (clock, clock))
        begun = time.monotonic()
        with locked(tmp_path):
            assert time.monotonic() - begun >= locks.PATIENCE
            assert json.loads(lock_file.read_text())["pid"] == os.getpid()
        lock_file.touch()
    assert "has the lock of process 7 on there since 2099" in capsys.readouterr().out


def test_a_holder_that_was_taken_over_writes_no_more(tmp_path, heartbeat):
    lock_file = tmp_path / LOCK_FILE
    other = json.dumps({"owner": "b", "host": "there", "pid": 8, "since": "now"})
    with locked(tmp_path) as lock:
        lock.check()
        while True:  # the holder may be writing at this moment
            lock_file.write_text(other)
            time.sleep(0.1)
            if lock_file.read_text() == other:
                break
        with pytest.raises(
            InputError, match="taken over by process 8 on there since no"
        ):
            lock.check()
    assert lock_file.read_text() == other


def test_a_holder_that_was_suspended_looks_before_it_goes_on(
    tmp_path, heartbeat, monkeypatch
):
    monkeypatch.setattr(locks, "BEAT", 60.0)
    with locked(tmp_path) as lock:
        other = json.dumps({"owner": "b", "host": "there", "pid": 8, "since": "now"})
        (tmp_path / LOCK_FILE).write_text(other)
        lock.check()
        lock._seen -= 121
        with pytest.raises(InputError, match="taken over by process 8"):
            lock.check()


def test_a_bucket_is_locked_by_a_heartbeat():
    run("""
from align_jax import locks
locks.BEAT, locks.PATIENCE, locks.SETTLE = 0.05, 0.5, 0.02
folder = "gs://bucket/locked"
with locks.locked(folder) as lock:
    before = places.read_object(folder + "/lock.json")
    try:
        with locks.locked(folder):
            raise SystemExit("not refused")
    except InputError as error:
        assert f"gs://bucket/locked is in use by process {os.getpid()} on" in str(error)
    lock.check()
    assert places.read_object(folder + "/lock.json") != before
assert not places.exists(folder + "/lock.json")
places.write_json(folder + "/lock.json", before)
with locks.locked(folder):
    assert places.read_object(folder + "/lock.json")["owner"] != before["owner"]
""")
