"""Tokenizers of SentencePiece's .model files (arXiv 1808.06226), Unigram or BPE.

The package `sentencepiece` computes them. Hugging Face's library `tokenizers` can hold
the same pieces, but its ids differ for texts with runs of spaces or unusual characters.
"""

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_jax.errors import InputError
from align_jax.input.framed_tokenizer import Frame, FramedTokenizer
from align_jax.input.hub_settings import added_ends, check_sides, named_token
from align_jax.input.stored_tokenizer import MODEL_FILE, SETTINGS_FILE, as_json
from align_jax.texts import NFKC_CASEFOLD, NONE, fold

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in a piece
LOWER, SIGLIP = "lower", "siglip"
PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_siglip(text: str) -> str:
    """Cleans a text as transformers' SiglipTokenizer does.

    The text is lower-cased, ASCII punctuation goes, and runs of white space become
    spaces. White space at the beginning becomes one piece.
    """
    text = text.lower().replace(SPACE, " ").translate(PUNCTUATION)
    text = re.sub(r"\s+", " ", text).rstrip()
    return SPACE + text[1:] if text.startswith(" ") else text


def lower_characters(text: str) -> str:
    """Lower-cases each character by itself, as the library `tokenizers` does."""
    return "".join(character.lower() for character in text)


# The cleaning of a text, before the normalisation of the model itself.
CLEANING: dict[str, Callable[[str], str]] = {
    NONE: str,
    NFKC_CASEFOLD: fold,
    LOWER: lower_characters,
    SIGLIP: clean_siglip,
}
# The cleaning by classes of transformers; other classes have none.
BY_CLASS = {
    "SiglipTokenizer": SIGLIP,
    "Siglip2Tokenizer": LOWER,
    "Siglip2TokenizerFast": LOWER,
}
PADS = {SIGLIP: "</s>"}  # padding that a class has by default


def open_model(
    content: bytes, max_tokens: int, source: str, settings: Mapping[str, Any]
) -> "SentencePieces":
    """Opens a tokenizer from the content of a .model file.

    Args:
      content: the content.
      max_tokens: length of the token sequences, special tokens included.
      source: path of the file, for messages.
      settings: fields of tokenizer_config.json; those with an effect are
        `normalisation` (a key of `CLEANING`), `tokenizer_class`, `pad_token`,
        `add_bos_token` and `add_eos_token`. Without them, a text ends with the model's
        end token, is padded with its padding, and is not cleaned.

    Raises:
      InputError: the file is no model of SentencePiece, or lacks a special token.
      ModuleNotFoundError: the package `sentencepiece` is missing.
    """
    import sentencepiece

    check_sides(settings, source)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise InputError(f"{source} is no model of SentencePiece: {error}") from error

    cleaning = BY_CLASS.get(settings.get("tokenizer_class", ""), NONE)
    cleaning = settings.get("normalisation", cleaning)
    if cleaning not in CLEANING:
        raise InputError(
            f"the settings of {source} have normalisation {cleaning!r}; wanted one of"
            f" {', '.join(CLEANING)}"
        )
    frame = _read_frame(processor, settings, PADS.get(cleaning), source)
    return SentencePieces(content, processor, max_tokens, frame, cleaning, source)


def _read_frame(
    processor: Any, settings: Mapping[str, Any], pad: str | None, source: str
) -> Frame:
    """Returns the special tokens that the settings, or else the model, name.

    Args:
      processor: SentencePiece's object of the model.
      settings: fields of tokenizer_config.json.
      pad: padding if the settings name none; None for the model's.
      source: path of the model, for messages.
    """

    def id_of(token: str) -> int:
        found = processor.piece_to_id(token)
        if processor.id_to_piece(found) != token:
            raise InputError(f"{source} has no token {token!r} of its settings")
        return found

    ends = {}
    for name, is_default in (("bos", False), ("eos", True)):
        own = getattr(processor, f"{name}_id")()
        default = processor.id_to_piece(own) if own >= 0 else None
        named = added_ends(settings, name, default)
        ids = [own] if is_default and own >= 0 else []
        ends[name] = ids if named is None else [id_of(token) for token in named]
    pad = named_token(settings, "pad_token") or pad
    pad_id = processor.pad_id() if pad is None else id_of(pad)
    if pad_id < 0:
        raise InputError(
            f"{source} has no padding; name its pad_token in {SETTINGS_FILE} beside it"
        )
    return Frame((*ends["bos"],), (*ends["eos"],), pad_id)


class SentencePieces(FramedTokenizer):
    """A tokenizer of SentencePiece, see `FramedTokenizer`.

    Attributes:
      cleaning: cleaning of a text before the model's normalisation, a key of
        `CLEANING`.
    """

    def __init__(
        self,
        content: bytes,
        processor: Any,
        max_tokens: int,
        frame: Frame,
        cleaning: str,
        source: str = "the model",
    ) -> None:
        """Keeps the processor of `content`; see `open_model`."""
        size = processor.get_piece_size()
        described = f"{hashlib.sha256(content).hexdigest()} {cleaning}"
        super().__init__(size, max_tokens, frame, described, source)
        self.cleaning = cleaning
        self._content, self._processor = content, processor

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts, without special tokens."""
        clean = CLEANING[self.cleaning]
        return self._processor.encode([clean(text) for text in texts])

    def files(self) -> dict[str, bytes]:
        """Returns tokenizer.model and its settings, by their names."""
        piece = self._processor.id_to_piece
        first, last, pad = self.frame
        settings: dict[str, Any] = {
            "normalisation": self.cleaning,
            "pad_token": piece(pad),
            "padding_side": "right",
            "add_bos_token": bool(first),
            "add_eos_token": bool(last),
            "model_max_length": self.max_tokens,
        }
        if first:
            settings["bos_token"] = piece(first[0])
        if last:
            settings["eos_token"] = piece(last[0])
        return {SETTINGS_FILE: as_json(settings), MODEL_FILE: self._content}

    def __str__(self) -> str:
        return (
            f"{self.size} tokens (SentencePiece, normalisation {self.cleaning}, padding"
            f" {self.pad_token})"
        )
