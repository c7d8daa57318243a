"""The copy of a tokenizer in a run's folder."""

import os

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.tokenizer import Tokenizer, find_stored, open_tokenizer


def find_vocabulary(workdir: str, named: str) -> str:
    """Returns the path of a run's vocabulary: its copy in the workdir if it has one.

    Args:
      workdir: path or URL of the run's folder.
      named: path in the run's config, for a run of an earlier version, whose folder has
        no copy.
    """
    return find_stored(workdir) or named


def check_copy(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Checks a run's vocabulary against the copy in its workdir, if there is one.

    Args:
      workdir: path or URL of the run's folder.
      tokenizer: tokenizer of the run; None for a run without texts.

    Raises:
      InputError: the copy gives other ids, or it cannot be read.
    """
    copy = find_stored(workdir)
    if tokenizer is None or copy is None:
        return
    first = open_tokenizer(copy, tokenizer.max_tokens)
    if first.digest != tokenizer.digest:
        raise InputError(
            f"config.vocabulary has {tokenizer} and is not the vocabulary that this run"
            f" began with, {copy} of {first}; give another workdir or go back to that"
            " vocabulary"
        )


def keep_copy(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Writes a run's tokenizer to its workdir, unless it is there already.

    Args:
      workdir: path or URL of the run's folder, which passed `check_copy`.
      tokenizer: tokenizer of the run; None for a run without texts.
    """
    if tokenizer is None or find_stored(workdir):
        return
    for name, content in tokenizer.files().items():
        places.write_bytes(os.path.join(workdir, name), content)
