"""The fields that the config of a run takes over from the model it starts from."""

import dataclasses
import os
from typing import Any

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.stored_tokenizer import VOCABULARY_FILE
from align_jax.input.tokenizer import Tokenizer, find_published, open_tokenizer
from align_jax.weights.folder import is_dual_encoder, is_model
from align_jax.weights.source import find_run, open_weights


@dataclasses.dataclass(frozen=True)
class Start:
    """The fields that a config takes over from a model.

    Attributes:
      model: fields of the model.
      preprocess: fields of its preprocessing.
      vocabulary: path of its tokenizer; "" if it has none.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    vocabulary: str


def describe_start(source: str) -> Start:
    """Reads the fields that a config takes over from a model.

    Args:
      source: a source of a dual encoder or classifier, see `open_weights`.

    Raises:
      InputError: the source cannot be read, is empty, has a single tower, or has a
        tokenizer that no single file describes.
    """
    if not source:
        raise InputError(
            "this config wants the folder of a model, as in --config=FILE.py:FOLDER"
        )
    weights = open_weights(source)
    if not is_model(weights) or weights.preprocess is None:
        raise InputError(
            f"{source} is one {weights.kind}; wanted a complete model, whose"
            " preprocessing is known"
        )
    vocabulary = ""
    if is_dual_encoder(weights):
        vocabulary = _find_tokenizer(source)
        _check_tokenizer(weights.tokenizer, vocabulary, source)
    return Start(
        dataclasses.asdict(weights.config),
        dataclasses.asdict(weights.preprocess),
        vocabulary,
    )


def _check_tokenizer(tokenizer: Tokenizer | None, path: str, source: str) -> None:
    """Raises InputError if a run that opens a file has other ids than the model.

    A folder of OpenCLIP is one example if its config names a cleaning of texts.

    Args:
      tokenizer: tokenizer of the model.
      path: path of the file.
      source: source of the model, for the message.
    """
    if tokenizer is None:
        return
    if open_tokenizer(path, tokenizer.max_tokens).digest != tokenizer.digest:
        raise InputError(
            f"{path} alone gives other ids than the model of {source}; start from the"
            f" folder NEW of python -m align_jax.convert --from={source} --to=NEW"
        )


def _find_tokenizer(source: str) -> str:
    """Returns the path of the tokenizer of a model, in our form or another."""
    place = places.resolve(source)
    place = find_run(place) or place
    own = os.path.join(place, VOCABULARY_FILE)
    return own if places.exists(own) else find_published(place)
