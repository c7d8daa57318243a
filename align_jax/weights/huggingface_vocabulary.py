"""Reads the vocabulary of a Hugging Face folder whose tokenizer is BERT's uncased one.

Other tokenizers are refused: the same text would have other ids than in the training of
the weights.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import (
    CLS,
    PAD,
    PRE_TOKENIZER,
    SEP,
    SPECIAL,
    UNKNOWN,
    read_tokens,
)
from align_jax.texts import NONE

# Values of the fields of tokenizer_config.json with which the ids are ours. A field
# that is absent or null has the first value.
SETTINGS: dict[str, tuple] = {
    "do_lower_case": (True,),
    "strip_accents": (True,),
    "tokenize_chinese_chars": (True,),
    "do_basic_tokenize": (True,),
    "never_split": ([],),
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "tokenizer_class": (
        "BertTokenizer",
        "BertTokenizerFast",
        # Classes that tokenizer.json describes.
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    ),
}
# Fields that name special tokens, with the only token that each may name.
SPECIAL_FIELDS = {
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "cls_token": CLS,
    "sep_token": SEP,
}


def read_uncased(folder: pathlib.Path, rows: int, max_tokens: int) -> WordPiece:
    """Reads vocab.txt or tokenizer.json.

    Args:
      folder: folder of the model.
      rows: number of rows of the word embedding.
      max_tokens: length of the token sequences.

    Returns:
      The tokenizer. Its normalisation is NONE, except in a folder that `write_align`
      wrote.

    Raises:
      InputError: the folder has neither file, or both with different tokens; the
        tokenizer is not BERT's uncased one; or there are more tokens than `rows`.
    """
    check_uncased(folder)
    paths = [folder / "vocab.txt", folder / "tokenizer.json"]
    present = [path for path in paths if path.exists()]
    if not present:
        raise InputError(f"{folder} has neither vocab.txt nor tokenizer.json")
    found = [read_tokens(str(path)) for path in present]
    vocabulary, _ = found[0]
    last, normalisation = found[-1]
    if vocabulary != last:
        raise InputError(
            f"{present[0]} and {present[-1]} hold different tokens"
            f" ({len(vocabulary)} and {len(last)})"
        )
    if len(vocabulary) > rows:
        raise InputError(
            f"{present[0]} has {len(vocabulary)} tokens, but the checkpoint's word"
            f" embedding has {rows} rows"
        )
    return WordPiece(vocabulary, max_tokens, str(folder), normalisation or NONE)


def check_uncased(folder: pathlib.Path) -> None:
    """Checks the settings of a folder's tokenizer in all its JSON files.

    Raises:
      InputError: a setting with which the ids would not be ours; the message has the
        file and the field.
    """
    path = folder / "tokenizer_config.json"
    described = read_optional(path)
    for name, allowed in SETTINGS.items():
        value = described.get(name)
        if value is not None and value not in allowed:
            raise InputError(
                f"{path}: {name} is {value!r}; ours is {allowed[0]!r}, as in an uncased"
                " BERT"
            )
    _check_special(described, path)
    added = described.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise InputError(f"{path}: added_tokens_decoder is {added!r}; wanted an object")
    _check_added(list(added.values()), path)

    path = folder / "special_tokens_map.json"
    _check_special(read_optional(path), path)

    path = folder / "added_tokens.json"
    names = [{"content": name} for name in read_optional(path)]
    _check_added(names, path)

    path = folder / "tokenizer.json"
    described = read_optional(path)
    _check_added(described.get("added_tokens") or [], path)
    splitter = described.get("pre_tokenizer")
    if isinstance(splitter, dict) and splitter.get("type") != PRE_TOKENIZER:
        raise InputError(
            f"{path}: pre_tokenizer is {splitter.get('type')!r}; ours is"
            f" {PRE_TOKENIZER!r}"
        )


def _check_special(described: Mapping[str, Any], path: pathlib.Path) -> None:
    """Checks the special tokens; each is a text, or an object with its `content`."""
    for name, wanted in SPECIAL_FIELDS.items():
        value = described.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if content is not None and content != wanted:
            raise InputError(f"{path}: {name} is {content!r}; ours is {wanted!r}")


def _check_added(tokens: Any, path: pathlib.Path) -> None:
    """Refuses tokens that Hugging Face finds in a text before it is split into words.

    Special tokens are none of these for us: a text cannot hold them, see `tokenizer`.
    """
    if not isinstance(tokens, list) or not all(isinstance(t, dict) for t in tokens):
        raise InputError(f"{path} has added tokens that are no list of objects")
    others = [
        token.get("content")
        for token in tokens
        if not token.get("special") and token.get("content") not in SPECIAL
    ]
    if others:
        raise InputError(
            f"{path} adds tokens to BERT's vocabulary, which we do not:"
            f" {', '.join(map(repr, others[:9]))}"
        )


def read_optional(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; an absent file is an empty one."""
    return places.read_object(path) if path.exists() else {}
