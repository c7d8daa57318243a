"""Runs whose folder, data and vocabulary are in a bucket, which a server imitates."""

import json
import os
import random
import signal
import time

import pytest

from align_jax import locks
from align_jax.sweep.config import SweepRun
from align_jax.sweep.status import read_status
from tests.buckets.remote_runs import (
    COMMITTED,
    IMPATIENT,
    PATIENCE,
    assert_same,
    finish,
    refused,
    start,
    wait_for_checkpoint,
)
from tests.run_tiny import STEPS

pytestmark = pytest.mark.buckets

KILLS = int(os.environ.get("BUCKET_KILLS", "10"))
SEED = int(os.environ.get("BUCKET_SEED", "0"))


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
    line = refused(second)
    assert f"in use by process {first.pid} on {lock['host']} since" in line
    assert first.poll() is None
    # Another process takes the folder over: the first ends before it writes more.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "PATIENCE", 0.0)
        lock = locks._Heartbeat(workdir)
        lock._write()
        line = refused(first)
    assert f"was taken over by process {os.getpid()} on" in line
    lock.release()


def test_runs_killed_at_random_moments_in_a_bucket_end_as_on_a_disk(
    storage, root, remote_fields, local
):
    chosen, program = random.Random(SEED), ("-c", IMPATIENT)
    begun = time.perf_counter()
    finish(start(root, remote_fields, "gs://bucket/timed", program))
    duration = time.perf_counter() - begun
    hits, number = 0, 0
    while hits < KILLS:
        run = f"killed_{number}"
        while True:
            # A start after a kill waits for the lock first.
            waits = PATIENCE * (f"{run}/lock.json" in storage.names(run))
            moment = waits + chosen.uniform(0, duration)
            in_a_save = hits % 5 == 0
            before = _unfinished(storage, run)
            began = time.perf_counter()
            process = start(root, remote_fields, f"gs://bucket/{run}", program)
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
