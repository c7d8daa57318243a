"""Builds CLIP's tokenizer.json from its vocab.json and merges.txt."""

import os
from collections.abc import Mapping
from typing import Any

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.stored_tokenizer import special_token

MERGES_FILE = "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
MARK = END  # a field by which vocab.json differs from any tokenizer.json
# The words of CLIP (https://github.com/openai/CLIP, simple_tokenizer.py), in lower
# case; the rest of a text is white space.
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ],
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def build_tokenizer(vocabulary: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns the tokenizer.json that transformers makes of CLIP's files.

    OpenAI's code also repairs texts with the package ftfy, undoes HTML's escapes and
    has no NFC; the published towers in transformers' form do without.

    Args:
      vocabulary: content of vocab.json, ids by token.
      path: path or URL of vocab.json; merges.txt is beside it.

    Raises:
      InputError: merges.txt is missing, or one of the files is not as CLIP's.
    """
    missing = [token for token in (START, END) if token not in vocabulary]
    if missing or not all(type(number) is int for number in vocabulary.values()):
        raise InputError(
            f"{path} is no tokenizer.json, and no vocab.json of CLIP: it lacks"
            f" {' and '.join(missing) or 'whole numbers'}"
        )
    merges = _read_merges(os.path.join(os.path.dirname(path), MERGES_FILE))
    start, end = vocabulary[START], vocabulary[END]
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed"}
    return {
        "added_tokens": [special_token(START, start), special_token(END, end)],
        "normalizer": NORMALIZER,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"invert": True}, BYTES | {"use_regex": True}],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, end],
            "cls": [START, start],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "padding": {"pad_id": end},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": merges,
        },
    }


def _read_merges(path: str) -> list[list[str]]:
    """Returns the pairs of tokens that merges.txt names, in order."""
    lines = places.read_text(path).strip().split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line.split() for line in lines]
    for line, merge in zip(lines, merges, strict=True):
        if len(merge) != 2:
            raise InputError(f"{path} has the line {line!r}; wanted two tokens")
    return merges
