"""Finds words of a given set in texts."""

import functools
import re
from collections.abc import Callable

from align_jax import places
from align_jax.errors import InputError
from data.curation.config import EntitiesConfig
from data.curation.wordnet import WordNet

REMEMBERED = 1 << 20  # distinct words whose synsets are kept in memory


def load_entities(config: EntitiesConfig) -> Callable[[str], bool]:
    """Returns a function that says whether a text has an entity among its words.

    Words lie between white space; punctuation belongs to them.

    Raises:
      InputError: a file is missing or holds something else.
    """
    if config.words:
        known = frozenset(_read_lines(config.words))
        if phrase := next((line for line in known if len(line.split()) > 1), None):
            raise InputError(
                f"{config.words} (config.entities.words) has the line {phrase!r};"
                " wanted one word a line, without white space inside"
            )
        return lambda text: not known.isdisjoint(text.split())
    synsets = _read_synsets(config.synsets)
    wordnet = WordNet(places.local_path(config.wordnet))

    @functools.lru_cache(REMEMBERED)
    def is_entity(word: str) -> bool:
        return wordnet.first_synset(word) in synsets

    return lambda text: any(map(is_entity, text.split()))


def _read_synsets(path: str) -> frozenset[int]:
    names = _read_lines(path)
    for name in names:
        if not re.fullmatch(r"n\d{8}", name, re.ASCII):
            raise InputError(
                f"{path} (config.entities.synsets) has the line {name!r}; wanted noun"
                " synsets, as n02084071"
            )
    return frozenset(int(name[1:]) for name in names)


def _read_lines(path: str) -> list[str]:
    text = places.read_text(places.local_path(path)).removeprefix("\ufeff")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        raise InputError(f"{path} (config.entities) is empty; wanted one entity a line")
    return lines
