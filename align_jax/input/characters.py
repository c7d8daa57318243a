"""Splits texts into BERT's words by replacing characters, in Python or in tf.data."""

import functools
import pathlib
import unicodedata
from typing import TYPE_CHECKING

from align_jax.texts import NONE, fold

if TYPE_CHECKING:
    import tensorflow as tf

CHARACTERS = pathlib.Path(__file__).with_name("bert_characters.txt")


def split_words(texts: "tf.Tensor", normalisation: str = NONE) -> "tf.RaggedTensor":
    """Splits UTF-8 texts (B,) into BERT's words (B, words).

    They are normalised, then lower-cased without accents; every punctuation mark is a
    word.
    """
    import tensorflow as tf

    points = tf.strings.unicode_decode(texts, "UTF-8")  # (B, characters)
    characters = tf.gather(_characters(normalisation), points)
    return tf.strings.split(tf.strings.reduce_join(characters, -1))


class Replacements(dict[int, str]):
    """The text that replaces each Unicode code point, computed when it is asked for.

    A normalised text decomposes into the replacements of its characters, because BERT's
    steps decompose characters anyway and drop the marks that composing moves.
    """

    def __init__(self, normalisation: str) -> None:
        """Prepares the replacements for a normalisation of `align_jax.texts`."""
        self._folds = normalisation != NONE
        self._bert = _bert_replacements()

    def __missing__(self, point: int) -> str:
        """Computes and keeps the replacement of a code point."""
        self[point] = self._replace(point)
        return self[point]

    def list_all(self) -> list[str]:
        """Returns the replacements of all 0x110000 code points."""
        return [self._replace(point) for point in range(0x110000)]

    def _replace(self, point: int) -> str:
        text = chr(point)
        if self._folds:
            if unicodedata.category(text)[0] == "C":  # most code points
                return " "
            text = fold(text)
        if len(text) == 1:
            return self._bert.get(ord(text), text)
        return "".join(self._bert.get(ord(c), c) for c in text)


@functools.cache
def replacements(normalisation: str) -> Replacements:
    """Returns the shared `Replacements` for a normalisation."""
    return Replacements(normalisation)


@functools.cache
def _bert_replacements() -> dict[int, str]:
    """Returns the texts with which BERT replaces code points that do not stay."""
    found = {  # Hangul, equal in all Unicode versions
        point: unicodedata.normalize("NFD", chr(point))
        for point in range(0xAC00, 0xD7A4)
    }
    for line in CHARACTERS.read_text().splitlines():
        if line.startswith("#"):
            continue
        span, rule = line.split("\t")
        first, _, last = span.partition("-")
        for point in range(int(first, 16), int(last or first, 16) + 1):
            special = {".": chr(point), "-": ""}
            found[point] = "".join(
                special[code] if code in special else chr(int(code, 16))
                for code in rule.split()
            )
    return found


@functools.cache
def _characters(normalisation: str) -> "tf.Tensor":
    """Returns the text that replaces each Unicode code point, (0x110000,) strings."""
    import tensorflow as tf

    characters = replacements(normalisation).list_all()
    with tf.init_scope():  # the cached tensor must not belong to a traced graph
        return tf.constant(characters)
