"""Pairs in tars of WebDataset's layout; nothing is extracted to disk."""

import collections
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator

from align_jax.errors import InputError
from data.sources.config import SourceConfig
from data.sources.files import MAX_IMAGE_BYTES, RawPair, SourceShard, list_files

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_HEADER_BYTES = 2**20

# The type stubs of the standard library leave this class out.
_END_MARK: type[tarfile.HeaderError] = vars(tarfile)["EOFHeaderError"]
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class WebdatasetSource:
    """Tar files, perhaps compressed; a shard is one file."""

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config

    def list_shards(self) -> list[SourceShard]:
        """Lists the tars; raises InputError if there is none or a file is not a tar."""
        root, names = list_files(self.config, (".tar", ".tar.gz", ".tgz"))
        shards = [SourceShard(name, os.path.join(root, name)) for name in names]
        for shard in shards:
            _check_tar(shard.path)
        return shards

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair]:
        """Yields the pairs of a shard, as `read_tar` does."""
        return read_tar(shard.path, self.config, drops)


class _Tar(tarfile.TarFile):
    """A tar that is read as a stream.

    Attributes:
      members: headers that were read; tarfile keeps all of them.
      marked_end: whether the block of zeros that ends a tar was read.
    """

    members: list[tarfile.TarInfo]
    marked_end = False


class _Member(tarfile.TarInfo):
    """A header of a tar; bounds its extensions and sets the tar's `marked_end`."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in b"LKxgX" and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("too long a header")
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except _END_MARK:
            if isinstance(tar, _Tar):
                tar.marked_end = True
            raise


def read_tar(
    path: str, config: SourceConfig, drops: collections.Counter[str]
) -> Iterator[RawPair]:
    """Reads pairs from a tar of WebDataset's layout.

    Consecutive members whose names agree up to the first dot form a pair: a picture,
    its text in .txt or .json, its URL in .json. The text is the .json's field
    `text_column`, else the .txt, else the .json's "caption" or "text".

    Args:
      path: path of the tar, perhaps compressed.
      config: config of the source; it names the .json's fields of text and language,
        and the language of pairs that have none.
      drops: counter of the reasons why members give no pair; a damaged tar counts once.

    Yields:
      The pairs, up to the point where the tar is cut.
    """
    key: tuple[str, str] | None = None
    sample: dict[str, bytes | None] = {}
    cuts = drops["truncated tar"]
    for name, content in _members(path, drops):
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if (folder, stem) != key:
            yield from _pair(sample, config, drops)
            key, sample = (folder, stem), {}
        suffix = suffix.lower()
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind in ("image", "txt", "json"):
            sample.setdefault(kind, content)
    # The cut may have damaged the last pair, which must not be counted twice.
    if drops["truncated tar"] > cuts:
        drops = collections.Counter()
    yield from _pair(sample, config, drops)


def _check_tar(path: str) -> None:
    """Raises InputError if a file is not a tar."""
    try:
        with tarfile.open(path, "r|*"):
            pass
    except _DAMAGE as error:
        raise InputError(f"{path} is not a tar file: {error}") from error


def _members(
    path: str, drops: collections.Counter[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Yields (name, bytes) of a tar's regular files.

    The bytes are None if the file has more than MAX_IMAGE_BYTES. Links, devices, unsafe
    paths and large files are counted in `drops`. Damage ends the reading, counted once.
    """
    try:
        with _Tar.open(path, "r|*", tarinfo=_Member) as tar:
            tar.marked_end = False
            while (member := tar.next()) is not None:
                tar.members.clear()
                name = member.name
                file = tar.extractfile(member) if member.isreg() else None
                if name.startswith("/") or ".." in name.split("/"):
                    drops["path outside the tar"] += 1
                elif file is None:
                    drops["link or device in the tar"] += not member.isdir()
                elif member.size > MAX_IMAGE_BYTES:
                    drops["member too large"] += 1
                    yield name, None
                else:
                    yield name, file.read()
            if not tar.marked_end:
                drops["truncated tar"] += 1
    except _DAMAGE:
        drops["truncated tar"] += 1


def _pair(
    sample: dict[str, bytes | None],
    config: SourceConfig,
    drops: collections.Counter[str],
) -> Iterator[RawPair]:
    parts = {kind: content for kind, content in sample.items() if content is not None}
    if not sample or len(parts) < len(sample):  # too large: counted already
        return
    fields = {}
    try:
        if "json" in parts:
            fields = json.loads(parts["json"])
            if not isinstance(fields, dict):
                raise ValueError("no object")
    except (ValueError, RecursionError):
        drops["bad json"] += 1
        return
    try:
        text = parts["txt"].decode() if "txt" in parts else None
    except UnicodeDecodeError:
        drops["undecodable text"] += 1
        return
    named = fields.get(config.text_column)
    texts = [named, text, fields.get("caption"), fields.get("text")]
    text = next((value for value in texts if isinstance(value, str)), None)
    if text is None:
        drops["no text"] += 1
        return
    url, language = fields.get("url"), fields.get(config.language_column)
    yield RawPair(
        parts.get("image"),
        url if isinstance(url, str) else None,
        text,
        language if isinstance(language, str) and language else config.language,
    )
