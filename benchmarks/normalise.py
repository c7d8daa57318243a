"""Times the normalisations of an EfficientNet: our kernels' sums beside XLA's.

    python -m benchmarks.normalise --variant=b5 --batch=128 --image_size=289

It prints one line for each different normalisation and direction. A normalisation is
followed by a swish, by a swish and a gate, or by nothing. `floor` is the time that the
memory needs for the reads and writes of two walks over the wide arrays. `--choices`
times some workloads of the backward pass's sums instead.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp

from align_jax.devices.kernel_choice import INTERPRET, PLAIN, TRITON, Kernels
from align_jax.kernels.image_walks import kernel_sums
from align_jax.kernels.walk_tiles import WORKLOAD, Workload
from align_jax.models.batch_norm import Form, normalise
from align_jax.models.efficientnet import (
    STEM_CHANNELS,
    VARIANTS,
    EfficientNetConfig,
    expand_stages,
    round_channels,
)
from benchmarks.layer_timing import make_parser, milliseconds, print_head, result

FORMS = ("linear", "swish", "gated")
MOVES = {"forward": (3, 3, 4), "backward": (5, 5, 5)}  # moves of a wide array, by form
WORKLOADS = [
    WORKLOAD._replace(**other)
    for other in (
        {},
        {"warps": 4},
        {"abreast": 1},
        {"abreast": 3},
        {"programs": 1024},
        {"lanes": 512, "warps": 4},
        {"lanes": 2048, "warps": 16},
    )
]


class Normalisation(NamedTuple):
    """A normalisation of (batch, size, size, channels)."""

    size: int
    channels: int
    form: str
    reduced: int


def layers(config: EfficientNetConfig, image_size: int) -> Counter[Normalisation]:
    """Counts the different normalisations of a tower."""
    size, stem = -(-image_size // 2), round_channels(STEM_CHANNELS, config.width)
    found = Counter([Normalisation(size, stem, "swish", 0)])
    for stage in expand_stages(config):
        for block in stage:
            if block.expansion != 1:
                found[Normalisation(size, block.expanded, "swish", 0)] += 1
            size = -(-size // block.stride)
            found[Normalisation(size, block.expanded, "gated", block.reduced)] += 1
            found[Normalisation(size, block.channels_out, "linear", 0)] += 1
    return found


def draw(layer: Normalisation, batch: int) -> tuple:
    """Draws arguments of `normalise` and a cotangent."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    shape = (batch, layer.size, layer.size, layer.channels)
    x, cotangent = (jax.random.normal(next(keys), shape, jnp.bfloat16) for _ in "xc")

    def small(*shape):
        return jax.random.normal(next(keys), shape)

    excite, channels, reduced = None, layer.channels, layer.reduced
    if layer.form == "gated":
        excite = {
            "reduce": {"kernel": small(channels, reduced), "bias": small(reduced)},
            "expand": {"kernel": small(reduced, channels), "bias": small(channels)},
        }
    return x, small(channels), small(channels), excite, cotangent


def compile_pass(layer: Normalisation, direction: str, kind: str, flags) -> Callable:
    """Compiles a direction for one value of `Kernels.kind`."""
    form = Form(flags.group, layer.form != "linear", Kernels(kind))

    def run(x, scale, bias, excite, cotangent):
        call = lambda *a: normalise(*a, form)[0]  # noqa: E731
        if direction == "forward":
            return call(x, scale, bias, excite)
        return jax.vjp(call, x, scale, bias, excite)[1](cotangent)

    arguments = jax.eval_shape(lambda: draw(layer, flags.batch))
    return jax.jit(run, keep_unused=True).lower(*arguments).compile()


