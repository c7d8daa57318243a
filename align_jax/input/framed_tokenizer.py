"""The common part of the tokenizers that a library computes."""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from align_jax.errors import InputError
from align_jax.texts import check_text

if TYPE_CHECKING:
    import tensorflow as tf


class Frame(NamedTuple):
    """The special tokens around the ids of a text.

    Attributes:
      first: ids before the text.
      last: ids after the text; the last of them is the end token.
      pad: id of padding.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    pad: int


class FramedTokenizer(ABC):
    """A tokenizer whose texts stand in a frame; keeps the contract `Tokenizer`.

    A text that is too long loses its last ids, never those of the frame.
    """

    def __init__(
        self, size: int, max_tokens: int, frame: Frame, content: str, source: str
    ) -> None:
        """Prepares what all these tokenizers have.

        Args:
          size: number of ids.
          max_tokens: length of the token sequences.
          frame: the special tokens.
          content: text that says all that the ids of a text depend on.
          source: origin of the tokenizer, for messages.

        Raises:
          InputError: a special token is no id, or the frame leaves no place for a text.
        """
        wrong = [t for t in (*frame.first, *frame.last, frame.pad) if t >= size]
        if wrong:
            raise InputError(
                f"{source} has {size} tokens, but a special token has id {wrong[0]}"
            )
        self.size = size
        self.frame = frame
        self.pad_token = frame.pad
        self.end_token = frame.last[-1] if frame.last else None
        self.source = source
        self.max_tokens = self._checked(max_tokens)
        lines = f"{content}\n{json.dumps(frame)}\n"
        self.digest = hashlib.sha256(lines.encode()).hexdigest()

    @abstractmethod
    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts, without special tokens."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Returns the files that store this tokenizer, by their names in a folder."""

    def exported(self) -> dict[str, bytes]:
        """Returns the files from which other programs get the ids, by their names."""
        return self.files()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenizes texts (B) to int32 ids (B, max_tokens).

        Raises:
          InputError: a text holds half of a surrogate pair.
        """
        for text in texts:
            check_text(text, "a text")
        first, last, pad = self.frame
        most = self.max_tokens - len(first) - len(last)
        ids = np.full((len(texts), self.max_tokens), pad, np.int32)
        for row, found in zip(ids, self.split(texts), strict=True):
            framed = [*first, *found[:most], *last]
            row[: len(framed)] = framed
        return ids

    def __call__(self, texts: "tf.Tensor") -> "tf.Tensor":
        """Tokenizes UTF-8 texts (B,) to the ids (B, max_tokens) of `encode`.

        Bytes that are not UTF-8 are dropped.
        """
        import tensorflow as tf

        def encode(found: np.ndarray) -> np.ndarray:
            return self.encode([text.decode(errors="ignore") for text in found])

        ids = tf.numpy_function(encode, [texts], tf.int32, stateful=False)
        return tf.ensure_shape(ids, (texts.shape[0], self.max_tokens))

    def shortened(self, max_tokens: int) -> Self:
        """Returns this tokenizer with another length of the token sequences."""
        other = copy.copy(self)
        other.max_tokens = self._checked(max_tokens)
        return other

    def _checked(self, max_tokens: int) -> int:
        """Returns a length; raises InputError if no token of a text has a place."""
        special = len(self.frame.first) + len(self.frame.last)
        if max_tokens <= special:
            raise InputError(
                f"sequences of {max_tokens} tokens have no place for a text beside the"
                f" {special} special tokens of {self.source}"
            )
        return max_tokens
