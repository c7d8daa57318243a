"""Times the depthwise convolutions of an EfficientNet: our kernels beside XLA's.

    python -m benchmarks.depthwise --variant=b5 --batch=128 --image_size=289

It prints one line for each different layer and pass: `forward`, `input` (gradient of
the input) and `kernel` (gradient of the kernel). Milliseconds are medians over rounds
in which our kernels and XLA's grouped convolution take turns; a round is a queue of
`--calls` calls. `floor` is the time that the memory needs to move both large arrays
once. `error` is the norm of our result minus the plain float32 sum, over the norm of
that sum, on a few images. `--choices` times some layouts of the lanes instead.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from align_jax.kernels import depthwise_kernel
from align_jax.kernels.convolution import (
    PADDINGS,
    Padding,
    grouped_conv,
    output_size,
    tap_sum,
)
from align_jax.kernels.depthwise_lanes import (
    LaneLayout,
    choose_layout,
    column_groups,
)
from align_jax.models.efficientnet import (
    VARIANTS,
    EfficientNetConfig,
    expand_stages,
)
from benchmarks.layer_timing import make_parser, milliseconds, print_head, result

PASSES = ("forward", "input", "kernel")
CHECKED = 8  # images of the batch


class DepthwiseLayer(NamedTuple):
    """One depthwise convolution: side of input and output, channels, kernel, stride."""

    size: int
    size_out: int
    channels: int
    k: int
    stride: int
    padding: Padding

    def __str__(self) -> str:
        return f"{self.size}x{self.channels} k{self.k} s{self.stride}"


def layers(variant: str, image_size: int, rule: str) -> Counter[DepthwiseLayer]:
    """Counts the different depthwise layers of a tower."""

    def after(size: int, k: int, stride: int) -> tuple[int, Padding]:
        padding = PADDINGS[rule]((size, size), k, stride)
        return output_size(size, k, stride, padding[0]), padding

    size, _ = after(image_size, 3, 2)
    found = Counter()
    for stage in expand_stages(EfficientNetConfig(*VARIANTS[variant])):
        for block in stage:
            size_out, padding = after(size, block.kernel, block.stride)
            layer = DepthwiseLayer(
                size=size,
                size_out=size_out,
                channels=block.expanded,
                k=block.kernel,
                stride=block.stride,
                padding=padding,
            )
            found[layer] += 1
            size = size_out
    return found


class Choice(NamedTuple):
    """Work of a program; by default our kernels choose it."""

    layout: LaneLayout | None = None
    programs: int = depthwise_kernel.PROGRAMS


DEFAULT = Choice()


def ours(
    layer: DepthwiseLayer, interpret: bool, choice: Choice = DEFAULT
) -> dict[str, Callable]:
    """Returns our three passes as functions of (x, kernel, cotangent)."""
    size, stride, padding = (layer.size, layer.size), layer.stride, layer.padding
    layout = choice.layout

    def forward(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        return depthwise_kernel.convolve(
            x, kernel, stride, padding, layout=layout, interpret=interpret
        )

    def to_input(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        return depthwise_kernel.input_gradient(
            cotangent, kernel, size, stride, padding, layout=layout, interpret=interpret
        )

    def to_kernel(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        return depthwise_kernel.kernel_gradient(
            x,
            cotangent,
            layer.k,
            stride,
            padding,
            layout=layout,
            programs=choice.programs,
            interpret=interpret,
        )

    return {"forward": forward, "input": to_input, "kernel": to_kernel}


def gradients(form: Callable, layer: DepthwiseLayer) -> dict[str, Callable]:
    """Returns the three passes of a plain form."""
    call = partial(form, stride=layer.stride, padding=layer.padding)
    return {
        "forward": lambda x, w, g: call(x, w),
        "input": lambda x, w, g: jax.vjp(lambda x: call(x, w), x)[1](g)[0],
        "kernel": lambda x, w, g: jax.vjp(lambda w: call(x, w), w)[1](g)[0],
    }


def shapes(layer: DepthwiseLayer, batch: int) -> list[tuple[int, ...]]:
    """Returns the shapes of x, kernel and cotangent."""
    size, size_out, channels, k = layer[:4]
    return [
        (batch, size, size, channels),
        (k, k, 1, channels),
        (batch, size_out, size_out, channels),
    ]


def compile_pass(function: Callable, layer: DepthwiseLayer, batch: int):
    """Compiles a pass for bfloat16 arrays."""
    arguments = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes(layer, batch)]
    return jax.jit(function, keep_unused=True).lower(*arguments).compile()


def exact_passes(layer: DepthwiseLayer) -> Callable:
    """Returns all passes of the plain sum in float32, for some of the images."""

    def run(x, kernel, cotangent, picked):
        x, cotangent = x[picked], cotangent[picked]
        x, kernel, cotangent = (a.astype(jnp.float32) for a in (x, kernel, cotangent))
        y, vjp = jax.vjp(
            lambda x, w: tap_sum(x, w, layer.stride, layer.padding), x, kernel
        )
        return y, *vjp(cotangent)

    return jax.jit(run)


@jax.jit
def distance(found: jax.Array, expected: jax.Array) -> jax.Array:
    """Returns the norm of the difference over the norm of the expected array."""
    norm = jnp.linalg.norm
    return norm(found.astype(jnp.float32) - expected) / norm(expected)


def draw(layer: DepthwiseLayer, batch: int) -> list[jax.Array]:
    """Draws x, kernel and cotangent."""
    keys = jax.random.split(jax.random.key(0), 3)
    return [
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys, shapes(layer, batch), strict=True)
    ]


def errors(layer: DepthwiseLayer, calls: dict[str, Callable], arguments: list) -> dict:
    """Returns each pass's distance from the plain sum in float32, on `CHECKED` images.

    The cotangent of all other images is zero, so that they add nothing to the kernel's
    gradient.
    """
    x, kernel, cotangent = arguments
    picked = jnp.unique(jnp.arange(CHECKED) * 17 % len(x))
    cotangent = cotangent * jnp.zeros(len(x), x.dtype).at[picked].set(1)[:, *[None] * 3]
    expected = exact_passes(layer)(x, kernel, cotangent, picked)
    found = {}
    for name, wanted in zip(PASSES, expected, strict=True):
        if name in calls:
            out = calls[name](x, kernel, cotangent)
            out = out if name == "kernel" else out[picked]
            found[name] = float(distance(out, wanted))
    return found


def floor_milliseconds(layer: DepthwiseLayer, flags: argparse.Namespace) -> float:
    """Returns the time that the memory needs to move both images once."""
    pixels = layer.size**2 + layer.size_out**2
    return 1e3 * 2 * flags.batch * layer.channels * pixels / flags.bandwidth


def compare(
    flags: argparse.Namespace, found: Counter[DepthwiseLayer], pool: ThreadPoolExecutor
) -> None:
    """Prints our times and XLA's, layer by layer, and their totals."""

    def start(functions, layer):
        return {
            name: pool.submit(compile_pass, functions[name], layer, flags.batch)
            for name in flags.passes
        }

    jobs = {
        layer: (
            start(ours(layer, flags.interpret), layer),
            start(gradients(grouped_conv, layer), layer),
        )
        for layer in found
    }
    totals = {name: [0.0, 0.0, 0.0] for name in flags.passes}
    for layer, (mine, theirs) in jobs.items():
        mine = {name: call for name in mine if (call := result(mine[name]))}
        theirs = {name: call for name in theirs if (call := result(theirs[name]))}
        arguments = draw(layer, flags.batch)
        floor = floor_milliseconds(layer, flags)
        print(f"{layer} x{found[layer]}: floor {floor:.3f} ms", flush=True)
        try:
            wrong = errors(layer, mine, arguments)
            for name in sorted(mine.keys() & theirs.keys(), key=PASSES.index):
                pair = [mine[name], theirs[name]]
                times = milliseconds(pair, arguments, flags.calls, flags.rounds)
                print(
                    f"  {name:7} ours {times[0]:.3f} ({times[0] / floor:.2f} floors),"
                    f" XLA {times[1]:.3f} ({times[1] / floor:.2f}),"
                    f" error {wrong[name]:.1e}",
                    flush=True,
                )
                for column, value in enumerate((floor, *times)):
                    totals[name][column] += found[layer] * value
        except Exception as error:  # a layer that fails must not stop the others
            print(f"  failed: {str(error).splitlines()[0][:160]}", flush=True)
    everything = [sum(column) for column in zip(*totals.values(), strict=True)]
    for name, (floor, mine, theirs) in {**totals, "all": everything}.items():
        if floor:
            print(
                f"{name:7} of the tower: floor {floor:.2f} ms, ours {mine / floor:.2f}"
                f" floors, XLA {theirs / floor:.2f}, XLA / ours {theirs / mine:.2f}",
                flush=True,
            )


