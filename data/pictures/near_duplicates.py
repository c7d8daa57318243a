"""Finds near-duplicates of evaluation images, by perceptual hash and by embedding.

The hash finds copies that were resized, compressed or recoloured and needs no model.
The embeddings follow the paper's Appendix A (arXiv 2102.05918) with any image tower.
K-means clusters the training images, and each image belongs to its 10 nearest clusters.
Each of the C(10,3) = 120 sets of three of them is a bucket. A training image is
compared with the evaluation images of its buckets and dropped if a cosine > 0.975. This
module counts shared clusters instead: two images have a bucket in common exactly if
they share at least 3. `benchmarks.near_duplicates` measures how well the hash and the
embeddings find augmented copies.
"""

import dataclasses
import pathlib

import faiss
import numpy as np
from scipy import sparse

from align_jax import places
from align_jax.errors import DAMAGED_NPZ, InputError
from data.pictures.embeddings import unit_vectors

HASH_BITS = 64
FAR = HASH_BITS + 1  # the distance if there is no evaluation image
POINTS_PER_CLUSTER = 39  # with fewer, faiss warns that a k-means centre is mostly noise
ITERATIONS = 25  # of k-means
PAIRS_AT_ONCE = 4_000_000  # counts of shared clusters held in memory, 12 bytes each
COSINES_AT_ONCE = 16_384  # rows gathered for their dot products


