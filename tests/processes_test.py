import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from align_jax.parameters import unflatten
from tests import steps
from tests.reference import contrastive_reference, embeddings
from tests.two_processes import CASES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(root):
    """What two processes of four devices each computed: arrays and metrics."""
    steps.read(root / "run")  # writes the data that both read
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=4")
    command = [sys.executable, "-m", "tests.two_processes", str(root), address]
    workers = [
        subprocess.Popen(
            [*command, str(index)],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=500)
        assert worker.returncode == 0, output
    arrays = np.load(root / "arrays.npz")
    return arrays, json.loads((root / "metrics.json").read_text())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_loss_and_gradients_equal_the_equation(results, case):
    arrays, _ = results
    n, smoothing, temperature = CASES[case]
    i2t, t2i, gradients = contrastive_reference(*embeddings(n), temperature, smoothing)
    np.testing.assert_allclose(arrays[f"loss/{case}"], i2t + t2i, rtol=1e-5)
    for i, expected in enumerate(gradients):
        found, scale = arrays[f"gradient/{case}/{i}"], np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_steps_agree_with_one_device(results, root, mesh_of):
    arrays, rows = results
    variables = unflatten(
        {
            tuple(name.split("/")[1:]): arrays[name]
            for name in arrays.files
            if name.startswith("variables/")
        }
    )
    expected = steps.run(steps.read(root / "run"), mesh_of(1))
    steps.assert_same(rows, variables, expected)
