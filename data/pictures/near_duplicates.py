"""Near-duplicates of evaluation images, by perceptual hash and by embedding.

The hash finds copies that were resized, compressed or recoloured and needs no model.
The embeddings follow the paper's Appendix A (arXiv 2102.05918) with any image tower:
k-means clusters of training images; of each image the 10 nearest clusters; each of
the C(10,3) = 120 sets of three among them is a bucket; a training image is compared
with the evaluation images of its buckets and dropped where cosine > 0.975. Two images
have a bucket in common exactly where their nearest clusters share at least 3, which
is how it is computed here. `data.pictures.calibration` measures both on augmented
pictures.
"""

import dataclasses
import pathlib
import zipfile

import faiss
import numpy as np
from scipy import sparse

from align_jax import places
from align_jax.errors import InputError
from data.pictures.embeddings import unit_vectors

HASH_BITS = 64
FAR = HASH_BITS + 1  # the distance to an evaluation image where there is none
POINTS_PER_CLUSTER = 39  # below this, faiss warns, a k-means centre is mostly noise
ITERATIONS = 25  # of k-means
PAIRS_AT_ONCE = 4_000_000  # counts of shared clusters held in memory, 12 bytes each
COSINES_AT_ONCE = 16_384  # rows gathered for their dot products


def hash_distances(hashes: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Smallest Hamming distance of each picture to an evaluation image.

    Args:
      hashes: (N,) int64, from `data.pictures.images.perceptual_hash`.
      evaluation: (M,) int64.

    Returns:
      (N,) int32 from 0 to 64; 65 where there are no evaluation images.

    Raises:
      InputError: the hashes are no vector of int64.
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
      centroids: (K, D) float32 of the clusters.
      clusters: (M, nearest) int32, the clusters nearest to each evaluation image.
      share: how many of them an image must have in common to be compared.
      threshold: a near-duplicate's cosine is greater.
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

        A small sample gets fewer clusters: one for each 39 of its rows, yet `nearest`,
        or one for each row of a still smaller one; then every pair shares all clusters
        and is compared.

        Args:
          evaluation_embeddings: (M, D) unit vectors.
          training_sample: (N, D) unit vectors; the paper takes all training images.
          clusters: K of k-means; the paper says 4K.
          nearest: clusters that an image belongs to.
          share: clusters that two compared images have in common.
          threshold: of the cosine; see `calibrate` for one that fits the tower.
          seed: of k-means; the same seed and sample give the same clusters.

        Raises:
          InputError: embeddings are no unit vectors of one length, or there is no
            sample.
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
        k = min(clusters, max(nearest, len(sample) // POINTS_PER_CLUSTER))
        kmeans = faiss.Kmeans(
            sample.shape[1],
            k,
            niter=ITERATIONS,
            seed=seed,
            min_points_per_centroid=1,
        )
        kmeans.train(sample)
        centroids = np.array(kmeans.centroids)  # (K, D)
        found = _nearest(centroids, evaluation, nearest)  # (M, nearest)
        return cls(
            embeddings=evaluation,
            centroids=centroids,
            clusters=found,
            share=share,
            threshold=threshold,
        )

    def query(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compares pictures with the evaluation images of their buckets.

        Memory beside the arguments is bounded: chunks of pictures are cut so that at
        most 4M pairs, or one picture's, are looked at together.

        Args:
          embeddings: (N, D) unit vectors.

        Returns:
          (N,) float32, the largest cosine to an evaluation image that shares enough
          clusters, 0 where there is none or it is negative; and (N,) bool, whether it
          is greater than the threshold.

        Raises:
          InputError: embeddings are no unit vectors of the evaluation images' length.
        """
        width = self.embeddings.shape[1]
        queries = unit_vectors(embeddings, "embeddings", width)
        similarity = np.zeros(len(queries), np.float32)
        if len(queries) and len(self.embeddings):
            mine = self._membership(
                _nearest(self.centroids, queries, self.clusters.shape[1])
            )  # (N, K)
            members = self._membership(self.clusters).T.tocsr()  # (K, M)
            # The pairs that share any cluster are at most these.
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
        """Writes one .npz file, whole."""
        places.make_folder(path.parent)
        with places.writing(path), places.replacing(path) as temporary:
            with pathlib.Path(temporary).open("wb") as file:
                np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: pathlib.Path) -> "NearDuplicates":
        """Reads what `save` wrote.

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
        """(N, K), 1 where an image belongs to a cluster; from (N, nearest)."""
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
        """Raises `similarity` (N,) to the cosines of the pairs (rows, columns)."""
        for start in range(0, len(rows), COSINES_AT_ONCE):
            part = slice(start, start + COSINES_AT_ONCE)
            found = np.einsum(
                "pd,pd->p", queries[rows[part]], self.embeddings[columns[part]]
            )
            np.maximum.at(similarity, rows[part], found)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no readable .npz file ({error})") from error


def _nearest(centroids: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
    """(N, count) int32, the clusters nearest to each of N vectors."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    if not len(vectors):
        return np.zeros((0, count), np.int32)
    return index.search(vectors, count)[1].astype(np.int32)


def _bytes_of(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, HASH_BITS // 8)
