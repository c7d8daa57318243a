"""The files of a source: how they are found, and what their readers share.

A crawl is not to be trusted: a path that it names is only followed inside the root
folder, and no field or file is read beyond a bound.
"""

import collections
import dataclasses
import glob
import os
import pathlib
import stat
from typing import NamedTuple

from align_jax.errors import InputError
from data.sources.config import SourceConfig

MAX_IMAGE_BYTES = 64 * 2**20


class RawPair(NamedTuple):
    """A pair as its source has it.

    Attributes:
      image: bytes of the picture's file, or None.
      url: address of the picture, or None.
      alt_text: the text; None and the empty text are the same.
      language: the text's language, empty if unknown.
    """

    image: bytes | None
    url: str | None
    alt_text: str | None
    language: str


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """A part of a source that one process reads.

    Attributes:
      name: of it, for messages.
      path: of its file, or the root folder of `files`.
      first: row group, TFDS shard or place in a CSV file where it begins.
      last: where it ends, exclusive; of a CSV file its rows, 0 for all that follow.
      files: pages, relative to `path`.
    """

    name: str
    path: str
    first: int = 0
    last: int = 0
    files: tuple[str, ...] = ()


def list_files(
    config: SourceConfig, suffixes: tuple[str, ...], recursive: bool = False
) -> tuple[str, list[str]]:
    """Lists the files of a source.

    Args:
      config: of the source; its `path` is a file, a folder or a glob.
      suffixes: endings of the files that are read of a folder.
      recursive: whether folders inside the folder are read.

    Returns:
      The root folder and the files, relative to it and sorted.

    Raises:
      InputError: there are none.
    """
    path = config.path
    if os.path.isdir(path):
        found = []
        for folder, folders, names in os.walk(path):
            if not recursive:
                folders.clear()
            here = os.path.relpath(folder, path)
            found += [os.path.normpath(os.path.join(here, name)) for name in names]
        found = [name for name in found if name.lower().endswith(suffixes)]
        root, wanted = path, f"files *{', *'.join(suffixes)}"
    else:
        root = path
        while glob.has_magic(root) or not os.path.isdir(root):
            parent = os.path.dirname(root)
            if parent == root or not parent:
                root = parent or "."
                break
            root = parent
        names = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
        found = [os.path.relpath(name, root) for name in names if os.path.isfile(name)]
        wanted = "a file, a folder or a glob that matches files"
    if not found:
        raise InputError(f"no files at {path} ({config.kind}); wanted {wanted}")
    return root, sorted(found)


def read_picture(
    root: str | os.PathLike, path: str, drops: collections.Counter[str]
) -> bytes | None:
    """Reads a picture file, which must lie inside a folder, links resolved.

    Args:
      root: the folder.
      path: of the file, relative to it.
      drops: counts why a file was not read.

    Returns:
      Its bytes, or None where it was not read.
    """
    try:
        folder = os.path.realpath(root)
        target = os.path.realpath(os.path.join(folder, path))
        if not pathlib.PurePath(target).is_relative_to(folder):
            drops["path outside its folder"] += 1
            return None
        status = os.stat(target)
        if not stat.S_ISREG(status.st_mode):
            drops["image is no file"] += 1
        elif status.st_size > MAX_IMAGE_BYTES:
            drops["image too large"] += 1
        else:
            return pathlib.Path(target).read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the path.
        drops["image file missing"] += 1
    return None
