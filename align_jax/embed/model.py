"""A trained dual encoder that embeds pictures and texts and classifies pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from align_jax.devices.mesh import make_mesh
from align_jax.embed.embedder import Embedder, class_embeddings
from align_jax.errors import InputError
from align_jax.models.dual_encoder import temperature_of
from align_jax.models.parameters import unflatten
from align_jax.pictures import Picture
from align_jax.texts import check_template
from align_jax.weights.folder import (
    Weights,
    fitting_tokenizer,
    is_dual_encoder,
    is_model,
)
from align_jax.weights.narrow import narrow
from align_jax.weights.source import open_weights

TEMPLATE = "a photo of a {}"


class Model:
    """A dual encoder with its preprocessing and tokenizer, on all devices.

    Attributes:
      weights: weights that the model was made from.
      width: width D of the embeddings.
      temperature: the learned softmax temperature.
      embedder: encoder with the model's parameters, for evaluators.
    """

    def __init__(self, weights: Weights, batch_size: int = 128) -> None:
        """Prepares the towers; each compiles on first use.

        Args:
          weights: weights of a dual encoder.
          batch_size: pictures or texts that all devices together embed at a time.

        Raises:
          InputError: the weights are those of a single tower or of a classifier, or the
            batch size is below 1.
        """
        if not is_dual_encoder(weights):
            raise InputError(f"wanted a dual encoder, found one {weights.kind}")
        self.weights = weights
        self.temperature = float(temperature_of(unflatten(weights.variables)["params"]))
        self.width = weights.config.width
        self.embedder = make_embedder(weights, batch_size)

    def encode_images(
        self, images: Sequence[Picture], unreadable: dict[int, str] | None = None
    ) -> np.ndarray:
        """Embeds pictures as (N, D) float32 of unit length.

        Args:
          images: N pictures, none or more, each a path, a URL, a file's bytes, a PIL
            image or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
          unreadable: dict to fill with the reason for each picture that cannot be read,
            by the picture's index; the picture's row is then NaN. If None, an
            unreadable picture raises an error.

        Raises:
          InputError: a picture cannot be read and `unreadable` is None; the message
            names the picture.
        """
        return self.embedder.encode_images(images, unreadable)

    def stream_images(
        self,
        images: Iterable[Picture],
        unreadable: dict[int, str] | None = None,
        seen: Callable[[int, np.ndarray], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the rows of `encode_images` in order, one batch at a time.

        The arguments are those of `Embedder.stream_images`.
        """
        return self.embedder.stream_images(images, unreadable, seen)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds N texts, none or more, as (N, D) float32 of unit length."""
        return self.embedder.encode_texts(texts)

    def classify(
        self,
        images: Sequence[Picture],
        class_names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
    ) -> np.ndarray:
        """Classifies pictures without training (arXiv 2102.05918, section 5.2).

        Args:
          images: N pictures, as for `encode_images`.
          class_names: the K names of the classes.
          templates: sentences with a {} for the name; a class is the mean of its
            sentences' embeddings, see `class_embeddings`.

        Returns:
          (N, K) float32 probabilities: softmax over classes of cosine / temperature.

        Raises:
          InputError: a picture cannot be read (the message names it), there is no class
            or no template, or `check_template` refuses a template.
        """
        for name, texts in (("class_names", class_names), ("templates", templates)):
            if isinstance(texts, str):
                raise InputError(f"{name} is {texts!r}; wanted a list of texts")
        for template in templates:
            check_template(template, "templates")
        prompts = [[t.format(name) for t in templates] for name in class_names]
        classes = class_embeddings(self.embedder, prompts)  # (K, D)
        logits = self.encode_images(images) @ classes.T / self.temperature
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)


def make_embedder(weights: Weights, batch_size: int = 128) -> Embedder:
    """Makes the embedder of a dual encoder or a classifier, on all devices.

    Args:
      weights: weights of the model.
      batch_size: pictures or texts that all devices together embed at a time.

    Raises:
      InputError: the weights are those of a single tower, or the batch size is below 1.
    """
    if not is_model(weights) or weights.preprocess is None:
        raise InputError(
            f"wanted a dual encoder or a classifier, found one {weights.kind}"
        )
    tokenizer = fitting_tokenizer(weights) if is_dual_encoder(weights) else None
    embedder = Embedder(
        weights.config.build(),
        tokenizer,
        weights.preprocess,
        make_mesh(),
        batch_size=batch_size,
    )
    embedder.load(unflatten(weights.variables))
    return embedder


def load(source: str, batch_size: int = 128, width: int | None = None) -> Model:
    """Loads a dual encoder; see `align_jax.load`."""
    return Model(narrow(open_weights(source), width), batch_size)
