"""Compiles our loss for a GPU on a machine without one, and times it on a GPU.

    python -m benchmarks.loss_ahead compile ring.loss --size=65536 --exchange=ring
    python -m benchmarks.loss_ahead run ring.loss

Both commands need what `benchmarks.ahead` needs. The program is the contrastive loss
with label smoothing 0.1 and all its gradients. Its operations are counted in the loss
that holds all logits: three products of N x N x D.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from align_jax.devices.compiling import compile_fast
from align_jax.devices.mesh import batch_split, make_mesh, replicated
from align_jax.losses.tiles import EXCHANGES, GATHER
from align_jax.training.flops import count_flops
from benchmarks import ahead
from benchmarks.loss import dense_loss, lower_gradient, make_arguments
from benchmarks.turns import wait_for_turn

SHORT = 1e3  # milliseconds; of shorter calls, the first is not counted: it warms up


def read_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or other arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("compile", "run"))
    parser.add_argument("path")
    parser.add_argument("--size", type=int, default=65536, help="N")
    parser.add_argument("--width", type=int, default=640, help="D, 640 for B7")
    parser.add_argument("--exchange", choices=EXCHANGES, default=GATHER)
    parser.add_argument("--precision", default="default")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--in_turn", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def compile_for(mesh: jax.sharding.Mesh, flags: argparse.Namespace) -> None:
    """Compiles for a device and writes the file that `run` reads."""
    start = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = compile_fast(lower_gradient(flags.exchange, mesh, flags), mesh)
    memory = program.memory_analysis()
    parts = ("temp", "argument", "output")
    facts = {
        "flags": vars(flags),
        "compile_seconds": time.perf_counter() - start,
        "flops": count_work(flags.size, flags.width),
        "peak_bytes": sum(getattr(memory, f"{p}_size_in_bytes") for p in parts),
    }
    ahead.write_programs(flags.path, {"gradient": program}, facts)
    print(
        f"compiled in {facts['compile_seconds']:.0f} s;"
        f" {facts['peak_bytes'] / 2**30:.1f} GiB"
    )


def count_work(size: int, width: int) -> float:
    """Counts the operations of the loss and its gradients, N x D embeddings each."""
    embeddings = jax.ShapeDtypeStruct((size, width), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.value_and_grad(dense_loss, (0, 1, 2))
    return count_flops(gradient, embeddings, embeddings, scalar)


def run(path: str, in_turn: bool) -> None:
    """Loads the program that `compile_for` wrote and prints its times as JSON."""
    saved = ahead.read_programs(path)
    flags, mesh = argparse.Namespace(**saved["flags"]), make_mesh()
    tree = (0.0, 0.0, 0.0)  # images, texts, temperature
    program = ahead.load_program(saved["gradient"], tree, (0.0, tree))
    if in_turn:
        wait_for_turn()
    rows, whole = batch_split(mesh), replicated(mesh)
    arguments = jax.device_put(
        make_arguments(flags.size, flags.width), (rows, rows, whole)
    )
    milliseconds = []
    for _ in range(flags.repeats):
        start = time.perf_counter()
        loss, _ = jax.block_until_ready(program(*arguments))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    if milliseconds[0] < SHORT and len(milliseconds) > 1:
        del milliseconds[0]
    found = {
        "ms": statistics.median(milliseconds),
        "all_milliseconds": milliseconds,
        "loss_is_finite": bool(jnp.isfinite(loss)),
    }
    names = ("compile_seconds", "flops", "peak_bytes")
    print(json.dumps(found | {name: saved[name] for name in names}), flush=True)


def main() -> None:
    """Compiles or runs."""
    flags = read_flags()
    if flags.action == "compile":
        compile_for(ahead.make_h100(), flags)
    else:
        run(flags.path, flags.in_turn)


if __name__ == "__main__":
    main()
