"""The normalisation of texts: NFKC, case folding, and spaces for control characters.

The corpus builder stores normalised texts and learns the vocabulary from them, so its
words have no ß, no final sigma and no ligature. A caption or a query needs the same
normalisation before it is tokenized. It is computed with the Unicode version of the
running Python, as are the corpora.
"""

import string
import unicodedata

from align_jax.errors import InputError

NONE, NFKC_CASEFOLD = "none", "nfkc_casefold"


def fold(text: str) -> str:
    """Normalises a text except for its runs of spaces.

    White space, control and other non-printing characters (Unicode's categories C*)
    become spaces.
    """
    usual = text.isprintable() and text.casefold() == text
    if usual and unicodedata.is_normalized("NFKC", text):
        return text
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can undo the composition (as for the Turkish dotted capital I).
    folded = unicodedata.normalize("NFKC", folded)
    return "".join(c if _is_printing(c) else " " for c in folded)


def normalise(text: str, max_characters: int) -> str:
    """Normalises a text, then cuts it to at most `max_characters`.

    Every run of spaces of `fold` becomes one space; none is left at the ends.
    """
    return " ".join(fold(text).split())[:max_characters].rstrip()


def is_folded(token: str) -> bool:
    """Returns whether a token can come from a normalised text.

    BERT splits a text into tokens after it decomposed the characters. It turns Cherokee
    into small letters, which case folding makes capital.
    """
    if token.isascii():
        return not any(c.isupper() for c in token)
    forms = fold(token), fold(token).lower()
    decomposed = unicodedata.normalize("NFD", token)
    return decomposed in [unicodedata.normalize("NFD", form) for form in forms]


def check_template(template: object, where: str) -> None:
    """Raises InputError unless a template is a text with {} once, for the class.

    A brace that belongs to the sentence is written twice, as for `str.format`.

    Args:
      template: the template.
      where: file or field of the template, for the message.
    """
    check_text(template, where)
    try:
        parts = [*string.Formatter().parse(str(template))]
    except ValueError:  # a brace without its partner
        parts = []
    fields = [part[1:] for part in parts if part[1] is not None]
    if fields != [("", "", None)]:
        raise InputError(
            f"{where} has the template {template!r}; wanted a sentence with one {{}}"
            " and no other brace"
        )


def check_text(text: object, where: str) -> None:
    """Raises InputError unless a value is a text that UTF-8 can encode.

    Half of a surrogate pair, as JSON can hold it, cannot be encoded.
    """
    if isinstance(text, str):
        try:
            text.encode()
            return
        except UnicodeEncodeError:
            pass
    raise InputError(
        f"{where} is {text!a}; wanted a text without halves of surrogate pairs"
    )


def _is_printing(character: str) -> bool:
    return unicodedata.category(character)[0] != "C" and not character.isspace()
