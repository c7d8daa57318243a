"""Tests of runs that are killed or stopped, each run in a separate process."""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from align_jax.errors import STOPPED
from align_jax.runs.hangs import WRITING
from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import SLOWEST
from tests.mounted import run_mounting
from tests.run_tiny import STEPS, rows

TIMES = 20
# The second phase begins after the first checkpoint.
PHASES = (
    "--config.phases="
    "((0, {'image_size': 12, 'max_tokens': 4}), (5, {'virtual_cores': 16}))"
)


def environment(data, devices=1):
    count = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
    cache = str(data / "compiled")
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "XLA_FLAGS": count}


def start(data, workdir, *flags, devices=1, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.run_tiny", str(data), str(workdir), *flags],
        cwd=pathlib.Path(__file__).parents[1],
        env=environment(data, devices) | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_step(workdir):
    """Returns the last step whose metrics are written; 0 before them."""
    return max((row["step"] for row in rows(workdir)), default=0)


def steps_saved(workdir):
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return [int(name) for name in names if name.isdigit()]  # other names are unfinished


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = start(data, workdir)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert [row["step"] for row in rows(workdir) if "train/loss" in row] == [
        *range(1, STEPS + 1)
    ]
    return workdir


@pytest.fixture(scope="module")
def whole(whole_run):
    """The metric lines of an uninterrupted run."""
    return rows(whole_run)


@pytest.mark.faults
def test_a_run_told_to_stop_saves_and_goes_on_to_the_same_metrics(
    data, whole, tmp_path
):
    workdir = tmp_path / "run"
    process = start(data, workdir)
    while process.poll() is None and not steps_saved(workdir):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED, errors
    last = max(row["step"] for row in rows(workdir))
    assert f"saved after step {last}; the same command continues" in errors
    assert max(steps_saved(workdir)) == last < STEPS
    again = start(data, workdir)
    _, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert rows(workdir) == whole


@pytest.mark.faults
def test_a_run_told_to_stop_while_it_compiles_its_next_phase_saves_and_goes_on(
    data, tmp_path
):
    workdir, fresh = tmp_path / "run", str(tmp_path / "compiled")
    process = start(data, workdir, PHASES, JAX_COMPILATION_CACHE_DIR=fresh)
    while process.poll() is None and last_step(workdir) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED, errors
    assert "saved after step 5; the same command continues" in errors
    assert steps_saved(workdir) == [5]
    print(f"left {time.monotonic() - told:.1f} s after the signal")
    for run in (workdir, tmp_path / "whole"):
        process = start(data, run, PHASES)
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
    assert rows(workdir) == rows(tmp_path / "whole")


@pytest.mark.faults
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_runs_hit_at_random_moments_go_on_to_the_same_metrics(
    data, whole, tmp_path, kind
):
    begun = time.perf_counter()
    assert start(data, tmp_path / "timed").wait() == 0
    duration = time.perf_counter() - begun
    hits, finished, workdir = 0, 0, tmp_path / "run_0"
    while hits < TIMES or workdir.exists():
        process = start(data, workdir)
        # After the last hit, the run continues to its end.
        moment = random.uniform(0, duration) if hits < TIMES else 500
        try:
            _, errors = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            hits += 1
            process.send_signal(kind)
            _, errors = process.communicate(timeout=60)
            print(f"hit {hits} after {moment:.1f} s: {errors.strip()[-80:]}")
        if process.returncode == 0:
            assert rows(workdir) == whole
            finished += 1
            workdir = tmp_path / f"run_{finished}"
        else:
            assert -process.returncode == kind or process.returncode == STOPPED
    assert finished


def run_on_a_disk(data, mount, script):
    """Runs a shell script that may mount a disk at `mount`; `$TRAIN` trains there."""
    train = f"{sys.executable} -m tests.run_tiny {data} {mount}/run"
    return run_mounting(script, environment(data) | {"TRAIN": train})


@pytest.mark.faults
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    data, whole_run, whole, tmp_path
):
    folder = next((whole_run / "checkpoints").iterdir())
    # The disk holds the first checkpoint while it is written, but not a third one.
    size = sum(512 * path.stat().st_blocks for path in folder.rglob("*"))
    mount = tmp_path / "disk"
    mount.mkdir()
    done = run_on_a_disk(
        data,
        mount,
        f"""
        mount -t tmpfs -o size={int(2.5 * size)} none {mount}
        code=0; $TRAIN || code=$?
        ls {mount}/run/checkpoints
        mount -o remount,size=1g {mount}
        $TRAIN
        cp -r {mount}/run {tmp_path}/saved
        exit $code
        """,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if "cannot be written" in x]
    assert line.startswith("main.py: ")
    assert "No space left on device" in line
    assert "the same command continues" in line
    assert "Traceback" not in done.stderr
    assert "Continuing" in done.stdout
    assert rows(tmp_path / "saved") == whole


@pytest.mark.faults
def test_a_disk_that_cannot_be_written_stops_the_run_at_once(data, whole, tmp_path):
    mount = tmp_path / "disk"
    workdir = mount / "run"
    process = start(data, workdir)
    while process.poll() is None and not steps_saved(workdir):
        time.sleep(0.01)
    process.kill()
    process.wait()
    steps = steps_saved(workdir)
    script = f"mount --bind {mount} {mount}; mount -o remount,bind,ro {mount}; $TRAIN"
    done = run_on_a_disk(data, mount, script)
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if "cannot be written" in x]
    assert line.startswith("main.py: ")
    assert "Read-only file system" in line
    assert steps_saved(workdir) == steps
    assert start(data, workdir).wait(timeout=500) == 0
    assert rows(workdir) == whole