def choices(layer: DepthwiseLayer, name: str) -> dict[str, Choice]:
    """Returns choices for a pass by a short name, the module's choice first."""
    left = layer.padding[1][0]
    columns, width = {
        "forward": (depthwise_kernel.CONVOLVE_COLUMNS, layer.size_out),
        "input": (depthwise_kernel.CONVOLVE_COLUMNS, layer.size),
        "kernel": (depthwise_kernel.PRODUCTS_COLUMNS, layer.size_out),
    }[name]
    if name == "input" and layer.stride > 1:
        columns = depthwise_kernel.SPREAD_COLUMNS
        width = column_groups(layer.size, left, layer.stride)
    choose = partial(choose_layout, width, layer.channels, layer.k)
    own = choose(columns, depthwise_kernel.WARPS)
    layouts = [own]
    layouts += [choose(columns, warps) for warps in (2, 8)]
    layouts += [choose((own.columns + n,), own.warps) for n in (-1, 1)]
    layouts += [own._replace(slab=min(slab, layer.channels)) for slab in (16, 64)]
    found = {"/".join(map(str, layout)): Choice(layout) for layout in layouts}
    if name == "kernel":
        for programs in (256, 1024, 2048):
            found[f"{programs} programs"] = Choice(own, programs)
    return found


