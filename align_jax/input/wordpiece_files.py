"""Reads and writes the vocabularies of BERT's uncased models.

They are a vocab.txt, one token a line, or a tokenizer.json of Hugging Face's libraries,
which also states the normalisation.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax import places
from align_jax.errors import InputError
from align_jax.input import normalizers
from align_jax.input.normalizers import read_normalizer, write_normalizer
from align_jax.input.post_processor import special_item, text_item
from align_jax.input.stored_tokenizer import special_token
from align_jax.texts import NFKC_CASEFOLD, NONE, is_folded

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)
LONGEST_WORD = 100  # characters; a longer word becomes [UNK]
PRE_TOKENIZER = "BertPreTokenizer"

# Settings of the model that a tokenizer.json must have; this file implements no others.
MODEL = {
    "type": "WordPiece",
    "unk_token": UNKNOWN,
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": LONGEST_WORD,
}


def find_normalisation(vocabulary: Sequence[str]) -> str:
    """Returns how the texts were normalised from which a vocabulary was made.

    `data.build` learns vocabularies from normalised texts, so that normalisation
    changes no token. A published one, such as BERT's with its ß and ², has others.
    """
    ours = all(is_folded(token) for token in vocabulary if token not in SPECIAL)
    return NFKC_CASEFOLD if ours else NONE


def read_tokens(path: str) -> tuple[list[str], str | None]:
    """Reads the tokens of a vocabulary file, and the normalisation that it states.

    Args:
      path: path or URL of the file. If it ends in .json, the file is a tokenizer.json
        of Hugging Face, whose special and added tokens are not read; else it is a
        vocab.txt of BERT, one token a line.

    Returns:
      The tokens in the order of their ids, and the normalisation of a tokenizer.json;
      None for a vocab.txt, which states none.

    Raises:
      InputError: the file is missing, is not UTF-8 or JSON, holds a token twice, skips
        an id, or is the tokenizer.json of another tokenizer than BERT's uncased one.
    """
    place = places.resolve(path)
    if not places.exists(place):
        raise InputError(f"no vocabulary at {path}; data.build writes one")
    if path.endswith(".json"):
        vocabulary, normalisation = _parse_json(places.read_object(place), path)
    else:
        normalisation = None
        # Not splitlines: a token may be another line break than \n, such as U+2028.
        vocabulary = places.read_text(place).removesuffix("\n").split("\n")
        vocabulary = [token.removesuffix("\r") for token in vocabulary]
    twice = [t for t, n in collections.Counter(vocabulary).items() if n > 1]
    if twice:
        raise InputError(f"{path} holds tokens more than once: {twice[:9]}")
    return vocabulary, normalisation


def _parse_json(tokenizer: dict, path: str) -> tuple[list[str], str]:
    """Returns the tokens and the normalisation of a tokenizer.json.

    Raises:
      InputError: the file skips an id or is of another tokenizer.
    """
    normalizer = tokenizer.get("normalizer") or {}
    model = tokenizer.get("model") or {}
    if not isinstance(normalizer, dict) or not isinstance(model, dict):
        raise InputError(f"{path} has a normalizer or a model that is no object")
    model.setdefault("type", "WordPiece")  # early files lack the type
    normalisation = read_normalizer(normalizer)
    if normalisation is None:
        found = {key: normalizer.get(key) for key in normalizers.BERT}
        raise InputError(
            f"the normalizer of {path} is {found}; wanted {normalizers.BERT}"
        )
    found = {key: model.get(key) for key in MODEL}
    if found != MODEL:
        raise InputError(f"the model of {path} is {found}; wanted {MODEL}")
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not ids:
        raise InputError(f"{path} has no vocabulary (model.vocab)")
    if not all(type(value) is int for value in ids.values()):
        raise InputError(f"{path} has an id in model.vocab that is no whole number")
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(
            f"the ids in {path} run from {min(ids.values())} to {max(ids.values())},"
            f" but it has {len(ids)} tokens; wanted every id from 0 on once"
        )
    return sorted(ids, key=lambda token: ids[token]), normalisation


def write_tokenizer(tokens: Sequence[str], normalisation: str) -> dict[str, Any]:
    """Returns the tokenizer.json of a vocabulary, with which Hugging Face reads it.

    Its ids are those of `WordPiece`, also for texts that need normalisation.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    text = [special_item(CLS, 0), text_item("A", 0), special_item(SEP, 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            special_token(token, ids[token]) for token in SPECIAL if token in ids
        ],
        "normalizer": write_normalizer(normalisation),
        "pre_tokenizer": {"type": PRE_TOKENIZER},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": text,
            "pair": [*text, text_item("B", 1), special_item(SEP, 1)],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in (CLS, SEP)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": MODEL | {"vocab": ids},
    }


def tokenizer_class(described: Mapping[str, Any]) -> str:
    """Returns the class that loads a tokenizer.json with the normalizer in it.

    `BertTokenizer` of transformers 5 replaces the normalizer by BERT's.
    """
    plain = read_normalizer(described["normalizer"]) == NONE
    return "BertTokenizer" if plain else "PreTrainedTokenizerFast"
