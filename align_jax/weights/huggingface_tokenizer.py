"""Writes tokenizer.json, in which Hugging Face's libraries find the normalisation."""

from collections.abc import Mapping
from typing import Any

from align_jax.input.normalizers import read_normalizer, write_normalizer
from align_jax.input.tokenizer import CLS, MODEL, SEP, SPECIAL, Tokenizer
from align_jax.texts import NONE

PRE_TOKENIZER = "BertPreTokenizer"


def write_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a tokenizer.json.

    Its ids are those of our tokenizer, also for texts that need normalisation.
    """
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    first, last = _special(CLS, 0), _special(SEP, 0)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in SPECIAL
            if token in ids
        ],
        "normalizer": write_normalizer(tokenizer.normalisation),
        "pre_tokenizer": {"type": PRE_TOKENIZER},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, _sequence("A", 0), last],
            "pair": [
                first,
                _sequence("A", 0),
                last,
                _sequence("B", 1),
                _special(SEP, 1),
            ],
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


def _special(token: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}
