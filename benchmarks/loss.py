"""Time and memory of the contrastive loss, in tiles against all N x N logits at once.

    python -m benchmarks.loss --sizes 4096 8192 16384 --json loss.json
    python -m benchmarks.loss --size 65536            # on a GPU; beside PyTorch's
    python -m benchmarks.loss --size 65536 --choices  # tile sizes of its kernels

It measures the forward pass and all gradients on one device, with label smoothing 0.1.
With --sizes the two implementations take turns, so that a busy machine slows both.
Milliseconds are medians; memory is the bytes that the compiled program allocates beside
inputs and outputs. With --size, memory includes inputs and outputs, as PyTorch's does.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from align_jax.devices.mesh import batch_split, make_mesh, replicated
from align_jax.losses.contrastive import contrastive_loss
from benchmarks import loss_choices
from benchmarks.comparisons import Comparison, add_record_flag, record

SMOOTHING = 0.1
TEMPERATURE = 1 / 64
TORCH_SECONDS = 60  # time limit of the peer


def dense_loss(ximg: jax.Array, ytxt: jax.Array, temperature: jax.Array) -> jax.Array:
    """Computes the same loss in plain operations, which hold all logits."""
    logits = ximg @ ytxt.T / temperature  # (N, N)
    positive = logits.diagonal()
    loss = 0.0
    for axis in (0, 1):
        lse = jax.nn.logsumexp(logits, axis)
        mean = logits.mean(axis)
        loss += (lse - (1.0 - SMOOTHING) * positive - SMOOTHING * mean).mean()
    return loss


def tiled_loss(flags: argparse.Namespace, **options) -> Callable:
    """Returns our loss on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    options = {"tile": flags.tile, "precision": flags.precision} | options
    return make_loss(mesh, **options)


def make_loss(mesh: jax.sharding.Mesh, **options) -> Callable:
    """Returns our loss as a function of images, texts and temperature.

    Args:
      mesh: mesh of the devices.
      **options: arguments of `contrastive_loss`.
    """

    def loss(ximg: jax.Array, ytxt: jax.Array, temperature: jax.Array) -> jax.Array:
        return contrastive_loss(
            ximg, ytxt, temperature, mesh, label_smoothing=SMOOTHING, **options
        )[0]

    return loss


