"""Collections of pictures to index: a folder of files, or a split of a dataset."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.evaluation_records import describe_split, stream_records
from align_jax.input.shards import is_dataset
from align_jax.pictures import FORMATS

SUFFIXES = tuple(
    ending for ending, name in Image.registered_extensions().items() if name in FORMATS
)
MOST_ENDINGS = 9  # endings that a message names


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture of a collection.

    Attributes:
      id: key of the picture in the index: a file's path below the folder, a record's
        `image_id`, or the record's split and number.
      state: fingerprint that changes with the picture or its text: a file's size and
        time of change, or a hash of the record's picture and text.
      text: the picture's text; "" if it has none, as files have.
      picture: path of the picture's file, or the file's bytes.
    """

    id: str
    state: str
    text: str
    picture: pathlib.Path | bytes


class Folder:
    """The picture files in a folder and its subfolders whose names end in `SUFFIXES`.

    Attributes:
      prefix: text that gives a picture's path if the picture's id is appended.
      labels: class names, which a folder does not have; always empty.
      left_out: numbers of files, links and folders that were not taken, by reason.
    """

    labels = ()

    def __init__(self, root: str) -> None:
        """Lists the files.

        Args:
          root: path of the folder.

        Raises:
          InputError: the folder is a URL, does not exist or has no picture.
        """
        self._root = places.local_path(root)
        if not self._root.is_dir():
            raise InputError(f"{root} is no folder")
        self.prefix = utf8(os.path.join(self._root, ""))
        self.left_out: collections.Counter[str] = collections.Counter()
        self._paths: dict[str, pathlib.Path] = {}
        for path in sorted(self._find()):
            name = utf8(path.relative_to(self._root).as_posix())
            if self._paths.setdefault(name, path) is not path:
                self.left_out["names that escapes make equal"] += 1
        if not self._paths:
            told = self.describe_left_out()
            raise InputError(
                f"{utf8(root)} has no picture, by the names' endings:"
                f" {' '.join(SUFFIXES)}" + (f"; left out: {told}" if told else "")
            )

    def describe_left_out(self) -> str:
        """Returns how many files and links of each type were not taken; "" if none."""
        counts = self.left_out.most_common()
        told = [f"{reason}: {n:,}" for reason, n in counts[:MOST_ENDINGS]]
        if rest := sum(n for _, n in counts[MOST_ENDINGS:]):
            told.append(f"others: {rest:,}")
        return "; ".join(told)

    def _find(self) -> Iterator[pathlib.Path]:
        """Yields the paths of the pictures, and counts the others in `left_out`."""
        own = os.path.realpath(self._root)

        def count_folder(error: OSError) -> None:
            self.left_out["folders that cannot be listed"] += 1

        for folder, folders, files in os.walk(self._root, onerror=count_folder):
            for name in folders:  # links to folders are never followed
                path = os.path.join(folder, name)
                if os.path.islink(path) and not _is_inside(path, own):
                    self.left_out["links to other folders"] += 1
            for name in files:
                path = os.path.join(folder, name)
                if reason := _reason_against(path, own):
                    self.left_out[reason] += 1
                else:
                    yield pathlib.Path(path)

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Entry]:
        for name, path in self._paths.items():
            try:
                found = path.stat()
            except FileNotFoundError:  # deleted since it was listed
                continue
            state = f"{found.st_size} {found.st_mtime_ns}"
            yield Entry(name, state, "", path)


def _reason_against(path: str, own: str) -> str:
    """Returns why a file of a folder is not taken, for counts; "" if it is taken.

    Args:
      path: path of the file or link.
      own: the folder's path without links.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in SUFFIXES:
        return f"files that end in {utf8(ending)}" if ending else "files without ending"
    if os.path.islink(path) and not os.path.exists(path):
        return "broken links"
    if os.path.islink(path) and not _is_inside(path, own):
        return "links that lead out of the folder"
    return "" if os.path.isfile(path) else "names of no regular file"


def _is_inside(path: str, own: str) -> bool:
    """Returns whether a path, followed through all links, is below a folder."""
    return pathlib.Path(os.path.realpath(path)).is_relative_to(own)


def utf8(name: str) -> str:
    """Returns a file's name as UTF-8 text; other bytes in it become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


class Records:
    """The pictures of a split in TFDS's layout.

    If records have the same `image_id`, only the first is used; the length counts all.

    Attributes:
      prefix: dataset and split, to which a picture's id is appended to name it.
      labels: class names of the dataset; empty if it has no `label` or no names.
    """

    def __init__(self, directory: str, split: str) -> None:
        """Opens the split.

        Raises:
          InputError: the dataset or the split does not exist, or has no pictures.
        """
        self._directory, self._split = directory, split
        self._count, self.labels = describe_split(directory, split, ("image",))
        self.prefix = f"{places.resolve(directory)}:{split}/"

    def __len__(self) -> int:
        return self._count

    def describe_left_out(self) -> str:
        """Returns "": every record has a picture."""
        return ""

    def __iter__(self) -> Iterator[Entry]:
        seen = set()
        records = stream_records(self._directory, self._split, ("image",))
        for place, record in enumerate(records):
            name = record.get("image_id", f"{self._split}/{place:08}")
            name = _decode(name)
            if name not in seen:
                seen.add(name)
                content, text = record["image"], _text(record)
                state = hashlib.blake2b(content + text.encode(), digest_size=16)
                yield Entry(name, state.hexdigest(), text, content)


def _text(record: dict) -> str:
    """Returns the record's text, or the first of its texts; "" if it has none."""
    found = record.get("text", record.get("texts", b""))
    if isinstance(found, np.ndarray):
        found = found[0] if len(found) else b""
    return _decode(found) if isinstance(found, bytes) else ""


def _decode(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def open_collection(place: str) -> Folder | Records:
    """Opens a folder of pictures, or a split of a dataset.

    Args:
      place: path of a folder of pictures, or "DATASET:SPLIT", the path or URL of a
        dataset in TFDS's layout and the split, or "DATASET" for its split "train".

    Raises:
      InputError: the folder, dataset or split does not exist, or has no pictures.
    """
    folder = places.resolve(place)
    if places.is_folder(folder) and not is_dataset(folder):
        return Folder(place)
    directory, colon, split = place.rpartition(":")
    if not colon or "/" in split:  # as in gs://...
        directory, split = place, ""
    return Records(directory, split or "train")
