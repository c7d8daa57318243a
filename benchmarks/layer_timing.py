"""Flags and timing that the benchmarks of single layers share."""

import argparse
import statistics
import time
from concurrent.futures import Future

import jax

from align_jax.models.efficientnet import VARIANTS


def make_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser of the flags that all of them have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--variant", choices=VARIANTS, default="b5")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=289)
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes / s")
    parser.add_argument("--choices", action="store_true", help="time some tiles")
    parser.add_argument("--calls", type=int, default=20, help="in a queue")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=16, help="that compile")
    parser.add_argument("--interpret", action="store_true", help="without a GPU")
    return parser


def print_head(flags: argparse.Namespace) -> None:
    """Prints the tower, the batch and the device that are measured."""
    print(
        f"{flags.variant}, {flags.image_size} px, batch {flags.batch}, bfloat16,"
        f" {jax.devices()[0].device_kind}",
        flush=True,
    )


def milliseconds(calls: list, arguments: list, repeat: int, rounds: int) -> list[float]:
    """Returns the median time of each of some compiled functions, which take turns."""
    taken = [[] for _ in calls]
    for turn in range(rounds + 1):
        for times, call in zip(taken, calls, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                out = call(*arguments)
            jax.block_until_ready(out)
            if turn:
                times.append(1e3 * (time.perf_counter() - start) / repeat)
    return [statistics.median(times) for times in taken]


def result(future: Future):
    """Returns a compiled program; None if it failed, after one line about the error."""
    try:
        return future.result()
    except Exception as error:  # a kernel that fails must not stop the others
        print(f"  failed: {str(error).splitlines()[0][:160]}", flush=True)
        return None
