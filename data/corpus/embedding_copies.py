"""A rule that keeps one of nearly equal pictures of a corpus, by their embeddings.

A picture is dropped if its embedding and that of a better picture have a cosine above
`max_cosine`; `data.corpus.copies` says which picture is better. K-means groups the
pictures into `clusters`, each picture belongs to its `nearest_clusters`, and only
pictures of one cluster are compared, as in SemDeDup (arXiv 2303.09540). So two pictures
that share no cluster both stay. Each process holds one cluster in memory at a time.

Stages, all in the folder of the build's stages, beside those of
`data.corpus.pair_embeddings`:

* `copy_centroids.npy`: (K, D) float32.
* `in_clusters/N.parquet`: a shard's pictures, once for each of their clusters.
* `clusters/cluster=K`: the same, by cluster.
* `near_pictures/K.parquet`: a cluster's pictures that have a better one near them.
* `embedding_copies.parquet`: the dropped pictures, each with the best one near it.
"""

import functools
import pathlib
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from data.corpus.copies import best_pictures, judge_by_copies
from data.corpus.embedding_rule import one_thread, read_sample
from data.corpus.pair_embeddings import count_shards, embed_pairs
from data.corpus.rules import Rule
from data.corpus.stage_tables import StageTables
from data.pictures.embeddings import read_embeddings
from data.pictures.near_duplicates import fit_clusters, nearest_clusters
from data.records.stages import materialise, materialise_shard

COPIES = "embedding_copies"
CENTROIDS = "copy_centroids.npy"
ROWS, COLUMNS = 1024, 8192  # pictures that are compared with others at a time

EMBEDDING_COPY_RULES: dict[str, Rule] = {
    "near_copy_embedding": Rule(
        "a better picture is near; cosine of the embeddings more than",
        lambda pairs, _: pairs.near_copy_embedding,
        "max_copy_cosine",
    )
}
NEAR = pa.schema(
    [("image_id", pa.string()), ("better", pa.string()), ("better_area", pa.int64())]
)


def keep_embedding_originals(stages: StageTables, pairs: ibis.Table) -> ibis.Table:
    """Returns the pairs whose picture has no better one near it.

    Args:
      stages: stages of the build, up to `distinct`; stages that exist are kept.
      pairs: distinct pairs, columns image_id, text and key.
    """
    if not stages.stage(COPIES).exists():
        embed_pairs(stages, pairs)
        count = _fit(stages, pairs)
        shards = range(count_shards(stages.folder))
        nearest = min(stages.config.copies.nearest_clusters, count)
        tasks = [
            functools.partial(assign_shard, stages.folder, n, nearest) for n in shards
        ]
        stages.engine.map(tasks, "clusters of pictures", "picture")
        assigned = stages.shards("in_clusters")
        materialise(
            stages.folder / "clusters",
            lambda path: stages.engine.save_split(
                assigned, path, "cluster", "clusters"
            ),
        )
        bound = stages.config.copies.max_cosine
        comparisons = [
            functools.partial(compare_cluster, stages.folder, n, bound)
            for n in range(count)
        ]
        stages.engine.map(comparisons, "compare pictures", "picture")
        near = stages.shards("near_pictures")
        best = best_pictures(near, "image_id", "better", "better_area")
        stages.save(COPIES, best.select("image_id", "better"))
    for name in ("in_clusters", "clusters"):
        places.remove(stages.folder / name)
    return pairs.anti_join(stages.table(COPIES), "image_id")


def judge_embedding_copies(stages: StageTables, flagged: ibis.Table) -> ibis.Table:
    """Adds the boolean column `near_copy_embedding`, true for a dropped picture."""
    return judge_by_copies(stages.table(COPIES), flagged, "near_copy_embedding")


def describe_embedding_copies(stages: StageTables) -> dict[str, Any]:
    """Returns {"copies": number of dropped pictures}."""
    return {"copies": int(stages.engine.execute(stages.table(COPIES).count()))}


