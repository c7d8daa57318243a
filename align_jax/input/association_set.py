"""Reads WinoGAViL (arXiv 2207.12576) from a snapshot of `nlphuji/winogavil`.

The file winogavil_dataset.csv has the columns cue, candidates and associations, the
last two as JSON lists of names. winogavil_images.zip has a picture NAME.jpg of each
candidate.
"""

import csv
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Iterator

import numpy as np

from align_jax import places, shard_files
from align_jax.errors import DAMAGED_NPZ, InputError, check_count, one_line
from align_jax.input.hub_cache import find_snapshot
from align_jax.texts import check_text

TABLE_FILE, PICTURES_FILE = "winogavil_dataset.csv", "winogavil_images.zip"
ENDING = ".jpg"
COLUMNS = ("cue", "candidates", "associations")


@dataclasses.dataclass(frozen=True)
class Cue:
    """A word and the pictures among which its associations are.

    Attributes:
      word: the word; a few cues have several.
      candidates: list of the names of C candidate pictures.
      right: (C,) bools, whether each is an association.
    """

    word: str
    candidates: list[str]
    right: np.ndarray


def read_cues(directory: str, expected: int = 0) -> list[Cue]:
    """Reads all cues of a set.

    Args:
      directory: path or URL of the set's folder.
      expected: number of cues that the set must have; 0 for any number.

    Raises:
      InputError: the table is missing or has another form, or another size.
    """
    path = os.path.join(find_snapshot(directory), TABLE_FILE)
    content = places.read_text(path).removeprefix("\ufeff")
    rows = csv.DictReader(io.StringIO(content))
    try:
        found = [_read_cue(row, f"line {rows.line_num} of {path}") for row in rows]
    except csv.Error as error:
        raise InputError(f"{path} is no readable CSV ({one_line(error)})") from error
    check_count(path, len(found), expected, "cues")
    return found


def _read_cue(row: dict[str, str | None], where: str) -> Cue:
    try:
        word, *lists = (row[name] or "" for name in COLUMNS)
        candidates, associations = map(json.loads, lists)
        if not isinstance(candidates, list) or not isinstance(associations, list):
            raise ValueError("wanted two lists")
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"{where} does not hold {', '.join(COLUMNS)} as wanted: {one_line(error)}"
        ) from error
    for text in (word, *candidates, *associations):
        check_text(text, where)
    right = np.isin(candidates, associations)
    if not word or not right.any() or right.sum() != len(associations):
        raise InputError(
            f"{where} has the cue {word!r} and the associations {associations};"
            f" wanted a text, and one or more of {candidates}"
        )
    return Cue(word, candidates, right)


def read_pictures(directory: str, names: list[str]) -> Iterator[bytes]:
    """Yields the encoded picture of each name.

    Raises:
      InputError: the archive is missing or damaged, or has no picture of a name.
    """
    path = os.path.join(find_snapshot(directory), PICTURES_FILE)
    with places.opening(path) as file:
        try:
            with zipfile.ZipFile(shard_files.Seekable(file)) as archive:
                members = {os.path.basename(n): n for n in archive.namelist()}
                for name in names:
                    if name + ENDING not in members:
                        raise InputError(f"{path} has no picture {name}{ENDING}")
                    yield archive.read(members[name + ENDING])
        except InputError:
            raise
        except DAMAGED_NPZ as error:
            raise InputError(f"{path} is damaged: {one_line(error)}") from error
