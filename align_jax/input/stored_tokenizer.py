"""The files that store a tokenizer in a run's folder or beside weights."""

import json
from typing import Any

VOCABULARY_FILE = "vocabulary.txt"  # tokens of a WordPiece vocabulary, one a line
TOKENIZER_FILE = "tokenizer.json"  # of Hugging Face's library
MODEL_FILE = "tokenizer.model"  # of SentencePiece
SETTINGS_FILE = "tokenizer_config.json"  # beside it: special tokens and cleaning


def special_token(token: str, number: int) -> dict[str, Any]:
    """Returns an entry of `added_tokens` in a tokenizer.json.

    Args:
      token: the text of the token.
      number: id of the token.
    """
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def as_json(value: Any) -> bytes:
    """Returns the content of a JSON file, as `places.write_json` writes it."""
    return (json.dumps(value, indent=2) + "\n").encode()
