"""Times ranks and nearest neighbours beside the plain matrix product.

    python -m benchmarks.evaluation --rounds=5 --index=1281167

The embeddings are random unit vectors of ALIGN's width. "Retrieval" ranks as many
vectors as MSCOCO has pictures and captions, 5,000 and 25,010, both ways. "Neighbours"
searches as many as ImageNet's training pictures for the nearest ones of its 50,000
validation pictures; the index is generated in pieces. Each benchmark runs in a separate
process. The memory of "retrieval" is the process's peak beyond the embeddings; that of
"neighbours" is the peak in all.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.devices.mesh import make_mesh
from align_jax.evaluation.ranking import nearest, pair_ranks
from benchmarks.comparisons import Comparison, add_record_flag, record

WIDTH = 640
PICTURES, CAPTIONS = 5_000, 25_010
QUERIES = 50_000
PIECE = 4_096
NEIGHBOURS = 5


def unit(seed: int, count: int) -> np.ndarray:
    """Draws random vectors (count, WIDTH) of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def peak_mib() -> float:
    """Returns the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(call: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def retrieval(flags: argparse.Namespace) -> None:
    """Prints time and memory of the ranks in both directions."""
    mesh = make_mesh()
    pictures, captions = unit(0, PICTURES), unit(1, CAPTIONS)
    owner = np.minimum(np.arange(CAPTIONS) // 5, PICTURES - 1)
    pairs = np.stack([owner, np.arange(CAPTIONS)], 1)
    jax.block_until_ready(jnp.zeros(1))  # so that JAX has started
    before = peak_mib()
    ours = [seconds(lambda: pair_ranks(pictures, captions, pairs, mesh))]
    memory = peak_mib() - before
    product = jax.jit(lambda a, b: jnp.matmul(a, b.T, precision="highest"))
    plain = [seconds(lambda: product(pictures, captions))]
    for _ in range(flags.rounds):
        ours.append(seconds(lambda: pair_ranks(pictures, captions, pairs, mesh)))
        plain.append(seconds(lambda: product(pictures, captions)))
    ours, plain = ours[1:], plain[1:]  # the first calls compile
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    print(
        f"retrieval, {CAPTIONS} x {PICTURES}: {statistics.median(ours):.2f} s, the"
        f" product {statistics.median(plain):.2f} s, ratio {ratio:.2f};"
        f" {memory:.0f} MiB beyond the embeddings",
        flush=True,
    )
    name = f"ranks, {CAPTIONS} x {PICTURES}"
    record(flags.record, [Comparison(name, "the product", "s", ours, plain)])


def neighbours(flags: argparse.Namespace) -> None:
    """Prints time and memory of the search for nearest neighbours."""
    mesh, queries, index = make_mesh(), unit(0, QUERIES), flags.index
    made = 0.0

    def pieces() -> Iterator[np.ndarray]:
        nonlocal made
        for start in range(0, index, PIECE):
            begun = time.perf_counter()
            piece = unit(1 + start, min(PIECE, index - start))
            made += time.perf_counter() - begun
            yield piece

    taken = seconds(lambda: nearest(queries, pieces(), NEIGHBOURS, mesh)) - made
    memory = peak_mib()
    product = jax.jit(lambda a, b: jnp.matmul(a, b.T, precision="highest"))
    part = jax.device_put(unit(1, 512))
    some = jax.device_put(queries)
    seconds(lambda: product(some, part))
    plain = statistics.median(seconds(lambda: product(some, part)) for _ in range(9))
    plain *= index / len(part)
    print(
        f"neighbours, {QUERIES} among {index}: {taken:.0f} s, the products alone"
        f" {plain:.0f} s, ratio {taken / plain:.2f}; {memory:.0f} MiB in all"
    )
    name = f"neighbours, {QUERIES} among {index}"
    record(flags.record, [Comparison(name, "the products", "s", [taken], [plain])])


def main() -> None:
    """Runs both benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--index", type=int, default=1_281_167)
    add_record_flag(parser)
    flags = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for target in (retrieval, neighbours):
        process = context.Process(target=target, args=(flags,))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
