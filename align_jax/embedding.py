"""Embeds pictures and texts with a trained dual encoder, in batches on all devices."""

import concurrent.futures
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh

from align_jax.errors import InputError
from align_jax.models.dual_encoder import DualEncoder
from align_jax.pictures import Picture, read_picture
from align_jax.preprocess import PreprocessConfig, evaluation_image
from align_jax.sharding import batch_split, replicated
from align_jax.tokenizer import Tokenizer


class Embedder:
    """Pictures and texts in, unit vectors out, with the run's own preprocessing.

    Every process gives the same inputs and gets all embeddings.
    """

    def __init__(
        self,
        model: DualEncoder,
        tokenizer: Tokenizer,
        preprocess: PreprocessConfig,
        mesh: Mesh,
        batch_size: int = 128,
    ):
        """Compiles both encoders on first use.

        Args:
          model: the dual encoder.
          tokenizer: of its text tower.
          preprocess: image sizes.
          mesh: the devices.
          batch_size: pictures or texts at a time, rounded up to the device count.
        """
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._mesh = mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._variables: dict = {}
        whole, split = replicated(mesh), batch_split(mesh)
        compiled = partial(jax.jit, in_shardings=(whole, split), out_shardings=whole)
        self._encode_images = compiled(
            lambda variables, images: model.apply(
                variables, images, method="encode_images"
            )
        )
        self._encode_texts = compiled(
            lambda variables, tokens: model.apply(
                variables, tokens, method="encode_texts"
            )
        )

    def load(self, params: dict, batch_stats: dict) -> None:
        """Sets the parameters and running statistics to embed with."""
        self._variables = {"params": params, "batch_stats": batch_stats}

    def encode_images(
        self, pictures: Sequence[Picture], unreadable: dict[int, str] | None = None
    ) -> np.ndarray:
        """Embeds N pictures, in any form `read_picture` takes, as (N, D).

        Args:
          pictures: to embed.
          unreadable: filled with what is wrong with each picture that cannot be read,
            by its place, and the picture's row is NaN; None makes it an error.

        Returns:
          float32 of unit length.

        Raises:
          InputError: one of them cannot be read; names it.
        """
        side, limit = self._preprocess.image_size, self._preprocess.max_pixels
        reasons: dict[int, str] = {}

        def prepare(index: int) -> np.ndarray:
            try:
                picture = read_picture(pictures[index], f"picture {index}", limit)
            except InputError as error:
                if unreadable is None:
                    raise
                reasons[index] = str(error)
                return np.zeros((side, side, 3), np.uint8)
            return evaluation_image(picture, self._preprocess)

        def batches() -> Iterator[np.ndarray]:
            for start in range(0, len(pictures), self._batch_size):
                stop = min(start + self._batch_size, len(pictures))
                yield np.stack(list(pool.map(prepare, range(start, stop))))

        # Threads: decoding and resizing let each other run.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            embeddings = self._embed(self._encode_images, batches())
        if reasons:
            embeddings[[*reasons]] = np.nan
            unreadable.update(reasons)
        return embeddings

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts (N) as (N, D) float32 of unit length."""
        tokens = (
            tf.data.Dataset.from_tensor_slices(list(texts))
            .batch(self._batch_size)
            .map(self._tokenizer)
        )
        return self._embed(self._encode_texts, tokens.as_numpy_iterator())

    def _embed(self, encode, batches: Iterator[np.ndarray]) -> np.ndarray:
        embeddings, rows = [], 0
        sharding = batch_split(self._mesh)
        for batch in batches:
            rows += len(batch)
            missing = self._batch_size - len(batch)  # of the last one
            padded = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
            spread = jax.make_array_from_callback(
                padded.shape, sharding, padded.__getitem__
            )
            embeddings.append(encode(self._variables, spread))
            # The batch before is waited for, so that this one runs while another is
            # read.
            embeddings[-2:-1] = map(np.asarray, embeddings[-2:-1])
        return np.concatenate(embeddings)[:rows]


def class_embeddings(
    embedder: Embedder, prompts: Sequence[Sequence[str]]
) -> np.ndarray:
    """Embeds K classes, each by its prompts, as (K, D) of unit length.

    A class is the mean of the unit embeddings of its prompts, scaled to unit length.
    """
    flat = embedder.encode_texts([text for texts in prompts for text in texts])
    ends = np.cumsum([len(texts) for texts in prompts])[:-1]
    means = np.stack([rows.mean(0) for rows in np.split(flat, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)
