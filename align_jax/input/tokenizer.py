"""The contract of tokenizers, and the choice of a tokenizer by its file.

Every tokenizer turns a text into a row of ids of one length, in Python or inside
tf.data, with the same ids in both. A text cannot hold special tokens: what looks like
one in a text is plain text.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from align_jax import places
from align_jax.errors import InputError
from align_jax.input import clip_files, library_tokenizer, sentence_pieces
from align_jax.input.hub_settings import read_settings
from align_jax.input.stored_tokenizer import (
    MODEL_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
)
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import MODEL, read_tokens

if TYPE_CHECKING:
    import tensorflow as tf


class Tokenizer(Protocol):
    """Contract of a tokenizer; the files that store it decide its class.

    Attributes:
      size: number of ids, that is one more than the largest.
      max_tokens: length L of the token sequences, special tokens included.
      pad_token: id of padding, which fills a sequence at its end.
      end_token: id of the token that ends a text; a text that is cut keeps it. None for
        a tokenizer without one.
      digest: SHA-256, in hexadecimal digits, of everything that ids depend on except
        `max_tokens`.
    """

    size: int
    max_tokens: int
    pad_token: int
    end_token: int | None
    digest: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenizes texts (B) to int32 ids (B, L), without TensorFlow.

        Raises:
          InputError: a text holds half of a surrogate pair.
        """

    def __call__(self, texts: "tf.Tensor") -> "tf.Tensor":
        """Tokenizes UTF-8 texts (B,) to the ids (B, L) of `encode`, inside tf.data.

        Bytes that are not UTF-8 are dropped.
        """

    def shortened(self, max_tokens: int) -> Self:
        """Returns this tokenizer with another length of the token sequences."""

    def files(self) -> dict[str, bytes]:
        """Returns the files that store this tokenizer, by their names in a folder.

        `open_tokenizer` reads the last of them.
        """

    def exported(self) -> dict[str, bytes]:
        """Returns the files from which other programs get the ids, by their names."""

    def __str__(self) -> str:
        """Returns the number of ids and the kind of the tokenizer, for messages."""


# Files that may store a tokenizer in a run's folder or beside weights; one is there.
STORED = (VOCABULARY_FILE, TOKENIZER_FILE, MODEL_FILE)
# Files of a tokenizer in a Hugging Face folder; the first that exists is read. SigLIP's
# tokenizer reads spiece.model, and there is no exact tokenizer.json of it.
PUBLISHED = ("spiece.model", "tokenizer.json", MODEL_FILE, "vocab.json", "vocab.txt")


def open_tokenizer(
    path: str, max_tokens: int, settings: Mapping[str, Any] | None = None
) -> Tokenizer:
    """Opens the tokenizer that a file describes.

    Args:
      path: path or URL of the file:
        * a vocab.txt of BERT, one token a line,
        * a tokenizer.json of Hugging Face's library `tokenizers`: BERT's uncased
          WordPiece is computed here, BPE and Unigram by the library,
        * CLIP's vocab.json, with merges.txt beside it,
        * a .model file of SentencePiece.
      max_tokens: length of the token sequences, special tokens included.
      settings: fields of Hugging Face's tokenizer_config.json; None to read this file
        beside `path`, see `read_settings`. WordPiece needs none.

    Raises:
      InputError: the file is missing or broken, or of a tokenizer that is none of
        these; the message names the difference.
    """
    place = places.resolve(path)
    if not places.exists(place):
        raise InputError(f"no vocabulary at {path}; data.build writes one")
    if not path.endswith((".json", ".model")):
        return _open_wordpiece(path, max_tokens)
    if path.endswith(".model"):
        settings = read_settings(place) if settings is None else settings
        content = places.read_bytes(place)
        return sentence_pieces.open_model(content, max_tokens, path, settings)
    described = places.read_object(place)
    if clip_files.MARK in described:
        described = clip_files.build_tokenizer(described, place)
    model = described.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind in (None, MODEL["type"]):  # early files of BERT lack the type
        return _open_wordpiece(path, max_tokens)
    settings = read_settings(place) if settings is None else settings
    return library_tokenizer.open_described(described, max_tokens, path, settings)


def find_stored(folder: str) -> str | None:
    """Returns the path of the tokenizer in a folder of ours; None if there is none."""
    return _first(folder, STORED)


def find_published(folder: str) -> str:
    """Returns the path of the tokenizer in a Hugging Face folder.

    Raises:
      InputError: the folder has none of the files `PUBLISHED`.
    """
    found = _first(folder, PUBLISHED)
    if found is None:
        raise InputError(f"{folder} has no tokenizer: none of {', '.join(PUBLISHED)}")
    return found


def _first(folder: str, names: Sequence[str]) -> str | None:
    paths = [os.path.join(folder, name) for name in names]
    return next((path for path in paths if places.exists(path)), None)


def _open_wordpiece(path: str, max_tokens: int) -> WordPiece:
    vocabulary, normalisation = read_tokens(path)
    return WordPiece(vocabulary, max_tokens, path, normalisation)