def choose(
    flags: argparse.Namespace, found: Counter[DepthwiseLayer], pool: ThreadPoolExecutor
) -> None:
    """Prints the time of each choice, the fastest first."""
    jobs = {
        (layer, name): {
            label: pool.submit(
                compile_pass,
                ours(layer, flags.interpret, choice)[name],
                layer,
                flags.batch,
            )
            for label, choice in choices(layer, name).items()
        }
        for layer in found
        for name in flags.passes
    }
    print("columns/slab/warps: time over floor; the module's own is first named")
    for (layer, name), futures in jobs.items():
        calls = {c: call for c in futures if (call := result(futures[c]))}
        floor = floor_milliseconds(layer, flags)
        try:
            arguments = draw(layer, flags.batch)
            times = milliseconds(
                list(calls.values()), arguments, flags.calls, flags.rounds
            )
        except Exception as error:  # a layer that fails must not stop the others
            print(f"  failed: {str(error).splitlines()[0][:160]}", flush=True)
            continue
        ranked = sorted(zip(times, calls, strict=True))
        cells = ", ".join(f"{choice} {ms / floor:.2f}" for ms, choice in ranked)
        print(
            f"{layer} {name} {floor:.3f} ms, own {next(iter(futures))}: {cells}",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--padding", choices=PADDINGS, default="same")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--layers", help="only layers whose line has this, as ' k5 '")
    flags = parser.parse_args()
    print_head(flags)
    found = Counter(
        {
            layer: count
            for layer, count in layers(
                flags.variant, flags.image_size, flags.padding
            ).items()
            if not flags.layers or flags.layers in str(layer) + " "
        }
    )
    with ThreadPoolExecutor(flags.threads) as pool:
        (choose if flags.choices else compare)(flags, found, pool)


if __name__ == "__main__":
    main()
