"""Reads the parts of Hugging Face's tokenizer.json that decide a text's ids.

The file's model is a BPE or a Unigram model; `wordpiece_files` reads those of BERT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.errors import InputError
from align_jax.ranges import INT32

MODELS = ("BPE", "Unigram")
# Parts of a tokenizer.json that ids depend on. Decoders are not used, and
# `LibraryTokenizer.files` writes padding and truncation.
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
LOWERCASE = {"type": "Lowercase"}
# Classes of transformers that put it before a normalizer that lacks it.
LOWERCASING = ("Siglip2Tokenizer", "Siglip2TokenizerFast")


def read_parts(
    described: Mapping[str, Any], settings: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Returns the `PARTS` of a tokenizer.json, in one form for all versions.

    Args:
      described: content of the file.
      settings: fields of tokenizer_config.json.
      source: path of the file, for messages.

    Raises:
      InputError: the model is neither BPE nor Unigram, or is broken, or texts are
        padded or cut at their beginning.
    """
    model = described.get("model")
    model = model if isinstance(model, dict) else {}
    kind = model.get("type")
    if kind not in MODELS:
        raise InputError(
            f"the model of {source} is {kind!r}; wanted WordPiece, {', '.join(MODELS)}"
        )
    _check_directions(described, settings, source)
    parts: dict[str, Any] = {"version": "1.0"}
    parts |= {name: described.get(name) for name in PARTS}
    parts["added_tokens"] = parts["added_tokens"] or []
    if kind == "BPE":
        parts["model"] = _read_bpe(model, source)
    if settings.get("tokenizer_class") in LOWERCASING:
        parts["normalizer"] = _lowercased(parts["normalizer"])
    return parts


def ids_of(parts: Mapping[str, Any], source: str) -> dict[str, int]:
    """Returns the ids of all tokens; InputError if the file does not list them."""
    try:
        found = parts["model"]["vocab"]
        if parts["model"]["type"] == "Unigram":
            found = {piece: number for number, (piece, _) in enumerate(found)}
        ids = dict(found)
        for token in parts["added_tokens"]:
            content, number, special = (token[n] for n in ("content", "id", "special"))
            if not isinstance(special, bool):
                raise TypeError(f"special is {special!r}")
            if ids.setdefault(content, number) != number:
                raise ValueError(f"{content!r} has the ids {ids[content]} and {number}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} has a broken list of tokens: {error!r}") from error
    is_whole = all(type(n) is int and 0 <= n < INT32 for n in ids.values())
    if not ids or not is_whole or not all(isinstance(token, str) for token in ids):
        raise InputError(
            f"{source} has no tokens, or one that is no text with a whole number as id"
        )
    return ids


def id_of(ids: Mapping[str, int], token: str, source: str) -> int:
    """Returns the id of a token that the settings name; InputError without one."""
    if token not in ids:
        raise InputError(f"{source} has no token {token!r}, which its settings name")
    return ids[token]


def put_before(steps: Sequence[Mapping[str, Any]], normalizer: Any) -> Any:
    """Returns a normalizer that takes some steps before those of another one.

    Args:
      steps: normalizers.
      normalizer: the other one; None for none.
    """
    own: Any = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        own = normalizer.get("normalizers")
        if not isinstance(own, list):
            return normalizer  # which the library refuses
    return {"type": "Sequence", "normalizers": [*steps, *own]}


def _lowercased(normalizer: Any) -> Any:
    """Returns a normalizer that begins with lower-casing."""
    if normalizer is None:
        return LOWERCASE
    found = put_before([LOWERCASE], normalizer)
    is_lower = found is not normalizer and found["normalizers"][1:2] == [LOWERCASE]
    return normalizer if is_lower else found


def _read_bpe(model: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns a BPE model with its merges as pairs.

    Early files have merges as texts with a space.

    Raises:
      InputError: the merges are no pairs, a field has another type, or ids are drawn at
        random.
    """
    merges = model.get("merges")
    pairs: list[Any] = [
        merge.split(" ") if isinstance(merge, str) else merge
        for merge in (merges if isinstance(merges, list) else [None])
    ]
    for pair in pairs:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(token, str) for token in pair):
            raise InputError(f"{source} has no list of merges of two tokens each")
    for name in ("unk_token", "continuing_subword_prefix"):
        if not isinstance(model.get(name), str | None):
            raise InputError(
                f"the model of {source} has {name} {model[name]!r}; wanted a token"
            )
    prefix = model.get("continuing_subword_prefix") or ""
    if wrong := [pair for pair in pairs if not pair[1].startswith(prefix)]:
        raise InputError(
            f"{source} merges {wrong[0]}, but its continuing_subword_prefix is"
            f" {prefix!r}"
        )
    if model.get("dropout"):
        raise InputError(
            f"the model of {source} has dropout {model['dropout']!r}, with which a text"
            " has other ids each time; wanted null"
        )
    return dict(model) | {"merges": pairs}


def _check_directions(
    described: Mapping[str, Any], settings: Mapping[str, Any], source: str
) -> None:
    """Raises InputError if tokenizer.json pads or cuts texts at their beginning.

    As in transformers, a side in the settings counts instead.
    """
    for name in ("padding", "truncation"):
        found = described.get(name)
        direction = found.get("direction") if isinstance(found, dict) else None
        if settings.get(f"{name}_side") is None and direction not in (None, "Right"):
            raise InputError(
                f"{source}: {name}.direction is {direction!r}; ours is 'Right'"
            )
