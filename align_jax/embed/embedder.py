"""Runs a trained model on pictures and texts, in batches over all devices."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax.devices.mesh import batch_split, place_array, replicated
from align_jax.embed.encoder import Encoder, UnreadableError
from align_jax.embed.programs import EmbedPrograms
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig, evaluation_image
from align_jax.input.scratch import Scratch
from align_jax.input.tokenizer import Tokenizer
from align_jax.models.classifier import Classifier
from align_jax.models.dual_encoder import DualEncoder
from align_jax.pictures import Picture, read_picture
from align_jax.texts import check_text


class Embedder:
    """Embeds pictures and texts with a model's preprocessing and tokenizer.

    Every process passes the same inputs and gets all embeddings. If the pictures are a
    sequence, a process reads only those that its devices embed. The last batch is
    padded, and the padding's outputs are dropped. `load` must be called first.
    """

    def __init__(
        self,
        model: DualEncoder | Classifier,
        tokenizer: Tokenizer | None,
        preprocess: PreprocessConfig,
        mesh: Mesh,
        batch_size: int = 128,
    ) -> None:
        """Prepares the encoders; each compiles on first use.

        Args:
          model: dual encoder or classifier.
          tokenizer: tokenizer of the text tower; None for a classifier.
          preprocess: sizes and resampling of evaluation pictures.
          mesh: the devices.
          batch_size: pictures or texts in a batch, rounded up to a multiple of the
            number of devices.

        Raises:
          InputError: the batch size is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; wanted 1 or more")
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._mesh = mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._variables: dict = {}
        self._programs = EmbedPrograms(model, mesh)

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self._mesh

    def load(self, variables: Mapping[str, Any]) -> None:
        """Sets the variables to embed with: "params" and, if any, "batch_stats".

        NumPy's arrays are put on the devices, once.
        """
        whole = replicated(self._mesh)

        def place(array: Any) -> Any:
            own = isinstance(array, np.ndarray)
            return place_array(array, whole) if own else array

        self._variables = {"batch_stats": {}, **jax.tree.map(place, dict(variables))}
        self._programs.forget()

    def prepare(self) -> None:
        """Begins to compile the embeddings of pictures and texts, in two threads.

        Their first use waits until they are compiled. `load` must be called before.
        """
        inputs: dict[str, tuple] = {"encode_images": self._image_shapes()}
        if self._tokenizer is not None:
            tokens = self._tokenizer.encode([""] * self._batch_size)
            inputs["encode_texts"] = (jax.ShapeDtypeStruct(tokens.shape, tokens.dtype),)
        self._programs.prepare(self._variables, inputs)

    def encode_images(
        self, pictures: Iterable[Picture], unreadable: dict[int, str] | None = None
    ) -> np.ndarray:
        """Embeds N pictures; N may be 0.

        Args:
          pictures: pictures in any form that `read_picture` takes.
          unreadable: dict to fill with the reason for each picture that this process
            cannot read, by the picture's index. The picture's row is then NaN on every
            process. If None, an unreadable picture raises an error.

        Returns:
          (N, D) float32 of unit length.

        Raises:
          InputError: a picture cannot be read and `unreadable` is None; the message
            names the picture.
        """
        return self._all_images("encode_images", pictures, unreadable)

    def stream_images(
        self,
        pictures: Iterable[Picture],
        unreadable: dict[int, str] | None = None,
        seen: Callable[[int, np.ndarray], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the rows of `encode_images` in order, one batch at a time.

        The pictures of a batch are read while the devices compute the one before. An
        error is raised when the batch of its picture is read.

        Args:
          pictures: argument of `encode_images`.
          unreadable: argument of `encode_images`.
          seen: function that is called with the index of each picture that this process
            reads, and its pixels as `read_picture` returns them. It is called in
            several threads, before the picture's row is yielded, and must not keep the
            pixels.
        """
        return self._run_images("encode_images", pictures, unreadable, seen)

    def image_features(self, pictures: Iterable[Picture]) -> np.ndarray:
        """Returns the image tower's output before any projection, (N, W) float32."""
        return self._all_images("image_features", pictures)

    def classify_images(self, pictures: Iterable[Picture]) -> np.ndarray:
        """Returns a classifier's logits, (N, K) float32.

        Raises:
          InputError: the model is a dual encoder, or a picture cannot be read.
        """
        if self._tokenizer is not None:
            raise InputError("a dual encoder has no head; wanted a classifier")
        return self._all_images("classify_images", pictures)

    def _all_images(
        self,
        method: str,
        pictures: Iterable[Picture],
        unreadable: dict[int, str] | None = None,
    ) -> np.ndarray:
        if batches := list(self._run_images(method, pictures, unreadable)):
            return np.concatenate(batches)
        return self._no_rows(method, *self._image_shapes())

    def _image_shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch of pixels and of its readable rows."""
        size, side = self._batch_size, self._preprocess.image_size
        images = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8)
        return images, jax.ShapeDtypeStruct((size,), bool)

    def _run_images(
        self,
        method: str,
        pictures: Iterable[Picture],
        unreadable: dict[int, str] | None,
        seen: Callable[[int, np.ndarray], None] | None = None,
    ) -> Iterator[np.ndarray]:
        side, limit = self._preprocess.image_size, self._preprocess.max_pixels
        split, size = batch_split(self._mesh), self._batch_size
        own, buffer = _own_rows(self._mesh, size), partial(Scratch().take, "pixels")

        def prepare(
            place: int, get: Callable[[int], Picture], row: int
        ) -> np.ndarray | None:
            index = place + row
            name = f"picture {index}"
            try:
                picture = read_picture(get(row), name, limit, buffer=buffer)
            except InputError as error:
                if unreadable is None:
                    reason = str(error).removeprefix(name)
                    raise UnreadableError(index, reason) from error
                unreadable[index] = str(error)
                return None
            if seen is not None:
                seen(index, picture)
            return evaluation_image(picture, self._preprocess)

        def batches() -> Iterator[tuple[int, tuple]]:
            place = 0
            for count, get in _batches(pictures, size):
                rows = own[own < count].tolist()
                found = list(pool.map(partial(prepare, place, get), rows))
                images = np.zeros((len(own), side, side, 3), np.uint8)
                readable = np.zeros(len(own), bool)
                for row, image in enumerate(found):
                    if image is not None:
                        images[row], readable[row] = image, True
                arrays = (
                    jax.make_array_from_process_local_data(
                        split, local, (size, *local.shape[1:])
                    )
                    for local in (images, readable)
                )
                yield count, tuple(arrays)
                place += count

        # Threads suffice: decoding and resizing release the interpreter lock.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            yield from self._embed(method, batches())

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts (N) as (N, D) float32 of unit length; N may be 0.

        Raises:
          InputError: the model is a classifier, which has no text tower, or `texts` is
            one text instead of several.
        """
        return self._run_texts("encode_texts", texts)

    def project_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Works as `encode_texts`, but does not scale to unit length."""
        return self._run_texts("project_texts", texts)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the text tower's output before its projection, (N, W) float32."""
        return self._run_texts("text_features", texts)

    def _run_texts(self, method: str, texts: Sequence[str]) -> np.ndarray:
        if self._tokenizer is None:
            raise InputError("a classifier has no text tower; wanted a dual encoder")
        if isinstance(texts, str):
            raise InputError(f"texts is {texts!r}; wanted a list of texts")
        for index, text in enumerate(texts):
            check_text(text, f"text {index}")
        size, split = self._batch_size, batch_split(self._mesh)
        if not len(texts):
            return self._no_rows(method, self._tokenizer.encode([""] * size))
        padded = [*texts, *[""] * (-len(texts) % size)]
        parts = (padded[start : start + size] for start in range(0, len(padded), size))
        tokens = map(self._tokenizer.encode, parts)
        batches = ((size, (place_array(batch, split),)) for batch in tokens)
        return np.concatenate(list(self._embed(method, batches)))[: len(texts)]

    def _no_rows(self, method: str, *arrays: Any) -> np.ndarray:
        """Returns the result for no input, (0, D), without computing anything."""
        encode = self._programs.jitted[method]
        found = jax.eval_shape(encode, self._variables, *arrays)
        return np.zeros((0, *found.shape[1:]), found.dtype)

    def _embed(
        self, method: str, batches: Iterator[tuple[int, tuple]]
    ) -> Iterator[np.ndarray]:
        """Yields the encoded rows of each batch without those of the padding."""
        before = None
        for count, arrays in batches:
            encode = self._programs.get(method)
            now = (encode(self._variables, *arrays), count)
            # Wait for the batch before this one only, so that the devices compute this
            # batch while the next one is read.
            if before is not None:
                yield np.asarray(before[0])[: before[1]]
            before = now
        if before is not None:
            yield np.asarray(before[0])[: before[1]]


def _batches(
    pictures: Iterable[Picture], size: int
) -> Iterator[tuple[int, Callable[[int], Picture]]]:
    """Yields the number of pictures in each batch, and a function from row to picture.

    Rows count from 0 in each batch. The pictures of a sequence are read only when the
    function asks for them.
    """
    if isinstance(pictures, Sequence):
        for start in range(0, len(pictures), size):
            count = min(size, len(pictures) - start)
            yield count, partial(_nth, pictures, start)
        return
    waiting = iter(pictures)
    while batch := list(itertools.islice(waiting, size)):
        yield len(batch), batch.__getitem__


def _nth(pictures: Sequence[Picture], start: int, row: int) -> Picture:
    return pictures[start + row]


def _own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch that this process's devices hold, in order."""
    places = batch_split(mesh).addressable_devices_indices_map((batch_size,))
    held = [np.arange(batch_size)[place] for place in places.values()]
    return np.unique(np.concatenate(held))


def class_embeddings(
    embedder: Encoder, prompts: Sequence[Sequence[str]], unit: bool = True
) -> np.ndarray:
    """Embeds K classes as the mean embeddings of their prompts.

    ALIGN's paper does not say whether prompts are scaled to unit length before they are
    averaged (arXiv 2102.05918, section 5.2). Classes of the same prompts have the same
    embedding, bit for bit.

    Args:
      embedder: encoder of the prompts.
      prompts: prompts of each class, one or more.
      unit: whether to scale the prompts' embeddings to unit length before averaging.

    Returns:
      (K, D) of unit length, for both values of `unit`.

    Raises:
      InputError: no class, or a class without a prompt.
    """
    if not prompts or not all(map(len, prompts)):
        raise InputError(
            f"{len(prompts)} classes have {[*map(len, prompts)][:9]} prompts; wanted"
            " one class or more, each with one prompt or more"
        )
    encode = embedder.encode_texts if unit else embedder.project_texts
    rows: dict[str, int] = {}  # text -> row, since the same text is embedded once
    order = [rows.setdefault(t, len(rows)) for texts in prompts for t in texts]
    flat = encode([*rows])[order]
    ends = np.cumsum([len(texts) for texts in prompts])[:-1]
    means = np.stack([rows.mean(0) for rows in np.split(flat, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)
