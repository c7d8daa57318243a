"""The tokenizer of an OpenCLIP folder, with the cleaning that its config names."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.hub_settings import read_settings
from align_jax.input.library_tokenizer import open_described
from align_jax.input.stored_tokenizer import TOKENIZER_FILE
from align_jax.input.tokenizer import Tokenizer, find_published, open_tokenizer
from align_jax.input.tokenizer_json import LOWERCASE, put_before


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


SPACES = [
    _replace(r"\s+", " "),
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
# Normalizers of tokenizer.json by the name of the cleaning. OpenCLIP also repairs texts
# with the package ftfy and undoes HTML's escapes.
CLEANINGS: dict[str, list[dict[str, Any]]] = {
    "canonicalize": [
        _replace("_", " "),
        _replace(r"[!-/:-@\[-`{-~]", ""),  # ASCII punctuation
        LOWERCASE,
        *SPACES,
    ],
    "lower": [*SPACES, LOWERCASE],
    "whitespace": SPACES,
}


def open_cleaned(
    folder: pathlib.Path, options: Any, max_tokens: int, source: str
) -> Tokenizer:
    """Opens the tokenizer of a folder.

    Args:
      folder: the folder.
      options: `tokenizer_kwargs` of the config; None for none.
      max_tokens: length of the token sequences.
      source: dotted path of `options`, for messages.

    Raises:
      InputError: an option that we do not know, a cleaning without a tokenizer.json, or
        a reason of `open_tokenizer`.
    """
    given = {} if options is None else options
    if not isinstance(given, Mapping) or {*given} - {"clean"}:
        raise InputError(f"{source} is {options!r}; ours is only 'clean'")
    path = find_published(str(folder))
    if (clean := given.get("clean")) is None:
        return open_tokenizer(path, max_tokens)
    if not isinstance(clean, str) or clean not in CLEANINGS:
        known = ", ".join(CLEANINGS)
        raise InputError(f"{source}.clean is {clean!r}; ours are {known}")
    path = os.path.join(folder, TOKENIZER_FILE)
    described = places.read_object(path, {"model": dict})
    own = described.get("normalizer")
    described["normalizer"] = put_before(CLEANINGS[clean], own)
    return open_described(described, max_tokens, path, read_settings(path))
