"""Runs a test's module in several processes that JAX joins."""

import os
import pathlib
import socket
import subprocess
import sys

DEVICES = 8  # in all processes together


def run_joined(module: str, root: pathlib.Path, processes: int) -> None:
    """Runs `python -m MODULE ROOT ADDRESS INDEX` for each INDEX at the same time.

    ADDRESS is for `jax.distributed.initialize`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    count = f"count={DEVICES // processes}"
    flags = os.environ["XLA_FLAGS"].replace(f"count={DEVICES}", count)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(root), address, str(index)],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=500)
        assert worker.returncode == 0, output
