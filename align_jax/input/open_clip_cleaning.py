"""The cleaning of texts that the config of an OpenCLIP folder names."""

import os
from collections.abc import Mapping
from typing import Any

from align_jax import places
from align_jax.errors import InputError

OPEN_CLIP_CONFIG = "open_clip_config.json"


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


SPACES = [
    _replace(r"\s+", " "),
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
LOWER = {"type": "Lowercase"}
# Normalizers of tokenizer.json by the name of the cleaning. OpenCLIP also repairs texts
# with the package ftfy and undoes HTML's escapes.
CLEANINGS: dict[str, list[dict[str, Any]]] = {
    "canonicalize": [
        _replace("_", " "),
        _replace(r"[!-/:-@\[-`{-~]", ""),  # ASCII punctuation
        LOWER,
        *SPACES,
    ],
    "lower": [*SPACES, LOWER],
    "whitespace": SPACES,
}


def read_cleaning(folder: str) -> str | None:
    """Returns the name of a folder's cleaning, a key of `CLEANINGS`.

    None if the config names none, or the folder is none of OpenCLIP's.

    Raises:
      InputError: the config names a cleaning or an option that we do not know.
    """
    path = os.path.join(folder, OPEN_CLIP_CONFIG)
    if not places.exists(path):
        return None
    text = places.read_object(path, {"model_cfg": dict})["model_cfg"].get("text_cfg")
    options = text.get("tokenizer_kwargs") if isinstance(text, Mapping) else None
    source = f"{path}: model_cfg.text_cfg.tokenizer_kwargs"
    given = {} if options is None else options
    if not isinstance(given, Mapping) or {*given} - {"clean"}:
        raise InputError(f"{source} is {options!r}; ours is only 'clean'")
    if (clean := given.get("clean")) is not None and clean not in CLEANINGS:
        known = ", ".join(CLEANINGS)
        raise InputError(f"{source}.clean is {clean!r}; ours are {known}")
    return clean


def add_cleaning(described: Mapping[str, Any], cleaning: str) -> dict[str, Any]:
    """Puts a cleaning before the normalizer of a tokenizer.json's content."""
    steps = CLEANINGS[cleaning]
    if own := described.get("normalizer"):
        steps = [*steps, own]
    normalizer = {"type": "Sequence", "normalizers": steps}
    return {**described, "normalizer": normalizer}
