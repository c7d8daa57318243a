"""The copy of a vocabulary in a folder of weights or of a run."""

import os

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.tokenizer import Tokenizer, find_normalisation, open_tokenizer
from align_jax.weights.huggingface_tokenizer import write_tokenizer

VOCABULARY_FILE = "vocabulary.txt"
TOKENIZER_FILE = "tokenizer.json"  # instead, if lines of tokens do not suffice


def write_vocabulary(vocabulary: tuple[str, ...], path: places.Place) -> None:
    """Writes a vocabulary file, one token a line."""
    places.write_text(path, "".join(f"{token}\n" for token in vocabulary))


def find_vocabulary(workdir: str, named: str) -> str:
    """Returns the path of a run's vocabulary: its copy in the workdir if it has one.

    Args:
      workdir: path or URL of the run's folder.
      named: path in the run's config, for a run of an earlier version, whose folder has
        no copy.
    """
    return _find_copy(workdir) or named


def check_copy(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Checks a run's vocabulary against the copy in its workdir, if there is one.

    Args:
      workdir: path or URL of the run's folder.
      tokenizer: tokenizer of the run; None for a run without texts.

    Raises:
      InputError: the copy holds other tokens or another normalisation, or it cannot be
        read.
    """
    copy = _find_copy(workdir)
    if tokenizer is None or copy is None:
        return
    first = open_tokenizer(copy, tokenizer.max_tokens)
    if first.digest != tokenizer.digest:
        raise InputError(
            f"config.vocabulary has {tokenizer.size} tokens (normalisation"
            f" {tokenizer.normalisation}) and is not the vocabulary that this run began"
            f" with, {copy} of {first.size} ({first.normalisation}); give another"
            " workdir or go back to that vocabulary"
        )


def keep_copy(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Writes a run's vocabulary to its workdir, unless it is there already.

    It is a file of tokens, one a line. If a token has a line break, or the tokens do
    not imply the normalisation, it is a tokenizer.json.

    Args:
      workdir: path or URL of the run's folder, which passed `check_copy`.
      tokenizer: tokenizer of the run; None for a run without texts.
    """
    if tokenizer is None or _find_copy(workdir):
        return
    breaks = {"\n", "\r"} & {*"".join(tokenizer.tokens)}
    if breaks or tokenizer.normalisation != find_normalisation(tokenizer.tokens):
        path = os.path.join(workdir, TOKENIZER_FILE)
        places.write_json(path, write_tokenizer(tokenizer))
    else:
        write_vocabulary(tokenizer.tokens, os.path.join(workdir, VOCABULARY_FILE))


def _find_copy(workdir: str) -> str | None:
    """Returns the path of the copy in a workdir, or None if there is none."""
    for name in (VOCABULARY_FILE, TOKENIZER_FILE):
        if places.exists(path := os.path.join(workdir, name)):
            return path
    return None
