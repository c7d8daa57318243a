"""Splits texts into BERT's words by replacing characters, in Python or in tf.data."""

import bisect
import functools
import pathlib
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

from align_jax.texts import NONE, fold

if TYPE_CHECKING:
    import tensorflow as tf

CHARACTERS = pathlib.Path(__file__).with_name("bert_characters.txt")
HANGUL = range(0xAC00, 0xD7A4)


class Span(NamedTuple):
    """Neighbouring code points that BERT replaces by one rule.

    Attributes:
      first: first code point.
      last: last code point.
      rule: codes of the characters that each becomes, as in `CHARACTERS`.
    """

    first: int
    last: int
    rule: tuple[str, ...]


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
        self._spans = _read_spans()
        self._starts = [span.first for span in self._spans]

    def __missing__(self, point: int) -> str:
        """Computes and keeps the replacement of a code point."""
        text = chr(point)
        if self._folds:
            text = " " if _is_control(text) else fold(text)
        self[point] = "".join(map(self._bert, text))
        return self[point]

    def table(self) -> list[str]:
        """Returns the replacements of all code points, in order."""
        points = range(0x110000)
        if self._folds:
            space = self[ord(" ")]
            return [space if _is_control(chr(p)) else self[p] for p in points]
        found = [*map(chr, points)]
        for span in [Span(HANGUL.start, HANGUL.stop - 1, ()), *self._spans]:
            replaced = range(span.first, span.last + 1)
            found[span.first : span.last + 1] = map(self.__getitem__, replaced)
        return found

    def _bert(self, character: str) -> str:
        """Returns the text with which BERT replaces a character."""
        point = ord(character)
        if point in HANGUL:  # equal in all Unicode versions
            return unicodedata.normalize("NFD", character)
        index = bisect.bisect_right(self._starts, point) - 1
        if index < 0 or point > self._spans[index].last:
            return character
        special = {".": character, "-": ""}
        return "".join(
            special[code] if code in special else chr(int(code, 16))
            for code in self._spans[index].rule
        )


def _is_control(character: str) -> bool:
    """Returns whether a character is of one of Unicode's categories C*."""
    return unicodedata.category(character)[0] == "C"


@functools.cache
def replacements(normalisation: str) -> Replacements:
    """Returns the shared `Replacements` for a normalisation."""
    return Replacements(normalisation)


@functools.cache
def _read_spans() -> tuple[Span, ...]:
    """Reads the code points that BERT replaces, in ascending order."""
    spans = []
    for line in CHARACTERS.read_text().splitlines():
        if not line.startswith("#"):
            span, rule = line.split("\t")
            first, _, last = span.partition("-")
            spans.append(
                Span(int(first, 16), int(last or first, 16), tuple(rule.split()))
            )
    return tuple(spans)


@functools.cache
def _characters(normalisation: str) -> "tf.Tensor":
    """Returns the text that replaces each Unicode code point, (0x110000,) strings."""
    import tensorflow as tf

    characters = replacements(normalisation).table()
    with tf.init_scope():  # the cached tensor must not belong to a traced graph
        return tf.constant(characters)
