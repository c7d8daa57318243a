"""Clusters of the pool's embeddings, and the ones that a target set belongs to."""

import pathlib

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from align_jax.errors import InputError
from data.curation.config import ClustersConfig, PoolConfig
from data.curation.vectors import read_matrix, select_vectors
from data.records.stages import materialise, materialise_shard

CENTROIDS, TARGETS = "centroids.npy", "target_clusters.npy"
CLUSTERS = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("cluster", pa.int32()),  # null without an embedding
        ("targeted", pa.bool_()),  # whether the cluster is one of the target's
    ]
)


def write_sample(
    pool: PoolConfig, table: pathlib.Path, index: int, stages: pathlib.Path
) -> int:
    """Writes the embeddings of a table's rows in the stage `sample`, if it has some.

    Args:
      pool: config of the pool.
      table: Parquet file of the pool.
      index: index of the table.
      stages: folder of the stages.

    Returns:
      The number of rows.
    """
    rows = read_split(stages / "sample", index)
    if not len(rows):
        return 0

    def write(temporary: pathlib.Path) -> None:
        parts = [*select_vectors(pool, table, rows)]
        with temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))

    materialise(stages / "sample_vectors" / f"{index:05}.npy", write)
    return len(rows)


def fit_centroids(config: ClustersConfig, seed: int, stages: pathlib.Path) -> None:
    """Fits centroids to the stage `sample_vectors` by k-means; writes CENTROIDS.

    K-means compares distances, as DataComp's does; the centroids are means, not scaled.

    Raises:
      InputError: the sample has fewer rows with an embedding than `config.count`.
    """

    def write(temporary: pathlib.Path) -> None:
        paths = sorted((stages / "sample_vectors").glob("*.npy"))
        parts = [part[part.any(axis=1)] for part in map(np.load, paths)]
        sample = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
        if len(sample) < config.count:
            raise InputError(
                f"config.clusters.count is {config.count}, but only {len(sample)} rows"
                " with an embedding keep config.clusters.sample; lower it"
            )
        kmeans = faiss.Kmeans(
            sample.shape[1],
            config.count,
            niter=config.iterations,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(sample),
        )
        kmeans.train(sample)
        with temporary.open("wb") as file:
            np.save(file, np.array(kmeans.centroids))

    materialise(stages / CENTROIDS, write)


def write_targets(config: ClustersConfig, stages: pathlib.Path) -> None:
    """Writes TARGETS, the clusters of the target set, ascending; copies the centroids.

    Raises:
      InputError: a file is missing or wrong, or the widths differ.
    """

    def copy(temporary: pathlib.Path) -> None:
        centroids = read_matrix(
            places.local_path(config.centroids), "config.clusters.centroids"
        )
        with temporary.open("wb") as file:
            np.save(file, centroids)

    def write(temporary: pathlib.Path) -> None:
        centroids = np.load(stages / CENTROIDS)
        target = read_matrix(places.local_path(config.target), "config.clusters.target")
        found = np.unique(
            nearest_centroids(centroids, target, "config.clusters.target")
        )
        with temporary.open("wb") as file:
            np.save(file, found)

    if config.centroids:
        materialise(stages / CENTROIDS, copy)
    materialise(stages / TARGETS, write)


def write_clusters(
    pool: PoolConfig, table: pathlib.Path, index: int, stages: pathlib.Path
) -> int:
    """Writes the clusters of a table's rows in the stage `candidates`, if it has some.

    Args:
      pool: config of the pool.
      table: Parquet file of the pool.
      index: index of the table.
      stages: folder of the stages; CENTROIDS and TARGETS must exist.

    Returns:
      The number of rows.
    """
    rows = read_split(stages / "candidates", index)

    def write(temporary: pathlib.Path) -> None:
        centroids, targets = np.load(stages / CENTROIDS), np.load(stages / TARGETS)
        done = 0
        with pq.ParquetWriter(temporary, CLUSTERS) as writer:
            for vectors in select_vectors(pool, table, rows) if len(rows) else ():
                clusters = nearest_centroids(centroids, vectors, str(table))
                missing = ~vectors.any(axis=1)
                here = rows[done : done + len(vectors)]
                columns = [
                    pa.array(np.full(len(here), index, np.int32)),
                    pa.array(here),
                    pa.array(clusters, mask=missing),
                    pa.array(np.isin(clusters, targets), mask=missing),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=CLUSTERS))
                done += len(vectors)

    return materialise_shard(stages, "clusters", index, write)


def nearest_centroids(
    centroids: np.ndarray, vectors: np.ndarray, where: str
) -> np.ndarray:
    """Returns the index of the centroid of largest inner product, (N,) int32.

    Args:
      centroids: (K, D) float32.
      vectors: (N, D) float32.
      where: name of the vectors, for messages.

    Raises:
      InputError: the widths differ.
    """
    if vectors.shape[1] != centroids.shape[1]:
        raise InputError(
            f"{where} has embeddings of width {vectors.shape[1]}; wanted"
            f" {centroids.shape[1]}, as the centroids have"
        )
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    return index.search(np.ascontiguousarray(vectors), 1)[1][:, 0].astype(np.int32)


def read_split(stage: pathlib.Path, index: int) -> np.ndarray:
    """Returns the column `row` of one table's part of a split stage, ascending."""
    parts = [
        pq.read_table(path, columns=["row"], partitioning=None)["row"].to_numpy()
        for path in (stage / f"shard={index}").glob("*.parquet")
    ]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
