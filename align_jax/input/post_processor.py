"""Reads and writes a tokenizer.json's post-processor, which adds special tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.errors import InputError

PAIRED = ("BertProcessing", "RobertaProcessing")


def read_ends(processor: Any, source: str) -> tuple[list[int], list[int]]:
    """Returns the ids that a post-processor puts before and after a text.

    Raises:
      InputError: the post-processor is of a type that we do not know, or broken.
    """
    first: list[int] = []
    last: list[int] = []
    if processor is None:
        return first, last
    try:
        kind = processor["type"]
        if kind == "Sequence":
            for step in processor["processors"]:
                before, after = read_ends(step, source)
                first, last = before + first, last + after
        elif kind in PAIRED:
            first, last = [processor["cls"][1]], [processor["sep"][1]]
        elif kind == "TemplateProcessing":
            ends = first
            for item in processor["single"]:
                if "Sequence" in item:
                    ends = last
                else:
                    name = item["SpecialToken"]["id"]
                    ends += processor["special_tokens"][name]["ids"]
        elif kind != "ByteLevel":
            raise InputError(
                f"the post_processor of {source} is {kind!r}; wanted"
                f" TemplateProcessing, {', '.join(PAIRED)} or ByteLevel"
            )
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"the post_processor of {source} lacks {error}") from error
    return first, last


def special_item(token: str, type_id: int) -> dict[str, Any]:
    """Returns a template's item for a special token of the text `type_id`, 0 or 1."""
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def text_item(name: str, type_id: int) -> dict[str, Any]:
    """Returns the item of a template for the first text ("A", 0) or second ("B", 1)."""
    return {"Sequence": {"id": name, "type_id": type_id}}


def write_template(
    first: Sequence[int], last: Sequence[int], names: Mapping[int, str]
) -> dict[str, Any] | None:
    """Returns the post-processor that puts special tokens around a text.

    Args:
      first: ids before the text.
      last: ids after the text.
      names: tokens by id.

    Returns:
      The post-processor; None without special tokens.
    """
    if not first and not last:
        return None

    def around(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            *(special_item(names[i], type_id) for i in first),
            text_item(name, type_id),
            *(special_item(names[i], type_id) for i in last),
        ]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]}
            for i in sorted({*first, *last})
        },
    }