def start_several(count, data, workdir, *flags, **variables):
    """Starts processes that train together on eight devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    shared |= variables | {"devices": 8 // count}
    flags = ("--distributed", *flags)
    return [
        start(data, workdir, *flags, JAX_PROCESS_ID=str(index), **shared)
        for index in range(count)
    ]


@pytest.mark.faults
@pytest.mark.parametrize("flags", [(), (PHASES,)])
def test_two_processes_save_together_when_one_is_told_to_stop(data, flags, tmp_path):
    workdir = tmp_path / "run"
    processes = start_several(2, data, workdir, *flags)
    while all(p.poll() is None for p in processes) and not steps_saved(workdir):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [STOPPED] * 2, errors
    last = max(row["step"] for row in rows(workdir))
    assert all(f"saved after step {last}; the same" in error for error in errors)
    assert max(steps_saved(workdir)) == last < STEPS
    for folder in (workdir, tmp_path / "whole"):
        for process in start_several(2, data, folder, *flags):
            _, error = process.communicate(timeout=500)
            assert process.returncode == 0, error
        assert (folder / "results.json").exists()
        assert (folder / "report.html").exists()
    assert rows(workdir) == rows(tmp_path / "whole")
    steps = [row["step"] for row in rows(workdir) if "train/loss" in row]
    assert steps == [*range(1, STEPS + 1)]


def wait_for(seen, processes, seconds=200):
    """Waits until a function returns a true value, while all processes run."""
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.faults
def test_a_process_that_stops_is_named_and_each_process_traces_on_demand(
    data, tmp_path
):
    workdir, changes = tmp_path / "run", {"hang_seconds": 3, "log_every_steps": 5}
    changes |= dict.fromkeys(["total_steps", "evaluate_every_steps"], 100_000)
    changes["checkpoint.every_steps"] = 100_000
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    processes = start_several(2, data, workdir, *flags)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), processes)
    wait_for(lambda: len(read_metrics(str(workdir))) > 20, processes)

    (workdir / "profile_request_0").touch()
    processes[1].send_signal(signal.SIGUSR1)
    for folder in (workdir / "profile", workdir / "profile" / "process_1"):
        trace = "plugins/profile/*/*.xplane.pb"
        wait_for(lambda: [*folder.glob(trace)], processes)  # noqa: B023
    assert not (workdir / "profile_request_0").exists()

    processes[1].send_signal(signal.SIGSTOP)
    hangs = workdir / "hangs"
    (path,) = wait_for(lambda: hangs.exists() and [*hangs.iterdir()], processes, 25)
    time.sleep(WRITING + 1)
    processes[1].send_signal(signal.SIGCONT)
    stopped = read_metrics(str(workdir))[-1]["step"]
    wait_for(lambda: read_metrics(str(workdir))[-1]["step"] > stopped, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [STOPPED] * 2, errors
    assert path.name.startswith("process_0_at_step_")
    assert "train.py" in path.read_text()
    assert "process 0 is computing" in errors[0]
    named = r"after step (\d+), these processes lag behind: 1 \(of 2\)"
    assert (found := re.findall(named, errors[0])), errors[0]
    assert stopped <= int(found[0])
    assert "lag behind" not in errors[1]
    last = read_metrics(str(workdir))[-1]
    assert 0 <= last["train/lost_away_seconds"] == last["train/lost_repeated_seconds"]
    rows = [row for row in read_metrics(str(workdir)) if f"train/{SLOWEST[0]}" in row]
    assert {row[f"train/{SLOWEST[1]}"] for row in rows} <= {0, 1}
    slowest = [row[f"train/{SLOWEST[0]}"] - row["train/input_wait"] for row in rows]
    assert min(slowest) > -1e-6


@pytest.mark.faults
def test_a_sweep_that_is_killed_twice_goes_on_to_the_same_results(
    data, whole_run, tmp_path
):
    """The sweep has two runs of the whole run's config, with seeds 0 and 1."""
    sweep, out = tmp_path / "sweep.py", tmp_path / "out"
    sweep.write_text(f"""
import json, runpy
from configs.sweeps.choose_run import choose_run

def get_sweep():
    base = runpy.run_path({str(data / "config.py")!r})["get_config"]()
    return {{f"seed_{{i}}": (base, {{"seed": i}}) for i in (base.seed, base.seed + 1)}}

def get_config(name):
    return choose_run(get_sweep(), name)
""")

    flags = [f"--sweep={sweep}", f"--workdir={out}"]

    def launch():
        return subprocess.Popen(
            [sys.executable, "-m", "align_jax.sweep", *flags],
            cwd=pathlib.Path(__file__).parents[1],
            env=environment(data),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    for killed in range(2):
        process, deadline = launch(), time.time() + 300
        while not any(
            steps_saved(run) for run in sorted(out.glob("seed_*-*"))[killed:]
        ):
            assert process.poll() is None
            assert time.time() < deadline
            time.sleep(0.05)
        process.kill()  # the sweep only: its current run continues
        process.communicate()
        subprocess.run(["pkill", "-9", "-f", f"workdir={out}/"], check=True)
    process = launch()
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    first, second = sorted(p for p in out.glob("seed_*") if p.is_dir())
    assert rows(first) == rows(whole_run) != rows(second)
    assert (second / "results.json").exists()
