"""The time that a large state's checkpoint takes: plain, with checksums, and local.

    python -m benchmarks.checkpoint --folder=/tmp/checkpoints --rounds=3

The state is EfficientNet-B7 and BERT-Base with LAMB's moments, filled with random
numbers. Saves and restores with and without checksums, and those of local checkpoints,
take turns. A save is timed until it returns, when training goes on, and until all is
written. The folder needs room for two states, the memory for four.
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
from align_jax.runs.provenance import PROVENANCE_FILE
from align_jax.training import integrity
from align_jax.training.checkpoint import CheckpointConfig, Checkpoints
from align_jax.training.local_checkpoint import LocalCheckpoints
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.train_state import TrainState, abstract_state
from benchmarks.comparisons import Comparison, add_record_flag, record
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


def measure(state: TrainState, folder: str, kind: str) -> list[float]:
    """Saves and restores a state; returns the seconds of each of `MEASURES`."""
    config = CheckpointConfig(local_folder=folder)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    places.make_folder(folder)
    places.write_json(os.path.join(folder, PROVENANCE_FILE), [{"started": "now"}])
    kept = Checkpoints(folder, config, {})
    local = LocalCheckpoints(folder, config, {})
    kept.open()
    with contextlib.nullcontext() if kind != "plain" else UNCHECKED:
        if kind == "local":
            returned = clocked(lambda: local.save(1, state))
            written = returned + clocked(local.wait)
            restored = clocked(lambda: local.restore(abstract, 0))
        else:
            returned = clocked(lambda: kept.save(1, state))
            written = returned + clocked(kept.wait)
            restored = clocked(lambda: kept.restore(1, abstract))
    kept.close()
    local.close()
    places.remove(folder)
    return [returned, written, restored]


MEASURES = ("save until it returns", "save until all is written", "restore")
KINDS = ("plain", "checked", "local")
UNCHECKED = mock.patch.multiple(
    integrity,
    measure=lambda tree: ({}, []),
    check=lambda tree, record, path: None,
    differing_forms=lambda record, tree: [],
)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    add_record_flag(parser)
    flags = parser.parse_args()
    state = make_state()
    leaves = jax.tree.leaves(state)
    size = sum(x.nbytes for x in leaves)
    print(f"{len(leaves)} arrays, {size / 1e9:.2f} GB, {os.cpu_count()} CPU cores")
    times: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for number in range(flags.rounds):
        for kind in KINDS if number % 2 else reversed(KINDS):
            folder = os.path.join(flags.folder, f"round_{number}_{kind}")
            times[kind].append(measure(state, folder, kind))
    medians = {k: np.median(rounds, axis=0).tolist() for k, rounds in times.items()}
    print(f"{'':<27}" + "".join(f"{kind:>9}" for kind in KINDS) + "   ratios to plain")
    for name, *row in zip(MEASURES, *medians.values(), strict=True):
        ratios = ", ".join(f"{seconds / row[0]:.2f}" for seconds in row[1:])
        print(f"{name:<27}" + "".join(f"{x:>8.2f}s" for x in row) + f"   {ratios}")
    sums = statistics.median(
        clocked(lambda: integrity.measure(state)) for _ in range(flags.rounds)
    )
    print(f"checksums alone {sums:.2f} s, {size / sums / 1e9:.1f} GB/s")
    plain = [*zip(*times["plain"], strict=True)]
    record(
        flags.record,
        [
            Comparison(f"{kind} checkpoint, {name}", "plain", "s", ours, others)
            for kind in ("checked", "local")
            for name, ours, others in zip(
                MEASURES, zip(*times[kind], strict=True), plain, strict=True
            )
        ],
    )


if __name__ == "__main__":
    main()
