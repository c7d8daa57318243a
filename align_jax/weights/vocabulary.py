"""The copy of a vocabulary in a folder of weights or of a run."""

import os

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.tokenizer import Tokenizer, read_vocabulary

VOCABULARY_FILE = "vocabulary.txt"


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
    copy = os.path.join(workdir, VOCABULARY_FILE)
    return copy if places.exists(copy) else named


def check_copy(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Checks a run's vocabulary against the copy in its workdir, if there is one.

    Args:
      workdir: path or URL of the run's folder.
      tokenizer: tokenizer of the run; None for a run without texts.

    Raises:
      InputError: the copy holds other tokens, or it cannot be read.
    """
    copy = os.path.join(workdir, VOCABULARY_FILE)
    if tokenizer is None or not places.exists(copy):
        return
    first = tuple(read_vocabulary(copy))
    if first != tokenizer.tokens:
        raise InputError(
            f"config.vocabulary has {tokenizer.size} tokens and is not the vocabulary"
            f" that this run began with, {copy} of {len(first)}; give another workdir"
            " or go back to that vocabulary"
        )


def keep_copy(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Writes a run's vocabulary to its workdir, unless it is there already.

    A vocabulary with line breaks in its tokens, which a tokenizer.json can hold, is not
    written: the copy has one token a line.

    Args:
      workdir: path or URL of the run's folder, which passed `check_copy`.
      tokenizer: tokenizer of the run; None for a run without texts.
    """
    copy = os.path.join(workdir, VOCABULARY_FILE)
    if tokenizer is None or {"\n", "\r"} & {*"".join(tokenizer.tokens)}:
        return
    if not places.exists(copy):
        write_vocabulary(tokenizer.tokens, copy)
