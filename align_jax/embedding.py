"""Embeds pictures and texts with a trained dual encoder, in batches on all devices."""

import concurrent.futures
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh

from align_jax.errors import InputError
from align_jax.models.dual_encoder import DualEncoder
from align_jax.pictures import Picture, read_picture
from align_jax.preprocess import PreprocessConfig, evaluation_image
from align_jax.scratch import Scratch
from align_jax.sharding import batch_split, replicated
from align_jax.tokenizer import Tokenizer


class Embedder:
    """Pictures and texts in, unit vectors out, with the run's own preprocessing.

    Every process gives the same inputs and gets all embeddings; it reads only the
    pictures that its own devices embed. The last batch is padded, and what is computed
    of the padding is cut off.
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

        def encode_images(variables, images, readable):
            found = model.apply(variables, images, method="encode_images")
            return jnp.where(readable[:, None], found, jnp.nan)

        def encode_texts(variables, tokens):
            return model.apply(variables, tokens, method="encode_texts")

        self._encode_images = jax.jit(
            encode_images, in_shardings=(None, split, split), out_shardings=whole
        )
        self._encode_texts = jax.jit(
            encode_texts, in_shardings=(None, split), out_shardings=whole
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
          unreadable: filled with what is wrong with each picture that this process
            cannot read, by its place, and the picture's row is NaN on all; None makes
            it an error.

        Returns:
          float32 of unit length.

        Raises:
          InputError: one of them cannot be read; names it.
        """
        side, limit = self._preprocess.image_size, self._preprocess.max_pixels
        split, size = batch_split(self._mesh), self._batch_size
        own, scratch = _own_rows(self._mesh, size), Scratch()

        def prepare(index: int) -> np.ndarray | None:
            if index >= len(pictures):
                return None
            try:
                picture = read_picture(
                    pictures[index], f"picture {index}", limit, scratch=scratch
                )
            except InputError as error:
                if unreadable is None:
                    raise
                unreadable[index] = str(error)
                return None
            return evaluation_image(picture, self._preprocess)

        def batches() -> Iterator[tuple[jax.Array, jax.Array]]:
            for start in range(0, len(pictures), size):
                found = list(pool.map(prepare, start + own))
                images = np.zeros((len(own), side, side, 3), np.uint8)
                readable = np.array([image is not None for image in found])
                for row in np.flatnonzero(readable):
                    images[row] = found[row]
                yield tuple(
                    jax.make_array_from_process_local_data(
                        split, rows, (size, *rows.shape[1:])
                    )
                    for rows in (images, readable)
                )

        # Threads: decoding and resizing let each other run.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return self._embed(self._encode_images, batches(), len(pictures))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts (N) as (N, D) float32 of unit length."""
        padding = [""] * (-len(texts) % self._batch_size)
        tokens = (
            tf.data.Dataset.from_tensor_slices([*texts, *padding])
            .batch(self._batch_size)
            .map(self._tokenizer)
        )
        spread = (
            (
                jax.make_array_from_callback(
                    batch.shape, batch_split(self._mesh), batch.__getitem__
                ),
            )
            for batch in tokens.as_numpy_iterator()
        )
        return self._embed(self._encode_texts, spread, len(texts))

    def _embed(self, encode, batches: Iterator[tuple], count: int) -> np.ndarray:
        """The first `count` rows of what is encoded of the batches' arrays."""
        embeddings = []
        for arrays in batches:
            embeddings.append(encode(self._variables, *arrays))
            # The batch before is waited for, so that this one runs while another is
            # read.
            embeddings[-2:-1] = map(np.asarray, embeddings[-2:-1])
        return np.concatenate(embeddings)[:count]


def _own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of a batch that this process's devices hold, in order."""
    places = batch_split(mesh).addressable_devices_indices_map((batch_size,))
    held = [np.arange(batch_size)[place] for place in places.values()]
    return np.unique(np.concatenate(held))


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
