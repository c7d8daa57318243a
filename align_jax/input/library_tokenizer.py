"""Tokenizers that Hugging Face's library `tokenizers` computes from a tokenizer.json.

These are byte-level BPE, as CLIP has it, and SentencePiece's BPE and Unigram models in
the library's form, such as Gemma's for SigLIP 2. The ids equal the library's with
`encode_special_tokens`: a text that spells a special token is plain text.
"""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from align_jax.errors import InputError
from align_jax.input.framed_tokenizer import Frame, FramedTokenizer
from align_jax.input.hub_settings import added_ends, check_sides, named_token
from align_jax.input.post_processor import read_ends, write_template
from align_jax.input.stored_tokenizer import TOKENIZER_FILE
from align_jax.input.tokenizer_json import id_of, ids_of, read_parts


def open_described(
    described: Mapping[str, Any],
    max_tokens: int,
    source: str,
    settings: Mapping[str, Any],
) -> "LibraryTokenizer":
    """Opens a tokenizer that is not WordPiece.

    Args:
      described: content of a tokenizer.json.
      max_tokens: length of the token sequences, special tokens included.
      source: path of the file, for messages.
      settings: fields of tokenizer_config.json; those with an effect are
        `tokenizer_class`, `pad_token`, `add_bos_token` and `add_eos_token`.

    Raises:
      InputError: the file is not one of a BPE or Unigram model, is broken, or does not
        say which token is padding.
      ModuleNotFoundError: the package `tokenizers` is missing.
    """
    parts = read_parts(described, settings, source)
    check_sides(settings, source)
    ids = ids_of(parts, source)
    frame = _read_frame(described, settings, ids, source)
    names = {number: token for token, number in ids.items()}
    parts["post_processor"] = write_template(frame.first, frame.last, names)
    return LibraryTokenizer(parts, max_tokens, frame, ids, source)


def _read_frame(
    described: Mapping[str, Any],
    settings: Mapping[str, Any],
    ids: Mapping[str, int],
    source: str,
) -> Frame:
    """Returns the special tokens that the settings, or else the tokenizer.json, name.

    Args:
      described: content of the tokenizer.json.
      settings: fields of tokenizer_config.json.
      ids: ids by token.
      source: path of the tokenizer.json, for messages.
    """
    first, last = read_ends(described.get("post_processor"), source)
    named = {name: added_ends(settings, name, source) for name in ("bos", "eos")}
    if named["bos"] is not None or named["eos"] is not None:
        # As in transformers: one of the two fields stands for both.
        first, last = (
            [id_of(ids, token, source) for token in named[name] or ()]
            for name in ("bos", "eos")
        )
    names = {number: token for token, number in ids.items()}
    for number in (*first, *last):
        if type(number) is not int or number not in names:
            raise InputError(
                f"the post_processor of {source} adds the id {number!r}, which no token"
                " has"
            )
    pad, padding = named_token(settings, "pad_token", source), described.get("padding")
    own = padding.get("pad_id") if isinstance(padding, dict) else None
    if pad is not None:
        pad_id = id_of(ids, pad, source)
    elif type(own) is int and own in names:
        pad_id = own
    else:
        raise InputError(
            f"{source} does not say which token is padding; put the model's"
            " tokenizer_config.json, with its pad_token, beside it"
        )
    return Frame((*first,), (*last,), pad_id)


