"""Reads pictures with captions in many languages.

Crossmodal-3600 (arXiv 2205.12522), 36 languages:

    SET/captions.jsonl   a picture a line,
                         {"image/key": KEY, LANGUAGE: {"caption": [...]}}
    SET/images/KEY.jpg   the pictures

XTD10 (arXiv 2012.05107), of https://github.com/adobe-research/Cross-lingual-Test-
Dataset-XTD10, 11 languages with English, on 1,000 pictures of COCO:

    SET/XTD10/test_image_names.txt      names of the pictures, one a line
    SET/XTD10/test_1kcaptions_it.txt    captions, one a line, in the same order
    SET/MIC/test_1kcaptions_de.txt      those of German and French
    SET/STAIR/test_1kcaptions_jp.txt    those of Japanese
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence

from align_jax import pictures as picture_files
from align_jax import places
from align_jax.config import choose
from align_jax.errors import InputError, check_count, one_line
from align_jax.input.selection_set import check_pictures
from align_jax.texts import check_text

LANGUAGES = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro"
    " ru sv sw te th tr uk vi zh"
).split()
KEY = "image/key"
# Folder of the captions of each language of XTD10.
XTD = dict.fromkeys("en es it ko pl ru tr zh".split(), "XTD10")
XTD |= {"de": "MIC", "fr": "MIC", "jp": "STAIR"}


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
    check_pictures(images, names)
    return LanguageSet([os.path.join(images, name) for name in names], captions)


def read_xtd(directory: str, pictures: str, languages: Sequence[str]) -> LanguageSet:
    """Reads the captions of some languages of XTD10, one for each picture.

    Args:
      directory: path or URL of the set's folder.
      pictures: path or URL of the folder with the pictures, or with COCO's train2014
        and val2014, which have them.
      languages: codes of the languages, keys of `XTD`.

    Raises:
      InputError: a language is unknown, a file or a picture is missing, or a file has
        an empty line or another number of lines than the names.
    """
    folder, root = places.resolve(directory), places.resolve(pictures)
    path = os.path.join(folder, "XTD10", "test_image_names.txt")
    names = _read_lines(path)
    captions = {}
    for language in languages:
        part = choose(XTD, language, "language")
        file = os.path.join(folder, part, f"test_1kcaptions_{language}.txt")
        texts = _read_lines(file)
        check_count(file, len(texts), len(names), "captions")
        captions[language] = [[text] for text in texts]
    folders = {name: "" for name in names}
    if not {*names} & {*places.list_names(root)}:
        # As in COCO_train2014_000000061844.jpg.
        folders = {name: "_".join(name.split("_")[1:-1]) for name in names}
    for part in sorted({*folders.values()}):
        there = [name for name in names if folders[name] == part]
        check_pictures(os.path.join(root, part), there)
    paths = [os.path.join(root, folders[name], name) for name in names]
    return LanguageSet(paths, captions)


def _read_lines(path: str) -> list[str]:
    """Reads the stripped lines of a text file; InputError if one is empty."""
    text = places.read_text(path).removeprefix("\ufeff")  # the byte order mark
    lines = [line.strip() for line in text.rstrip().split("\n")]
    for number, line in enumerate(lines, 1):
        if not line:
            raise InputError(f"line {number} of {path} is empty")
    return lines
