"""Lists the files of a source, and defines pairs and shards for all readers.

A crawl is not trusted: a path in it is followed only inside the root folder, and no
field or file is read beyond a bound.
"""

import collections
import dataclasses
import glob
import os
import pathlib
import stat
from typing import NamedTuple

from align_jax import places
from align_jax.errors import InputError
from align_jax.picture_limits import MAX_BYTES
from data.sources.config import SourceConfig

UID = "uid"  # column or field by which a subset file names pairs
MAX_IMAGE_BYTES = MAX_BYTES  # a larger file is not read: no picture may have more


class RawPair(NamedTuple):
    """A pair as its source gives it.

    Attributes:
      image: bytes of the picture's file, or None.
      url: address of the picture, or None.
      alt_text: text of the pair; None means empty.
      language: language of the text; empty if unknown.
      uid: name of the pair in a subset file; empty if unknown.
    """

    image: bytes | None
    url: str | None
    alt_text: str | None
    language: str
    uid: str = ""


def decode_pair(
    image: bytes | None,
    url: bytes,
    text: bytes,
    language: bytes,
    drops: collections.Counter[str],
) -> RawPair | None:
    """Makes a pair; if a text is not UTF-8, counts a drop and returns None.

    Args:
      image: bytes of the picture's file, or None.
      url: address of the picture in UTF-8; empty if unknown.
      text: text of the pair in UTF-8.
      language: language of the text in UTF-8; empty if unknown.
      drops: counter of the reasons why pairs are dropped.
    """
    try:
        return RawPair(image, url.decode() or None, text.decode(), language.decode())
    except (UnicodeDecodeError, AttributeError):  # AttributeError: not bytes
        drops["undecodable text"] += 1
        return None


def with_uid(pair: RawPair | None, uid: object) -> RawPair | None:
    """Adds a uid, which may be bytes, to a pair; any other value counts as unknown."""
    if isinstance(uid, bytes):
        uid = uid.decode(errors="replace")
    return pair and pair._replace(uid=uid if isinstance(uid, str) else "")


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """A part of a source that one process reads.

    Attributes:
      name: name of the shard, for messages.
      path: path of the shard's file, or the root folder of `files`.
      first: index of the first row group or TFDS shard, from 0, or a position in a CSV
        or JSON-lines file.
      last: index after the last row group or TFDS shard, or the position in a
        JSON-lines file before which the last line begins; in a CSV file the number of
        rows. In both files, 0 reads all that follow.
      files: HTML pages of the shard, relative to `path`.
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
      config: config of the source; its `path` is a file, a folder or a glob.
      suffixes: lower-case endings of the files to list, used if `path` is a folder.
      recursive: whether to list subfolders too.

    Returns:
      The root folder, and the files relative to it, sorted.

    Raises:
      InputError: no file matches.
    """
    path = str(places.local_path(config.path))
    if places.is_folder(path):
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
        while not places.is_folder(root):  # at last /, because the path is absolute
            root = os.path.dirname(root)
        pattern = os.path.join(glob.escape(root), os.path.relpath(path, root))
        names = [path] if places.is_file(path) else glob.glob(pattern, recursive=True)
        found = [os.path.relpath(name, root) for name in names if places.is_file(name)]
        wanted = "a file, a folder or a glob that matches files"
    if not found:
        raise InputError(f"no files at {path} ({config.kind}); wanted {wanted}")
    return root, sorted(found)


def read_inside(
    root: str | os.PathLike, path: str, drops: collections.Counter[str]
) -> bytes | None:
    """Reads a file, if it lies inside a folder and has at most MAX_IMAGE_BYTES.

    Links are resolved before the path is compared with the folder.

    Args:
      root: folder that must contain the file.
      path: path of the file, relative to `root`.
      drops: counter of the reasons why files were not read.

    Returns:
      The bytes of the file, or None if it was not read.
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
    except (OSError, ValueError):  # ValueError: NUL in the path
        drops["image file missing"] += 1
    return None
