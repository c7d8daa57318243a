"""Compares our index with exact search, faiss, Chroma and Milvus Lite.

    python -m benchmarks.search --vectors=1000000

The vectors have unit length and 640 numbers. They form clusters: each is a walk of 100
small steps from a random start. Queries are steps that the collection does not have.
Every library runs in a separate process, one after the other, with the same vectors and
queries, and answers one query at a time. A new process also opens our index, reads it
into memory as the server does, and queries it. faiss, Chroma and Milvus Lite are
measured if they are installed (`pip install faiss-cpu chromadb pymilvus milvus-lite`).
Memory is the process's peak, with Python, numpy and the vectors' file (2.4 GiB for a
million); the new process does not read that file. `core s` and `core ms` are the
processor time of the build and of a query over all cores, which other work on the
machine hardly changes. With --parts=10, our index grows to its size in ten builds.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from align_jax.search.vector_index import Description, create_index, open_index
from benchmarks.comparisons import Comparison, add_record_flag, record

WIDTH = 640
WALK = 100  # steps of a cluster
STEP = 0.25  # length of a step relative to the vector's length
LIMIT = 10  # neighbours per query
AT_ONCE = 20_000

OURS, OPENED = "ours (LanceDB)", "opened again"

Search = Callable[[np.ndarray], list[int]]


def make_walks(count: int, queries: int, folder: pathlib.Path) -> None:
    """Writes `vectors.npy` (count, WIDTH) and `queries.npy` (queries, WIDTH)."""
    random = np.random.default_rng(0)
    walks = -(-(count + queries) // WALK)
    rows = np.lib.format.open_memmap(
        folder / "vectors.npy", "w+", np.float32, (count, WIDTH)
    )
    asked = np.empty((queries, WIDTH), np.float32)
    places = random.permutation(walks * WALK)[: count + queries].reshape(-1)
    place = random.normal(size=(walks, WIDTH)).astype(np.float32)
    order = np.full(walks * WALK, -1)
    order[places] = np.arange(count + queries)
    for step in range(WALK):
        place += (
            STEP
            * np.sqrt(1 / WIDTH)
            * np.linalg.norm(place, axis=1, keepdims=True)
            * random.normal(size=place.shape).astype(np.float32)
        )
        unit = place / np.linalg.norm(place, axis=1, keepdims=True)
        found = order[step * walks : (step + 1) * walks]
        kept = (found >= 0) & (found < count)
        rows[found[kept]] = unit[kept]
        asked[found[found >= count] - count] = unit[found >= count]
    rows.flush()
    np.save(folder / "queries.npy", asked)


def exact_neighbours(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the indices (queries, LIMIT) of the nearest vectors, by all products."""
    best = np.full((len(queries), LIMIT), -np.inf, np.float32)
    places = np.zeros((len(queries), LIMIT), int)
    for start in range(0, len(vectors), AT_ONCE):
        scores = queries @ vectors[start : start + AT_ONCE].T
        both = np.concatenate([best, scores], 1)
        kept = np.argpartition(-both, LIMIT, axis=1)[:, :LIMIT]
        fresh = np.concatenate(
            [places, np.tile(np.arange(scores.shape[1]) + start, (len(queries), 1))], 1
        )
        best = np.take_along_axis(both, kept, 1)
        places = np.take_along_axis(fresh, kept, 1)
    return places


def probed(lists: int) -> int:
    """Returns how many lists another library searches, for a recall like ours."""
    return max(20, round(0.05 * lists))


