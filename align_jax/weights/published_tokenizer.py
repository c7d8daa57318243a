"""Files in which transformers finds the tokenizer of an exported CLIP or SigLIP."""

import json
from collections.abc import Mapping
from typing import Any

from align_jax.input.sentence_pieces import SIGLIP, SentencePieces
from align_jax.input.stored_tokenizer import (
    MODEL_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    as_json,
)
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.weights.huggingface_vocabulary import SPECIAL_FIELDS

SIGLIP_MODEL_FILE = "spiece.model"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Returns the files of a tokenizer by their names.

    They are a tokenizer.json, or the .model file of SentencePiece, and settings with
    which transformers reads it as it is.
    """
    files = tokenizer.exported()
    settings: dict[str, Any] = {
        "model_max_length": tokenizer.max_tokens,
        "padding_side": "right",
        "model_input_names": ["input_ids"],
    }
    if isinstance(tokenizer, SentencePieces):
        settings = json.loads(files[SETTINGS_FILE]) | settings
        if tokenizer.cleaning == SIGLIP:
            files[SIGLIP_MODEL_FILE] = files.pop(MODEL_FILE)
            settings["tokenizer_class"] = "SiglipTokenizer"
    else:
        described = json.loads(files[TOKENIZER_FILE])
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(tokenizer, WordPiece):
            settings |= SPECIAL_FIELDS
        else:
            settings["pad_token"] = described["padding"]["pad_token"]
            settings |= _find_end(described, tokenizer.end_token)
    return files | {SETTINGS_FILE: as_json(settings)}


def _find_end(described: Mapping[str, Any], end: int | None) -> dict[str, str]:
    """Returns the field of the token that ends a text, if there is one."""
    special = (described.get("post_processor") or {}).get("special_tokens", {})
    names = [name for name, found in special.items() if found["ids"] == [end]]
    return {"eos_token": names[0]} if names else {}