def assign_shard(stages: pathlib.Path, index: int, nearest: int) -> int:
    """Writes a shard's pictures with the clusters of each, atomically.

    A file that exists is kept.

    Args:
      stages: folder of the stages, up to CENTROIDS.
      index: index of the shard.
      nearest: number of clusters that a picture belongs to.

    Returns:
      The number of pictures.
    """

    def write(temporary: pathlib.Path) -> None:
        name = f"{index:05}.parquet"
        ids, vectors = read_embeddings(stages / "pair_embeddings" / name)
        sizes = pq.read_table(
            stages / "images" / name, columns=["image_id", "width", "height"]
        )
        rows = pa.compute.index_in(ids, sizes["image_id"].combine_chunks())
        width, height = (
            sizes[name].take(rows).to_numpy().astype(np.int64)
            for name in ("width", "height")
        )
        with one_thread():
            found = nearest_clusters(np.load(stages / CENTROIDS), vectors, nearest)
        kind = pa.list_(pa.float32(), vectors.shape[1])
        schema = pa.schema(
            {
                "cluster": pa.int32(),
                "image_id": pa.string(),
                "area": pa.int64(),
                "embedding": kind,
            }
        )
        with pq.ParquetWriter(temporary, schema, compression="none") as writer:
            flat = pa.array(vectors.ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, type=kind)
            for clusters in found.T:  # (N,)
                columns = [pa.array(clusters), ids, pa.array(width * height), column]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    return materialise_shard(stages, "in_clusters", index, write)


def compare_cluster(stages: pathlib.Path, cluster: int, bound: float) -> int:
    """Writes the pictures of a cluster that have a better one near them, atomically.

    A file that exists is kept.

    Args:
      stages: folder of the stages, up to `clusters`.
      cluster: index of the cluster.
      bound: cosine above which pictures are near.

    Returns:
      The number of these pictures.
    """

    def write(temporary: pathlib.Path) -> None:
        ids, areas, vectors = _read_cluster(stages / "clusters" / f"cluster={cluster}")
        dropped, better = find_near(vectors, bound)
        columns = [ids.take(dropped), ids.take(better), areas.take(better)]
        table = pa.Table.from_arrays(columns, schema=NEAR)
        pq.write_table(table, temporary)

    return materialise_shard(stages, "near_pictures", cluster, write)


def find_near(vectors: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Finds the vectors that are near an earlier one.

    Args:
      vectors: (N, D) unit vectors, best first.
      bound: cosine above which vectors are near.

    Returns:
      The indices (M,) of the vectors, and for each the first vector near it (M,).
    """
    count = len(vectors)
    first = np.full(count, count)  # until a near one is found
    for start in range(0, count, ROWS):
        part = vectors[start : start + ROWS]  # (n, D)
        rows = np.arange(start, start + len(part))
        for left in range(0, start + len(part), COLUMNS):
            block = vectors[left : left + COLUMNS]  # (m, D)
            near = part @ block.T > np.float32(bound)  # (n, m)
            near &= left + np.arange(len(block)) < rows[:, None]
            new = near.any(1) & (first[rows] == count)
            first[rows[new]] = left + near[new].argmax(1)
    found = np.flatnonzero(first < count)
    return found, first[found]


def _fit(stages: StageTables, pairs: ibis.Table) -> int:
    """Writes the centroids, unless they exist; returns their number."""
    path, config = stages.folder / CENTROIDS, stages.config.copies

    def write(temporary: pathlib.Path) -> None:
        sample = read_sample(
            stages,
            pairs.select("image_id").distinct(),
            stages.folder / "pair_embeddings",
            config.cluster_sample,
        )
        fitted = np.zeros((1, 1), np.float32)  # no picture can be embedded
        if len(sample):
            fitted = fit_clusters(sample, config.clusters, 1, stages.config.seed)
        with temporary.open("wb") as file:
            np.save(file, fitted)

    materialise(path, write)
    return len(np.load(path))


def _read_cluster(folder: pathlib.Path) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Reads the pictures of a cluster, best first; an empty cluster has no folder.

    Returns:
      The ids (N,), numbers of pixels (N,) and unit vectors (N, D) float32.
    """
    names = ["image_id", "area", "embedding"]
    files = sorted(folder.glob("*.parquet"))
    if not files:
        empty = [pa.array([], NEAR.field(n).type) for n in ("better", "better_area")]
        return *empty, np.zeros((0, 1), np.float32)
    tables = [pq.read_table(file, columns=names, partitioning=None) for file in files]
    table = pa.concat_tables(tables).combine_chunks()
    order = pa.compute.sort_indices(
        table, [("area", "descending"), ("image_id", "ascending")]
    ).to_numpy()
    vectors = table["embedding"].combine_chunks().flatten().to_numpy()
    vectors = vectors.reshape(len(table), -1)[order]
    ids, areas = (table[n].combine_chunks().take(order) for n in names[:2])
    return ids, areas, vectors
