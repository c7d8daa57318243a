"""The normalizers of Hugging Face's tokenizer.json that we read and write."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from align_jax.texts import NFKC_CASEFOLD, NONE, fold

BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,  # None means: if `lowercase`
    "lowercase": True,
}

# Characters that `fold` changes otherwise than NFKD and BERT's lower-casing do: case
# foldings that are no small letters, and, for the library's older version of Unicode,
# compatibility characters (code points in hexadecimal digits, first-last).
FOLDED = (
    "df 1e9e 3c2 345 1c80-1c88 32ff a7f2-a7f4 ab69 10781-10785 10787-107b0 107b2-107ba"
    " 1fbf0-1fbf9"
)


def write_normalizer(normalisation: str) -> dict[str, Any]:
    """Returns the normalizer that has the effect of a normalisation and of BERT."""
    if normalisation == NONE:
        return dict(BERT)
    spaces = _replace({"Regex": f"[{_control_ranges()}]"}, " ")
    return {"type": "Sequence", "normalizers": [spaces, *_folding_steps()]}


def read_normalizer(described: Mapping[str, Any]) -> str | None:
    """Returns the normalisation of a normalizer; None if it is none of ours.

    The control characters depend on the Unicode version with which it was written.
    """
    found = {name: described.get(name) for name in BERT}
    if found["strip_accents"] is True:  # the same if `lowercase`
        found["strip_accents"] = None
    if found == BERT:
        return NONE
    parts = described.get("normalizers")
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], dict):
        return None
    pattern = parts[0].get("pattern")
    has_spaces = isinstance(pattern, dict) and "Regex" in pattern
    return NFKC_CASEFOLD if has_spaces and parts[1:] == _folding_steps() else None


def _folding_steps() -> list[dict[str, Any]]:
    """Returns the normalizers after the one that replaces control characters."""
    folded = [
        _replace({"String": chr(point)}, fold(chr(point))) for point in _points(FOLDED)
    ]
    return [{"type": "NFKD"}, *folded, dict(BERT)]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _points(ranges: str) -> list[int]:
    points: list[int] = []
    for span in ranges.split():
        first, _, last = span.partition("-")
        points += range(int(first, 16), int(last or first, 16) + 1)
    return points


def _control_ranges() -> str:
    """Returns the characters that `fold` turns into spaces, for a regular expression.

    Surrogates are left out, because no text holds them.
    """
    ranges, first = [], None
    for point in range(0x110001):
        inside = point < 0x110000 and not 0xD800 <= point < 0xE000
        if inside and unicodedata.category(chr(point))[0] == "C":
            first = point if first is None else first
        elif first is not None:
            ranges.append(rf"\x{{{first:X}}}-\x{{{point - 1:X}}}")
            first = None
    return "".join(ranges)
