"""Reads Crossmodal-3600 (arXiv 2205.12522): pictures with captions in 36 languages.

SET/captions.jsonl   a picture a line, {"image/key": KEY, LANGUAGE: {"caption": [...]}}
SET/images/KEY.jpg   the pictures
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence

from align_jax import pictures as picture_files
from align_jax import places
from align_jax.errors import InputError, one_line
from align_jax.texts import check_text

LANGUAGES = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro"
    " ru sv sw te th tr uk vi zh"
).split()
KEY = "image/key"


@dataclasses.dataclass(frozen=True)
class LanguageSet:
    """I pictures with captions in several languages.

    Attributes:
      paths: I paths or URLs of the pictures.
      captions: language -> I lists of one caption or more.
    """

    paths: list[str]
    captions: dict[str, list[list[str]]]

    def read(self) -> Iterator[bytes]:
        """Yields the encoded pictures."""
        return map(picture_files.read_file, self.paths)


def read_crossmodal(directory: str, languages: Sequence[str]) -> LanguageSet:
    """Reads the captions of some languages.

    Args:
      directory: path or URL of the set's folder.
      languages: codes of the languages.

    Raises:
      InputError: a file is missing, a line has another form, or a picture lacks a
        caption in a language.
    """
    folder = places.resolve(directory)
    path, images = (os.path.join(folder, n) for n in ("captions.jsonl", "images"))
    names = []
    captions: dict[str, list[list[str]]] = {language: [] for language in languages}
    for number, line in enumerate(places.read_bytes(path).rstrip().splitlines(), 1):
        where = f"line {number} of {path}"
        try:
            entry = json.loads(line)
            names.append(f"{entry[KEY]}.jpg")
            for language, found in captions.items():
                found.append(entry[language]["caption"])
                if not isinstance(found[-1], list) or not found[-1]:
                    raise TypeError(f"no caption in {language!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{where} is broken: {type(error).__name__}, {one_line(error)}; wanted"
                f" {KEY!r} and captions in {', '.join(languages)}"
            ) from error
        for found in captions.values():
            for text in found[-1]:
                check_text(text, where)
    missing = {*names}.difference(places.list_names(images))
    if missing:
        raise InputError(
            f"{images} lacks {len(missing):,} of {len(names):,} pictures, among them"
            f" {min(missing)}"
        )
    return LanguageSet([os.path.join(images, name) for name in names], captions)
