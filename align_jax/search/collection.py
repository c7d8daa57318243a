"""Collections of pictures to index: a folder of files, or a split of a dataset."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.evaluation_records import (
    evaluation_size,
    label_names,
    stream_records,
)
from align_jax.input.shards import is_dataset

SUFFIXES = (
    ".jpg .jpeg .png .gif .webp .bmp .tif .tiff .jp2 .ppm .pgm .pbm .avif".split()
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture of a collection.

    Attributes:
      id: key of the picture in the index: a file's path below the folder, a record's
        `image_id`, or the record's split and number.
      state: fingerprint that changes with the picture or its text: a file's size and
        time of change, or a hash of the record's picture and text.
      text: the picture's text; "" if it has none, as files have.
      read: function that returns the encoded picture.
    """

    id: str
    state: str
    text: str
    read: Callable[[], bytes]


class Folder:
    """The picture files in a folder and its subfolders whose names end in `SUFFIXES`.

    Attributes:
      prefix: text that gives a picture's path if the picture's id is appended.
      labels: class names, which a folder does not have; always empty.
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
        self.prefix = os.path.join(self._root, "")
        own = self._root.resolve()
        self._paths = sorted(
            path
            for path in self._root.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and path.resolve().is_relative_to(own)  # skips links that lead outside
        )
        if not self._paths:
            raise InputError(
                f"{root} has no picture, by the names' endings: {' '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Entry]:
        for path in self._paths:
            try:
                found = path.stat()
            except FileNotFoundError:  # deleted since it was listed
                continue
            state = f"{found.st_size} {found.st_mtime_ns}"
            name = path.relative_to(self._root).as_posix()
            name = name.encode("utf-8", "backslashreplace").decode()
            yield Entry(name, state, "", partial(places.read_bytes, path))


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
        self._count = evaluation_size(directory, split, ("image",))
        self.prefix = f"{places.resolve(directory)}:{split}/"
        self.labels = label_names(directory, split)

    def __len__(self) -> int:
        return self._count

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
                yield Entry(name, state.hexdigest(), text, partial(_same, content))


def _same(content: bytes) -> bytes:
    return content


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