def build_ours(vectors: np.ndarray, folder: pathlib.Path, parts: int = 1) -> Search:
    """Builds the index of `align_jax.search`, in several builds if asked to."""
    index = create_index(str(folder), Description("none", "none", WIDTH, 0))
    ends = [len(vectors) * (part + 1) // parts for part in range(parts)]
    for first, end in zip([0, *ends], ends, strict=False):
        for start in range(first, end, AT_ONCE):
            rows = vectors[start : min(start + AT_ONCE, end)]
            names = [str(start + i) for i in range(len(rows))]
            empty = [""] * len(rows)
            index.put(names, empty, empty, [b""] * len(rows), rows)
        index.optimise()
    return lambda query: [int(hit.id) for hit in index.search(query, LIMIT)]


def open_ours(vectors: np.ndarray, folder: pathlib.Path) -> Search:
    """Opens the index that `build_ours` built, as the server does."""
    index = open_index(str(folder))
    index.warm()
    return lambda query: [int(hit.id) for hit in index.search(query, LIMIT)]


def build_exact(vectors: np.ndarray, folder: pathlib.Path) -> Search:
    """Builds no index: a query is one product with all vectors, held in memory."""
    held = np.array(vectors)

    def search(query: np.ndarray) -> list[int]:
        scores = held @ query
        return np.argpartition(-scores, LIMIT)[:LIMIT].tolist()

    return search


def build_faiss(vectors: np.ndarray, folder: pathlib.Path) -> Search:
    """Builds faiss' inverted file of 8-bit numbers in memory."""
    import faiss

    lists = max(1, len(vectors) // 4096)
    index = faiss.index_factory(WIDTH, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    random = np.random.default_rng(0)
    sample = random.choice(len(vectors), min(len(vectors), 256 * lists), replace=False)
    index.train(np.array(vectors[np.sort(sample)]))
    for start in range(0, len(vectors), AT_ONCE):
        index.add(np.array(vectors[start : start + AT_ONCE]))
    index.nprobe = probed(lists)
    return lambda query: index.search(query[None], LIMIT)[1][0].tolist()


def build_chroma(vectors: np.ndarray, folder: pathlib.Path) -> Search:
    """Builds Chroma's graph on disk, with Chroma's default settings."""
    import chromadb

    client = chromadb.PersistentClient(str(folder))
    collection = client.create_collection("all", metadata={"hnsw:space": "ip"})
    for start in range(0, len(vectors), 5000):
        rows = vectors[start : start + 5000]
        names = [str(start + i) for i in range(len(rows))]
        collection.add(names, embeddings=np.array(rows))

    def search(query: np.ndarray) -> list[int]:
        found = collection.query([query], n_results=LIMIT, include=[])
        return [int(name) for name in found["ids"][0]]

    return search


def build_milvus(vectors: np.ndarray, folder: pathlib.Path) -> Search:
    """Builds Milvus Lite's partitions of 8-bit numbers on disk."""
    import pymilvus

    folder.mkdir()
    client = pymilvus.MilvusClient(str(folder / "all.db"))
    schema = client.create_schema()
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=WIDTH)
    client.create_collection("all", schema=schema)
    for start in range(0, len(vectors), 5000):
        rows = enumerate(np.array(vectors[start : start + 5000]), start)
        client.insert("all", [{"id": i, "vector": row} for i, row in rows])
    client.flush("all")
    lists = max(1, len(vectors) // 4096)
    made = client.prepare_index_params()
    kind = {"index_type": "IVF_SQ8", "metric_type": "IP", "params": {"nlist": lists}}
    made.add_index("vector", **kind)
    client.create_index("all", made)
    client.load_collection("all")
    parameters = {"params": {"nprobe": probed(lists)}}

    def search(query: np.ndarray) -> list[int]:
        (found,) = client.search("all", [query], limit=LIMIT, search_params=parameters)
        return [hit["id"] for hit in found]

    return search


LIBRARIES = {
    OURS: build_ours,
    OPENED: open_ours,
    "exact": build_exact,
    "faiss": build_faiss,
    "chromadb": build_chroma,
    "milvus lite": build_milvus,
}
MODULES = {"faiss": "faiss", "chromadb": "chromadb", "milvus lite": "milvus_lite"}


def measure(library: str, folder: pathlib.Path, parts: int) -> dict[str, float]:
    """Builds and queries one library's index; memory is that of this process."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    expected = np.load(folder / "expected.npy")
    place = folder / "index"
    build = LIBRARIES[library]
    grown = {"parts": parts} if library == OURS else {}
    start, used = time.perf_counter(), time.process_time()
    search = build(vectors, place, **grown)
    built, built_used = time.perf_counter() - start, time.process_time() - used
    search(queries[0])
    taken, right, used = [], 0, time.process_time()
    for query, places in zip(queries, expected, strict=True):
        start = time.perf_counter()
        found = search(query)
        taken.append(1e3 * (time.perf_counter() - start))
        right += len({*found} & {*places.tolist()})
    used = time.process_time() - used
    files = [p.stat().st_size for p in place.rglob("*") if p.is_file()]
    return {
        "build_seconds": built,
        "build_core_seconds": built_used,
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "core_ms": 1e3 * used / len(queries),
        "recall": right / expected.size,
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "disk_gib": sum(files) / 2**30,
    }


def main() -> None:
    """Makes vectors, measures every library and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--folder", type=pathlib.Path, help="for the vectors")
    parser.add_argument("--library", choices=LIBRARIES, help="only this one")
    parser.add_argument("--parts", type=int, default=1, help="builds of our index")
    add_record_flag(parser)
    flags = parser.parse_args()
    if flags.library and flags.folder:
        print(json.dumps(measure(flags.library, flags.folder, flags.parts)))
        return
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = pathlib.Path(name)
        make_walks(flags.vectors, flags.queries, folder)
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        expected = exact_neighbours(vectors, np.load(folder / "queries.npy"))
        np.save(folder / "expected.npy", expected)
        head = "library           build s   core s    p50 ms    p99 ms   core ms"
        print(f"{head}  recall@10  memory GiB  disk GiB", flush=True)
        rows: dict[str, dict[str, float]] = {}
        for library in LIBRARIES:
            needed = MODULES.get(library)
            if needed and not importlib.util.find_spec(needed):
                print(f"{library}: not installed", flush=True)
                continue
            command = [sys.executable, "-m", "benchmarks.search", f"--folder={folder}"]
            out = subprocess.check_output(
                [*command, f"--library={library}", f"--parts={flags.parts}"],
                text=True,
                env=os.environ,
            )
            found = rows[library] = json.loads(out.splitlines()[-1])
            if library != OURS:
                shutil.rmtree(folder / "index", ignore_errors=True)
            print(
                f"{library:<14}{found['build_seconds']:>11.1f}"
                f"{found['build_core_seconds']:>9.1f}{found['p50_ms']:>10.2f}"
                f"{found['p99_ms']:>10.2f}{found['core_ms']:>10.2f}"
                f"{found['recall']:>11.3f}"
                f"{found['memory_gib']:>12.2f}{found['disk_gib']:>10.2f}",
                flush=True,
            )
    record(
        flags.record,
        [
            Comparison(
                f"search, {key}, {flags.vectors} vectors",
                library,
                unit,
                [rows[OPENED][key]],
                [found[key]],
            )
            for library, found in rows.items()
            if library not in (OURS, OPENED)
            for key, unit in (("p50_ms", "ms"), ("p99_ms", "ms"))
        ],
    )


if __name__ == "__main__":
    main()
