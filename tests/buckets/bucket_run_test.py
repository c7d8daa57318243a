"""Runs whose folder, data and vocabulary are in a bucket, which a server imitates."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from align_jax import locks
from align_jax.sweep.config import SweepRun
from align_jax.sweep.status import read_status
from align_jax.weights.source import open_weights
from tests import tiny
from tests.buckets.storage import ROOT, serve
from tests.run_tiny import STEPS, rows

pytestmark = pytest.mark.buckets

KILLS = 10
COMMITTED = "/commit_success.txt"  # the last object of a checkpoint


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as found:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in found.environment.items():
                patch.setenv(name, value)
            yield found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def fields(root):
    return tiny.make_run(
        root / "data",
        total_steps=STEPS,
        evaluate_every_steps=10,
        checkpoint={"every_steps": 5, "keep": 2},
    )


@pytest.fixture(scope="module")
def remote_fields(storage, root, fields):
    url = storage.upload(root / "data", "data")
    return json.loads(json.dumps(fields).replace(str(root / "data"), url))


def start(root, fields, workdir):
    """Starts `main.py` on a config; it compiles each program once for all tests."""
    path = root / f"config_{abs(hash(json.dumps(fields)))}.py"
    text = json.dumps(json.dumps(fields))
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({text}))\n"
    )
    devices = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    cache = str(root / "compiled")
    return subprocess.Popen(
        [sys.executable, "main.py", f"--config={path}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "XLA_FLAGS": devices},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return out


def assert_same(workdir, other):
    assert rows(workdir) == rows(other)
    found, wanted = open_weights(str(workdir)), open_weights(str(other))
    assert found.step == wanted.step == STEPS
    assert found.variables.keys() == wanted.variables.keys()
    for name, array in wanted.variables.items():
        np.testing.assert_array_equal(found.variables[name], array)


@pytest.fixture(scope="module")
def local(root, fields):
    """The workdir of a run on a local disk."""
    finish(start(root, fields, root / "local"))
    return root / "local"


def wait_for_checkpoint(storage, process, run):
    while not any(
        name.endswith(COMMITTED) for name in storage.names(f"{run}/checkpoints/")
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_run_in_a_bucket_is_killed_and_goes_on_as_on_a_disk(
    storage, root, remote_fields, local
):
    workdir = "gs://bucket/run"
    first = start(root, remote_fields, workdir)
    wait_for_checkpoint(storage, first, "run")
    first.kill()
    first.communicate()
    out = finish(start(root, remote_fields, workdir))
    assert f"run has the lock of process {first.pid} on" in out
    assert_same(workdir, local)
    assert "run/lock.json" not in storage.names("run/")
    assert not [name for name in storage.names("run/") if name.endswith(".tmp")]
    for kind in ("metrics", "tensorboard", "checkpoints", "lock.json", ""):
        print(f"bytes sent to run/{kind}: {storage.sent_to(f'run/{kind}'):,}")
    again = finish(start(root, remote_fields, workdir))
    assert "finished: nothing to do" in again
    (status,) = [read_status(SweepRun("run", remote_fields, (), workdir))]
    assert (status.state, status.step) == ("done", STEPS)


def test_a_second_run_in_a_bucket_is_refused(storage, root, remote_fields):
    workdir = "gs://bucket/twice"
    first = start(root, remote_fields | {"total_steps": 4000}, workdir)
    wait_for_checkpoint(storage, first, "twice")
    lock = json.loads(storage.read("twice/lock.json"))
    second = start(root, remote_fields | {"total_steps": 4000}, workdir)
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 2
    (line,) = [x for x in errors.splitlines() if x.startswith("main.py: ")]
    assert f"in use by process {first.pid} on {lock['host']} since" in line
    assert first.poll() is None
    # Another process takes the folder over: the first ends before it writes more.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "PATIENCE", 0.0)
        lock = locks._Heartbeat(workdir)
        lock._write()
        _, errors = first.communicate(timeout=100)
    assert first.returncode == 2
    (line,) = [x for x in errors.splitlines() if x.startswith("main.py: ")]
    assert f"was taken over by process {os.getpid()} on" in line
    lock.release()


def test_runs_killed_at_random_moments_in_a_bucket_end_as_on_a_disk(
    storage, root, remote_fields, local
):
    begun = time.perf_counter()
    finish(start(root, remote_fields, "gs://bucket/timed"))
    duration = time.perf_counter() - begun
    hits, number = 0, 0
    while hits < KILLS:
        run = f"killed_{number}"
        while True:
            # A start after a kill waits for the lock first.
            waits = locks.PATIENCE * (f"{run}/lock.json" in storage.names(run))
            moment = waits + random.uniform(0, duration)
            in_a_save = hits in (0, KILLS // 2)
            before = _unfinished(storage, run)
            began = time.perf_counter()
            process = start(root, remote_fields, f"gs://bucket/{run}")
            while process.poll() is None and hits < KILLS:
                late = time.perf_counter() - began > moment
                if _unfinished(storage, run) - before if in_a_save else late:
                    process.kill()
                    hits += 1
                    seconds = time.perf_counter() - began
                    print(f"kill {hits} of {run} after {seconds:.1f} s, {in_a_save=}")
                    break
                time.sleep(0.005)
            _, errors = process.communicate(timeout=500)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors
        assert_same(f"gs://bucket/{run}", local)
        number += 1


def _unfinished(storage, run):
    """Returns the names of the files of checkpoints that are not committed."""
    found = storage.names(f"{run}/checkpoints/")
    committed = {name.rpartition("/")[0] for name in found if name.endswith(COMMITTED)}
    files = [name for name in found if name.split("/")[2].isdigit() and name[-1] != "/"]
    return {name for name in files if "/".join(name.split("/")[:3]) not in committed}
