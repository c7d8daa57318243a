"""Tests a run on several processes, devices and parts; needs `make data`."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from align_jax.config import read_config
from align_jax.devices.mesh import make_mesh
from align_jax.places import read_json
from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import STARTED
from align_jax.training.checkpoint import Checkpoints
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.train_state import abstract_state

pytestmark = pytest.mark.pods
ROOT = pathlib.Path(__file__).parents[1]
# A checkpoint after five steps, then six more, at rates as in the quickstart's first
# steps. BatchNorm's groups of 16 pictures fit into every part.
FLAGS = {
    "total_steps": 11,
    "optimizer.warmup_steps": 10,
    "optimizer.cooldown_steps": 0,
    "optimizer.learning_rate": 1e-3,
    "batch_norm_cores": 1,
    "checkpoint.every_steps": 5,
    "checkpoint.keep": 9,
    "evaluate_every_steps": 100,
}

# The next block's BatchNorm removes these shifts (tested in efficientnet_test). Their
# gradients are rounding errors, which Adam's quotient turns into full steps.
WITHOUT_GRADIENT = re.compile("image_tower/block_0[0-6]/project_norm/bias$")

# Moments of an attention's key biases, which have no gradient either, are smaller than
# this. The largest of any other moment is 1000 times as large or more.
ROUNDING = {"mu": 1e-8, "nu": 1e-16}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function that trains the quickstart in some processes; returns the workdir."""
    cache = tmp_path_factory.mktemp("compiled")

    def run(workdir, processes, devices, **changes):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        fields = (FLAGS | changes).items()
        command = [
            *(sys.executable, "main.py", "--config=configs/quickstart.py"),
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in fields),
        ]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        several = processes > 1
        if several:
            command.append("--distributed")
            environment["JAX_COORDINATOR_ADDRESS"] = address
            environment["JAX_NUM_PROCESSES"] = str(processes)
        started = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment | ({"JAX_PROCESS_ID": str(index)} if several else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(processes)
        ]
        for process in started:
            _, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors
        return workdir

    return run


@pytest.fixture(scope="module")
def eight_devices(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "1x8", 1, 8)


def losses(workdir):
    rows = read_metrics(str(workdir))
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def saved_state(workdir, step):
    """Reads a run's state from its checkpoint."""
    config = read_config(PretrainConfig, read_json(str(workdir / "config.json")))
    plan = config.make_plan(make_mesh(1, jax.devices()[:1]))
    identity = config.identity(config.make_tokenizer())
    checkpoints = Checkpoints(str(workdir), config.checkpoint, identity)
    state = checkpoints.restore(step, abstract_state(plan))
    checkpoints.close()
    return state


@pytest.mark.parametrize(
    ("processes", "devices", "changes"),
    [
        (2, 4, {}),
        (2, 4, {"fsdp": 8}),
        (1, 8, {"fsdp": 2}),
        (1, 1, {"microbatches": 8}),
    ],
)
def test_five_steps_end_in_the_same_parameters(
    train, eight_devices, tmp_path, processes, devices, changes
):
    other = train(tmp_path / "run", processes, devices, **changes)
    expected = losses(eight_devices)
    for step in range(1, 6):
        assert losses(other)[step] == pytest.approx(expected[step], rel=1e-5)
    mine, theirs = saved_state(other, 5), saved_state(eight_devices, 5)
    found = with_gradient(mine.own_variables)
    for name, wanted in with_gradient(theirs.own_variables).items():
        np.testing.assert_allclose(
            found[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name
        )
    # Some optimizers divide by the gradients' size. A wrong scale of the gradients then
    # changes the moments but not the parameters.
    for moment in ("mu", "nu"):
        found = with_gradient(moments(mine.optimizer, moment))
        for name, wanted in with_gradient(moments(theirs.optimizer, moment)).items():
            np.testing.assert_allclose(
                found[name],
                wanted,
                rtol=0,
                atol=1e-4 * np.abs(wanted).max() + ROUNDING[moment],
                err_msg=f"{moment} of {name}",
            )


def moments(state, name):
    """The trees called `name` in an optimizer's state; Muon has two called "mu"."""
    trees = optax.tree.get_all_with_path(state, name)
    assert trees
    return [tree for _, tree in trees]


def with_gradient(tree):
    """{path: leaf} without those of `WITHOUT_GRADIENT`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
    return {n: leaf for n, leaf in named.items() if not WITHOUT_GRADIENT.search(n)}


@pytest.mark.parametrize(
    ("processes", "devices", "changes"), [(2, 4, {}), (1, 4, {"microbatches": 2})]
)
def test_a_run_goes_on_elsewhere_with_the_same_losses(
    train, eight_devices, tmp_path, processes, devices, changes
):
    workdir = tmp_path / "run"
    shutil.copytree(eight_devices, workdir)
    (workdir / "results.json").unlink()
    for step in (10, 11):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    train(workdir, processes, devices, **changes)
    expected = losses(eight_devices)
    starts = [row["step"] for row in read_metrics(str(workdir)) if STARTED in row]
    assert starts == [0, 5]
    assert sorted(losses(workdir)) == [*range(1, 12)]
    for step in range(6, 11):
        assert losses(workdir)[step] == pytest.approx(expected[step], rel=1e-5)
