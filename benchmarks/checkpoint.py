"""The time that checksums add to a save and a restore of a large model's state.

    python -m benchmarks.checkpoint --folder=/tmp/checkpoints --rounds=3

The state is EfficientNet-B7 and BERT-Base with LAMB's moments, filled with random
numbers. Saves and restores with and without checksums take turns. A save is timed until
it returns, when training goes on, and until all is written. The folder needs room for
two states, the memory for four.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np

from align_jax import places
from align_jax.config import read_config
from align_jax.devices.mesh import make_mesh
from align_jax.training import integrity
from align_jax.training.checkpoint import CheckpointConfig, Checkpoints
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.train_state import TrainState, abstract_state
from configs import pretrain_align_b7_base


def make_state() -> TrainState:
    """Returns the state, with random numbers in place of trained ones."""
    fields = pretrain_align_b7_base.get_config().to_dict()
    config = read_config(PretrainConfig, fields)
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(
            random.standard_normal(x.shape, np.float32).astype(x.dtype), x.sharding
        ),
        abstract_state(config.make_plan(make_mesh())),
    )


def clocked(call: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(
    state: TrainState, folder: str, checked: bool, times: dict[str, list[float]]
) -> None:
    """Saves and restores a state once, and adds the seconds to `times`."""
    checkpoints = Checkpoints(folder, CheckpointConfig(), {})
    checkpoints.open()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    plain = mock.patch.multiple(integrity, **UNCHECKED)
    with contextlib.nullcontext() if checked else plain:
        returned = clocked(lambda: checkpoints.save(1, state))
        written = returned + clocked(checkpoints.wait)
        restored = clocked(lambda: checkpoints.restore(1, abstract))
    checkpoints.close()
    places.remove(folder)
    for name, seconds in zip(times, (returned, written, restored), strict=True):
        times[name].append(seconds)


UNCHECKED = {
    "measure": lambda tree: ({}, []),
    "check": lambda tree, record, path: None,
    "differing_forms": lambda record, tree: [],
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    state = make_state()
    leaves = jax.tree.leaves(state)
    size = sum(x.nbytes for x in leaves)
    print(f"{len(leaves)} arrays, {size / 1e9:.2f} GB, {os.cpu_count()} CPU cores")
    names = ("save until it returns", "save until all is written", "restore")
    kinds: dict[bool, dict[str, list[float]]] = {
        checked: {name: [] for name in names} for checked in (False, True)
    }
    for number in range(flags.rounds):
        for checked in (False, True) if number % 2 else (True, False):
            folder = os.path.join(flags.folder, f"round_{number}_{checked}")
            measure(state, folder, checked, kinds[checked])
    print(f"{'':<27}{'without':>9}{'with':>9}{'ratio':>7}")
    for name in names:
        plain, with_them = (statistics.median(kinds[c][name]) for c in (False, True))
        ratio = with_them / plain
        print(f"{name:<27}{plain:>8.2f}s{with_them:>8.2f}s{ratio:>7.2f}")
    sums = statistics.median(
        clocked(lambda: integrity.measure(state)) for _ in range(flags.rounds)
    )
    print(f"checksums alone {sums:.2f} s, {size / sums / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