def hash_distances(hashes: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Returns the smallest Hamming distance of each picture to an evaluation image.

    Args:
      hashes: (N,) int64, from `data.pictures.images.hash_greys`.
      evaluation: (M,) int64 hashes of the evaluation images.

    Returns:
      (N,) int32 from 0 to 64; 65 if there are no evaluation images.

    Raises:
      InputError: the hashes are not a vector of int64.
    """
    for name, array in (("pictures", hashes), ("evaluation images", evaluation)):
        if array.ndim != 1 or array.dtype != np.int64:
            raise InputError(
                f"hashes of {name}: found {array.dtype} {array.shape},"
                " wanted one int64 a picture"
            )
    if not len(evaluation) or not len(hashes):
        return np.full(len(hashes), FAR, np.int32)
    index = faiss.IndexBinaryFlat(HASH_BITS)
    index.add(_bytes_of(evaluation))
    distances, _ = index.search(_bytes_of(hashes), 1)  # (N, 1)
    return distances[:, 0]


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Evaluation images indexed by their nearest clusters (Appendix A).

    Attributes:
      embeddings: (M, D) float32 unit vectors of the evaluation images.
      centroids: (K, D) float32 centres of the clusters.
      clusters: (M, nearest) int32, the clusters nearest to each evaluation image.
      share: minimum number of nearest clusters that two compared images share.
      threshold: cosine above which a picture is a near-duplicate.
    """

    embeddings: np.ndarray
    centroids: np.ndarray
    clusters: np.ndarray
    share: int
    threshold: float

    @classmethod
    def build(
        cls,
        evaluation_embeddings: np.ndarray,
        training_sample: np.ndarray,
        clusters: int = 4096,
        nearest: int = 10,
        share: int = 3,
        threshold: float = 0.975,
        seed: int = 0,
    ) -> "NearDuplicates":
        """Clusters a sample of the training images and indexes the evaluation images.

        A small sample gets fewer than `clusters` clusters: N / 39, rounded down, but at
        least `nearest`. If N < `nearest`, there are N clusters, and `nearest` becomes N
        (`share` too, if it is larger). With only `nearest` clusters, each image belongs
        to all of them, so every pair of images is compared.

        Args:
          evaluation_embeddings: (M, D) unit vectors.
          training_sample: (N, D) unit vectors; the paper uses all training images.
          clusters: maximum number K of k-means clusters; the paper says 4K.
          nearest: number of clusters that an image belongs to.
          share: minimum number of clusters that two compared images share.
          threshold: cosine above which a picture is a near-duplicate; measure one for
            your model with `benchmarks.near_duplicates`.
          seed: seed of k-means; the same seed and sample give the same clusters.

        Raises:
          InputError: the embeddings are not unit vectors of one width, the sample is
            empty, or 1 <= share <= nearest <= clusters does not hold.
        """
        if not 1 <= share <= nearest <= clusters:
            raise InputError(
                f"share={share}, nearest={nearest}, clusters={clusters}:"
                " wanted 1 <= share <= nearest <= clusters"
            )
        evaluation = unit_vectors(evaluation_embeddings, "evaluation embeddings")
        sample = unit_vectors(training_sample, "training sample", evaluation.shape[1])
        if not len(sample):
            raise InputError(
                "training sample: found no embeddings, wanted"
                f" {clusters * POINTS_PER_CLUSTER} or as many as there are"
            )
        nearest = min(nearest, len(sample))
        share = min(share, nearest)
        centroids = fit_clusters(sample, clusters, nearest, seed)  # (K, D)
        found = nearest_clusters(centroids, evaluation, nearest)  # (M, nearest)
        return cls(
            embeddings=evaluation,
            centroids=centroids,
            clusters=found,
            share=share,
            threshold=threshold,
        )

    def query(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compares pictures with the evaluation images of their buckets.

        Memory is bounded. A chunk of pictures has at most 4 million pairs of a picture
        and an evaluation image that share a cluster, or is a single picture.

        Args:
          embeddings: (N, D) unit vectors.

        Returns:
          (N,) float32, the largest cosine with an evaluation image that shares enough
          clusters, or 0 if none does or the cosine is negative; and (N,) bool, whether
          the first result is greater than the threshold.

        Raises:
          InputError: the embeddings are not unit vectors of the evaluation images'
            width.
        """
        width = self.embeddings.shape[1]
        queries = unit_vectors(embeddings, "embeddings", width)
        similarity = np.zeros(len(queries), np.float32)
        if len(queries) and len(self.embeddings):
            mine = self._membership(
                nearest_clusters(self.centroids, queries, self.clusters.shape[1])
            )  # (N, K)
            members = self._membership(self.clusters).T.tocsr()  # (K, M)
            # Cumulative upper bounds of the numbers of pairs that share a cluster.
            pairs = np.cumsum(mine @ np.diff(members.indptr).astype(np.int64))  # (N,)
            start = 0
            while start < len(queries):
                done = pairs[start - 1] if start else 0
                stop = int(np.searchsorted(pairs, done + PAIRS_AT_ONCE, "right"))
                stop = max(stop, start + 1)
                shared = (mine[start:stop] @ members).tocoo()  # (stop - start, M)
                enough = shared.data >= self.share
                rows, columns = shared.row[enough] + start, shared.col[enough]
                self._compare(queries, rows, columns, similarity)
                start = stop
        return similarity, similarity > np.float32(self.threshold)

    def save(self, path: pathlib.Path) -> None:
        """Writes one .npz file atomically; an existing file is replaced."""
        places.make_folder(path.parent)
        with places.writing(path), places.replacing(path) as temporary:
            with pathlib.Path(temporary).open("wb") as file:
                np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: pathlib.Path) -> "NearDuplicates":
        """Reads a file that `save` wrote.

        Raises:
          InputError: the file is missing, damaged or something else.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        arrays = _read_npz(path)
        if set(arrays) != names:
            raise InputError(f"{path}: found {sorted(arrays)}, wanted {sorted(names)}")
        return cls(
            embeddings=arrays["embeddings"],
            centroids=arrays["centroids"],
            clusters=arrays["clusters"],
            share=int(arrays["share"]),
            threshold=float(arrays["threshold"]),
        )

    def _membership(self, clusters: np.ndarray) -> sparse.csr_matrix:
        """Returns (N, K), 1 where an image belongs to a cluster, from (N, nearest)."""
        count, nearest = clusters.shape
        starts = np.arange(0, clusters.size + 1, nearest)
        ones = np.ones(clusters.size, np.int32)
        shape = (count, len(self.centroids))
        return sparse.csr_matrix((ones, clusters.ravel(), starts), shape)

    def _compare(
        self,
        queries: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        similarity: np.ndarray,
    ) -> None:
        """Updates `similarity`, in place, by the larger cosines of pairs of pictures.

        Args:
          queries: (N, D) unit vectors.
          rows: (P,) index of the query of each pair.
          columns: (P,) index of the evaluation image of each pair.
          similarity: (N,) largest cosines so far.
        """
        for start in range(0, len(rows), COSINES_AT_ONCE):
            part = slice(start, start + COSINES_AT_ONCE)
            found = np.einsum(
                "pd,pd->p", queries[rows[part]], self.embeddings[columns[part]]
            )
            np.maximum.at(similarity, rows[part], found)


def fit_clusters(
    sample: np.ndarray, clusters: int, least: int, seed: int
) -> np.ndarray:
    """Fits cluster centres by k-means, (K, D) float32.

    Args:
      sample: (N, D) unit vectors.
      clusters: maximum number K; it is N / 39, rounded down, if that is smaller.
      least: minimum number K, at most N.
      seed: seed of k-means; the same seed and sample give the same clusters.
    """
    kmeans = faiss.Kmeans(
        sample.shape[1],
        min(clusters, max(least, len(sample) // POINTS_PER_CLUSTER)),
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
    )
    kmeans.train(sample)
    return np.array(kmeans.centroids)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, *DAMAGED_NPZ) as error:
        raise InputError(f"{path} is no readable .npz file ({error})") from error


def nearest_clusters(
    centroids: np.ndarray, vectors: np.ndarray, count: int
) -> np.ndarray:
    """Returns (N, count) int32, the clusters nearest to each vector, nearest first."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    if not len(vectors):
        return np.zeros((0, count), np.int32)
    return index.search(vectors, count)[1].astype(np.int32)


def _bytes_of(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, HASH_BITS // 8)