def compile_gradient(loss: Callable, n: int, width: int) -> jax.stages.Compiled:
    """Compiles the loss's value and all gradients."""
    rows = jax.ShapeDtypeStruct((n, width), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    return gradient.lower(rows, rows, scalar).compile()


def lower_gradient(
    exchange: str, mesh: jax.sharding.Mesh, flags: argparse.Namespace
) -> jax.stages.Lowered:
    """Lowers our loss's value and all gradients for a mesh.

    Args:
      exchange: form of the exchange, one of `EXCHANGES`.
      mesh: mesh of the devices, which need not exist.
      flags: size N, width D, precision and kernels.
    """
    loss = make_loss(
        mesh, precision=flags.precision, kernels=flags.kernels, exchange=exchange
    )
    rows, whole = batch_split(mesh), replicated(mesh)
    gradient = jax.jit(
        jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(whole, (rows, rows, whole))
    )
    size = (flags.size, flags.width)
    embeddings = jax.ShapeDtypeStruct(size, jnp.float32, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    return gradient.lower(embeddings, embeddings, scalar)


def make_arguments(n: int, width: int) -> tuple[jax.Array, ...]:
    """Returns random unit images and texts, and the temperature."""
    embeddings = jax.random.normal(jax.random.key(0), (2, n, width))
    embeddings /= jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    return (*embeddings, jnp.float32(TEMPERATURE))


def median_milliseconds(program: Callable, arguments: tuple, repeats: int) -> float:
    """Returns the median time of the calls after the first."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])


def take_turns(
    programs: Mapping[str, Callable], arguments: tuple, repeats: int
) -> dict[str, list[float]]:
    """Returns the milliseconds of each program's calls, without the first one."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats + 1):  # the first warms up
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: times[1:] for name, times in taken.items()}


def measure(n: int, flags: argparse.Namespace) -> list[dict]:
    """Returns one row per implementation."""
    with jax.default_matmul_precision(flags.precision):
        compiled = {
            name: compile_gradient(loss, n, flags.width)
            for name, loss in (("tiled", tiled_loss(flags)), ("dense", dense_loss))
        }
    taken = take_turns(compiled, make_arguments(n, flags.width), flags.repeats)
    return [
        {
            "implementation": name,
            "n": n,
            "milliseconds": statistics.median(taken[name]),
            "all_milliseconds": taken[name],
            "peak_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        for name, program in compiled.items()
    ]


def compare_sizes(flags: argparse.Namespace) -> list[dict]:
    """Prints the table of tiles against all logits."""
    print(f"D = {flags.width}, {flags.precision}, {jax.devices()[0].device_kind}")
    print(
        f"{'N':>6} {'tiled ms':>9} {'dense ms':>9} {'dense / tiled':>13}"
        f" {'tiled MiB':>10} {'dense MiB':>10} {'dense / tiled':>13}"
    )
    rows = []
    for n in flags.sizes:
        tiled, dense = found = measure(n, flags)
        rows += found
        times = [row["milliseconds"] for row in (tiled, dense)]
        memory = [row["peak_bytes"] / 2**20 for row in (tiled, dense)]
        print(
            f"{n:>6} {times[0]:>9.0f} {times[1]:>9.0f} {times[1] / times[0]:>13.2f}"
            f" {memory[0]:>10.0f} {memory[1]:>10.0f} {memory[1] / memory[0]:>13.1f}",
            flush=True,
        )
        each = [row["all_milliseconds"] for row in (tiled, dense)]
        bytes_ = [[row["peak_bytes"]] for row in (tiled, dense)]
        record(
            flags.record,
            [
                Comparison(f"loss, N = {n}", "all logits", "ms", *each),
                Comparison(f"memory of the loss, N = {n}", "all logits", "B", *bytes_),
            ],
        )
    return rows


def measure_torch(flags: argparse.Namespace) -> Iterator[dict]:
    """Yields PyTorch's rows; its process ends before JAX takes the GPU's memory."""
    if not importlib.util.find_spec("torch"):
        raise ModuleNotFoundError("PyTorch is not installed")
    command = [sys.executable, "-m", "benchmarks.loss_torch", f"--size={flags.size}"]
    command += [f"--width={flags.width}", f"--repeats={flags.repeats}"]
    command += [f"--smoothing={SMOOTHING}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(TORCH_SECONDS, process.kill)
        late.start()
        yield from map(json.loads, process.stdout)
        late.cancel()
    if process.returncode:
        raise RuntimeError(f"PyTorch's process ended with {process.returncode}")


def measure_ours(flags: argparse.Namespace, kernels: str) -> Iterator[dict]:
    """Yields our row, by kernels or by the plain walk."""
    start = time.perf_counter()
    loss = tiled_loss(flags, kernels=kernels)
    program = compile_gradient(loss, flags.size, flags.width)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    parts = ("temp", "argument", "output")
    arguments = make_arguments(flags.size, flags.width)
    yield {
        "implementation": "ours" if kernels == "auto" else f"ours, {kernels}",
        "milliseconds": median_milliseconds(program, arguments, flags.repeats),
        "peak_bytes": sum(getattr(memory, f"{p}_size_in_bytes") for p in parts),
        "compile_seconds": seconds,
    }


def measure_error(flags: argparse.Namespace) -> Iterator[dict]:
    """Yields our gradients' relative errors against plain float32, on fewer pairs."""
    n = min(flags.size, 8192)
    arguments = make_arguments(n, flags.width)
    mine, exact = (
        compile_gradient(tiled_loss(flags, **options), n, flags.width)(*arguments)
        for options in ({}, {"kernels": "plain", "precision": "highest"})
    )
    errors = {"loss": float(abs(mine[0] / exact[0] - 1))}
    names = ("images", "texts", "temperature")
    for name, a, b in zip(names, mine[1], exact[1], strict=True):
        errors[name] = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    yield {"implementation": f"ours, N = {n}", "relative_errors": errors}


def compare_at_size(flags: argparse.Namespace) -> list[dict]:
    """Prints a line for each implementation, and a line for each that fails."""
    rows: list[dict] = []

    def report(row: dict) -> None:
        rows.append({"n": flags.size, **row})
        print(describe(row, rows), flush=True)

    for name, part in {
        "torch": measure_torch,
        "ours": partial(measure_ours, kernels="auto"),
        "ours, error": measure_error,
        "ours, plain": partial(measure_ours, kernels="plain"),
    }.items():
        try:
            for row in part(flags):
                report(row)
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            report({"implementation": name, "error": line})
    return rows


def describe(row: dict, rows: list[dict]) -> str:
    """Returns a row as a line, with ratios to compiled PyTorch if `rows` has it."""
    line = f"{row['implementation']:<16}"
    if "error" in row:
        return f"{line} {row['error']}"
    if "relative_errors" in row:
        errors = (f"{k} {v:.1e}" for k, v in row["relative_errors"].items())
        return f"{line} relative errors: {', '.join(errors)}"
    line += f" {row['milliseconds']:8.2f} ms {row['peak_bytes'] / 2**30:6.2f} GiB"
    for base in rows:
        if base["implementation"] == "torch compiled" and "milliseconds" in base:
            for key in ("milliseconds", "peak_bytes"):
                line += f", {row[key] / base[key]:.3f} of torch's {key}"
    if "compile_seconds" in row:
        line += f", compiled in {row['compile_seconds']:.0f} s"
    return line


def main() -> None:
    """Prints the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--size", type=int, help="N, beside PyTorch")
    parser.add_argument("--choices", action="store_true", help="cuts of the kernels")
    parser.add_argument("--width", type=int, default=640, help="D, 640 for B7")
    parser.add_argument("--tile", type=int)
    parser.add_argument("--precision", help='"default" with --size, else "highest"')
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="file for the rows")
    add_record_flag(parser)
    flags = parser.parse_args()
    if flags.choices and not flags.size:
        parser.error("--choices wants --size")
    flags.precision = flags.precision or ("default" if flags.size else "highest")
    if flags.choices:
        arguments = make_arguments(flags.size, flags.width)
        timer = partial(median_milliseconds, repeats=flags.repeats)
        rows = loss_choices.sweep(flags.size, arguments, SMOOTHING, timer)
    elif flags.size:
        rows = compare_at_size(flags)
    else:
        rows = compare_sizes(flags)
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
