"""Looks words up in the files of WordNet's database (wndb(5WN)).

A word's first synset is that of its first sense as a noun, else as a verb, an adjective
or an adverb. An inflected word is looked up by its base form, as in morphy(7WN). If the
index has none of its forms, endings are removed again and again, as by NLTK 3.8.1, with
which DataComp was made.
"""

import pathlib

from align_jax.errors import InputError, one_line

# Endings of inflected words and those of their base forms.
ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
COPYRIGHT = "  "  # what a line of the files' heads begins with


class WordNet:
    """The first synset of each word, in memory."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Reads `index.X` and `X.exc` of each part of speech X.

        Raises:
          InputError: a file is missing or holds something else.
        """
        self._first: dict[str, dict[str, int]] = {}  # offset by lemma
        self._bases: dict[str, dict[str, list[str]]] = {}  # of irregular words
        for part in ENDINGS:
            index, irregular = _files(folder, part)
            lines = [line.split() for line in _read_lines(index)]
            exceptions = [line.split() for line in _read_lines(irregular)]
            try:
                self._first[part] = {
                    # lemma, part, synsets, pointers, ..., senses, tagged, offsets ...
                    line[0]: int(line[int(line[3]) + 6])
                    for line in lines
                }
                self._bases[part] = {words[0]: words[1:] for words in exceptions}
            except (IndexError, ValueError) as error:
                raise InputError(
                    f"{index} is no index of WordNet's database ({one_line(error)})"
                ) from error

    def first_synset(self, word: str) -> int | None:
        """Returns the number of a word's first synset, or None; case does not count.

        The number is the synset's offset in the data file of its part of speech.
        """
        lemma = word.lower()
        for part, first in self._first.items():
            base = self._base(lemma, part)
            if base is not None:
                return first[base]
        return None

    def _base(self, word: str, part: str) -> str | None:
        """Returns the base form of a word that the index has, or None."""
        first, bases = self._first[part], self._bases[part]
        if word in bases:
            return next((form for form in (word, *bases[word]) if form in first), None)
        if word in first:
            return word
        forms = [word]
        while forms:
            shorter = [
                form[: -len(ending)] + base
                for form in forms
                for ending, base in ENDINGS[part]
                if form.endswith(ending)
            ]
            forms = [*dict.fromkeys(shorter)]  # else hostile words take forever
            for form in forms:
                if form in first:
                    return form
        return None


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files that `WordNet` reads."""
    return [path for part in ENDINGS for path in _files(folder, part)]


def _files(folder: pathlib.Path, part: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the index of a part of speech, and the list of its irregular words."""
    return folder / f"index.{part}", folder / f"{part}.exc"


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}, a file of WordNet's database, cannot be read"
            f" ({one_line(error)}); config.entities.wordnet names its folder"
        ) from error
    return [line for line in text.splitlines() if line and line[:2] != COPYRIGHT]