def compile_sums(layer: Normalisation, workload: Workload, flags) -> Callable:
    """Compiles the sums of a swish's backward pass with a workload."""

    def visit(arithmetic, x, cotangent, scale, bias):
        value = arithmetic.multiply_add(x, scale, bias)
        share = arithmetic.sigmoid(value)
        slope = arithmetic.multiply_add(value * share, 1.0 - share, share)
        inner = cotangent * slope
        return (inner,), (inner, x)

    def run(x, cotangent, small):
        return kernel_sums(
            visit,
            [x, cotangent],
            small,
            count=2,
            workload=workload,
            interpret=flags.interpret,
        )

    x = jax.ShapeDtypeStruct(
        (flags.batch, layer.size, layer.size, layer.channels), jnp.bfloat16
    )
    small = jax.ShapeDtypeStruct((flags.batch, 2, layer.channels), jnp.float32)
    return jax.jit(run).lower(x, x, small).compile()


def difference(found, wanted) -> float:
    """Returns the largest relative distance between two trees of arrays."""

    def of(a, b):
        a, b = (v.astype(jnp.float32) for v in (a, b))
        return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)

    return max(map(float, jax.tree.leaves(jax.tree.map(of, found, wanted))))


def compare(flags: argparse.Namespace, pool: ThreadPoolExecutor) -> None:
    """Prints times with the kernel and without, and their totals."""
    kinds = (INTERPRET if flags.interpret else TRITON, PLAIN)
    config = EfficientNetConfig(*VARIANTS[flags.variant])
    found = layers(config, flags.image_size)
    jobs = {
        (layer, direction): [
            pool.submit(compile_pass, layer, direction, kind, flags) for kind in kinds
        ]
        for layer in found
        for direction in MOVES
    }
    totals = {direction: [0.0, 0.0, 0.0] for direction in MOVES}
    for (layer, direction), futures in jobs.items():
        calls, arguments = [result(f) for f in futures], draw(layer, flags.batch)
        if None in calls:
            continue
        moves = MOVES[direction][FORMS.index(layer.form)]
        floor = 1e3 * moves * arguments[0].nbytes / flags.bandwidth
        error = difference(*(call(*arguments) for call in calls))
        times = milliseconds(calls, arguments, flags.calls, flags.rounds)
        print(
            f"{layer.size}x{layer.channels} {layer.form} {direction} x{found[layer]}:"
            f" floor {floor:.3f} ms, kernel {times[0] / floor:.2f}, XLA"
            f" {times[1] / floor:.2f}, apart {error:.1e}",
            flush=True,
        )
        for place, value in enumerate((floor, *times)):
            totals[direction][place] += found[layer] * value
    for direction, (floor, kernel, plain) in totals.items():
        print(
            f"{direction} of the tower: floor {floor:.2f} ms, kernel {kernel:.2f}, XLA"
            f" {plain:.2f}, XLA / kernel {plain / kernel:.2f}",
            flush=True,
        )


def choose(flags: argparse.Namespace, pool: ThreadPoolExecutor) -> None:
    """Prints the time of each workload, the fastest first."""
    config = EfficientNetConfig(*VARIANTS[flags.variant])
    wide = [x for x in layers(config, flags.image_size) if x.form == "swish"]
    jobs = {
        layer: [pool.submit(compile_sums, layer, w, flags) for w in WORKLOADS]
        for layer in wide
    }
    for layer, futures in jobs.items():
        x, scale, bias, _, cotangent = draw(layer, flags.batch)
        small = jnp.tile(jnp.stack([scale, bias]), (flags.batch, 1, 1))
        calls = {
            workload: call
            for workload, future in zip(WORKLOADS, futures, strict=True)
            if (call := result(future))
        }
        times = milliseconds(
            list(calls.values()), [x, cotangent, small], flags.calls, flags.rounds
        )
        floor = 2e3 * x.nbytes / flags.bandwidth
        ranked = sorted(zip(times, calls, strict=True))
        cells = ", ".join(
            f"{'/'.join(map(str, workload))} {ms / floor:.2f}"
            for ms, workload in ranked
        )
        print(f"{layer.size}x{layer.channels} {floor:.3f} ms: {cells}", flush=True)


def main() -> None:
    """Prints the table."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--group", type=int, default=16)
    flags = parser.parse_args()
    print_head(flags)
    with ThreadPoolExecutor(flags.threads) as pool:
        (choose if flags.choices else compare)(flags, pool)


if __name__ == "__main__":
    main()
