"""Lists and reads the files of a dataset that is a folder or a pattern of files."""

import concurrent.futures
import fnmatch
import io
import os
import re
from collections.abc import Callable, Sequence
from typing import IO, TypeVar

from align_jax import places
from align_jax.errors import InputError

REQUESTS = 32  # files that are asked for at the same time
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")

T = TypeVar("T")


class Seekable(io.RawIOBase):
    """An opened file for Arrow, which wants `closed`; TensorFlow's files lack it."""

    def __init__(self, file: IO[bytes]) -> None:
        """Wraps an opened file."""
        self._file = file

    def readable(self) -> bool:
        """Returns that the file can be read."""
        return True

    def seekable(self) -> bool:
        """Returns that the file can be read from any position."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position and returns it, in bytes from the beginning."""
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes, or to the end."""
        return self._file.read(size)


def list_files(dataset: str, endings: Sequence[str]) -> list[str]:
    """Lists the files of a dataset by name, without hidden ones.

    Spark writes a hidden file with a checksum beside each file, and macOS some others.

    Args:
      dataset: path or URL of a folder, of a file, or of files in one folder, as
        "DIR/train-*.parquet".
      endings: parts of which a name must contain one, as ".tar".

    Returns:
      The paths or URLs of the files, sorted.

    Raises:
      InputError: no file fits, or the folder's files are of several splits.
    """
    folder, pattern = places.resolve(dataset), ""
    if not places.is_folder(folder):
        folder, pattern = os.path.split(folder)
    names = [
        name
        for name in places.list_names(folder)
        if any(ending in name for ending in endings)
        and not name.startswith(".")
        and _is_named(name, pattern)
    ]
    if not names:
        raise InputError(f"no files in {dataset} with {' or '.join(endings)} in a name")
    splits = {found[1]: name for name in names if (found := SPLIT.match(name))}
    if len(splits) > 1 and not pattern:
        examples = " and ".join(splits.values())
        raise InputError(
            f"{dataset} holds files of several splits ({examples}); name those of one,"
            f" as {os.path.join(dataset, next(iter(splits)))}*"
        )
    return [os.path.join(folder, name) for name in names]


def for_each(work: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """Returns `work` of each path, computed by `REQUESTS` threads, in order."""
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(work, paths))


def _is_named(name: str, pattern: str) -> bool:
    """Returns whether a file's name is or fits a pattern; every name fits ""."""
    return pattern in ("", name) or fnmatch.fnmatchcase(name, pattern)