class LibraryTokenizer(FramedTokenizer):
    """A BPE or Unigram tokenizer, see `FramedTokenizer`."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        max_tokens: int,
        frame: Frame,
        ids: Mapping[str, int],
        source: str = "the tokenizer",
    ) -> None:
        """Prepares the library's tokenizer.

        Args:
          parts: result of `read_parts`; its post-processor adds the frame.
          max_tokens: length of the token sequences.
          frame: the special tokens.
          ids: ids by token, added tokens included.
          source: origin of the tokenizer, for messages.

        Raises:
          InputError: the library refuses the parts, or a reason of `FramedTokenizer`.
          ModuleNotFoundError: the package `tokenizers` is missing.
        """
        size, content = max(ids.values()) + 1, json.dumps(parts, ensure_ascii=False)
        super().__init__(size, max_tokens, frame, content, source)
        self.kind = parts["model"]["type"]
        self._pad = next(token for token, i in ids.items() if i == frame.pad)
        self._library = Library(content, parts, frame, source)

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts, without special tokens."""
        return self._library.split(texts)

    def files(self) -> dict[str, bytes]:
        """Returns the tokenizer.json, by its name; its padding and truncation are ours.

        So the library alone gives the rows of `encode`.
        """
        pad, length = self.pad_token, self.max_tokens
        truncation = {
            "direction": "Right",
            "max_length": length,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        padding = {
            "strategy": {"Fixed": length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": pad,
            "pad_type_id": 0,
            "pad_token": self._pad,
        }
        parts = json.loads(self._library.content)
        stored = parts | {"truncation": truncation, "padding": padding, "decoder": None}
        return {TOKENIZER_FILE: json.dumps(stored, ensure_ascii=False).encode()}

    def __str__(self) -> str:
        return f"{self.size} tokens ({self.kind}, padding {self.pad_token})"


class Library:
    """The library's object, which copies share; other processes open it again.

    Attributes:
      content: the parts of the tokenizer.json, as JSON.
    """

    def __init__(
        self, content: str, parts: Mapping[str, Any], frame: Frame, source: str
    ) -> None:
        """Makes the library's object of `parts`, which `content` holds as JSON.

        Raises:
          InputError: the library refuses them.
        """
        self.content, self._frame, self._source = content, frame, source
        self._open(parts)

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts, without special tokens."""
        found = self._opened.encode_batch_fast([*texts], add_special_tokens=False)
        return [text.ids for text in found]

    def __getstate__(self) -> tuple[str, Frame, str]:
        return self.content, self._frame, self._source

    def __setstate__(self, state: tuple[str, Frame, str]) -> None:
        self.content, self._frame, self._source = state
        self._open(json.loads(self.content))

    def _open(self, parts: Mapping[str, Any]) -> None:
        import tokenizers

        special = {t["content"] for t in parts["added_tokens"] if t["special"]}
        ids = ids_of(parts, self._source)
        special |= {token for token, i in ids.items() if i in _framed(self._frame)}
        plain = json.dumps(_without(parts, special), ensure_ascii=False)
        try:
            self._opened = tokenizers.Tokenizer.from_str(plain)
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{self._source} is broken: {error}") from error
        self._opened.encode_special_tokens = True
        for token in parts["added_tokens"]:
            found = self._opened.token_to_id(token["content"])
            if not token["special"] and found != token["id"]:
                raise InputError(
                    f"{self._source} adds {token['content']!r} as {token['id']}, but"
                    f" the library as {found}"
                )


def _framed(frame: Frame) -> set[int]:
    return {*frame.first, *frame.last, frame.pad}


def _without(parts: Mapping[str, Any], special: Set[str]) -> dict[str, Any]:
    """Returns a tokenizer.json whose model makes no special token of a text.

    The library looks for special tokens before the model does. Without that, pieces and
    merges that spell one must go, too.
    """
    model = dict(parts["model"])
    if model["type"] == "Unigram":
        # An empty piece matches nothing, and keeps the ids of those after it.
        model["vocab"] = [
            ["" if piece in special else piece, score]
            for piece, score in model["vocab"]
        ]
        kept = {piece for piece, _ in parts["model"]["vocab"]}
    else:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left + right.removeprefix(prefix) not in special
        ]
        unknown = model.get("unk_token")
        if model.get("ignore_merges"):
            spelled = special - {unknown}
            model["vocab"] = {
                t: i for t, i in model["vocab"].items() if t not in spelled
            }
        if unknown is not None and unknown in special and _frames(parts, unknown):
            model["unk_token"] = None  # as CLIP's, whose bytes are all known
        kept = set(parts["model"]["vocab"])
    added = [
        token
        for token in parts["added_tokens"]
        if not (token["special"] and token["content"] in kept)
    ]
    return dict(parts) | {"model": model, "added_tokens": added, "post_processor": None}


def _frames(parts: Mapping[str, Any], token: str) -> bool:
    return token in (parts["post_processor"] or {}).get("special_tokens", {})
