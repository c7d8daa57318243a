"""Pairs in tars of WebDataset's layout; nothing is extracted to disk."""

import collections
import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from align_jax.errors import InputError
from align_jax.tars import DAMAGE, IMAGE_SUFFIXES, Member, Tar
from data.sources.config import SourceConfig
from data.sources.files import (
    MAX_IMAGE_BYTES,
    UID,
    RawPair,
    SourceShard,
    list_files,
    with_uid,
)

PARTS = ("image", "txt", "json")
MAX_PARTS = 8  # of members that agree up to the first dot, for the memory
TRUNCATED = "truncated tar"

# The contents of the members of a sample by PARTS; a text says why one is not read.
Sample = dict[str, bytes | str]


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
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a shard, as `read_samples` and `make_pairs` say."""
        for sample in read_samples(shard.path):
            if isinstance(sample, str):
                drops[sample] += 1
                yield None
            else:
                yield from make_pairs(sample, self.config, drops)


def read_samples(path: str) -> Iterator[Sample | str]:
    """Reads the samples of a tar of WebDataset's layout.

    Consecutive members of one folder whose names agree up to the first dot form a
    sample; see `_join` for suffixes with dots. Files that macOS adds, with names that
    begin with "._", belong to no sample.

    Args:
      path: path of the tar, perhaps compressed.

    Yields:
      Samples, and reasons why a member, or the rest of a damaged tar, is in none.
    """
    key: tuple[str, str] | None = None
    parts: dict[str, Sample] = {}
    for member in _members(path):
        if isinstance(member, str):
            if member == TRUNCATED:  # the last sample may lack what was cut off
                yield from (sample for sample in _join(parts) if _is_complete(sample))
                parts = {}
            yield member
            continue
        name, content = member
        folder, _, base = name.rpartition("/")
        if base.startswith("._"):
            continue
        stem, _, suffixes = base.partition(".")
        if (folder, stem) != key:
            yield from _join(parts)
            key, parts = (folder, stem), {}
        if len(parts) > MAX_PARTS:
            first = next(iter(parts))
            yield parts.pop(first)
        prefix, _, suffix = suffixes.lower().rpartition(".")
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        part = parts.setdefault(prefix, {})
        if kind in PARTS:
            part.setdefault(kind, content)
    yield from _join(parts)


def _join(parts: dict[str, Sample]) -> list[Sample]:
    """Returns the samples among members whose names agree up to the first dot.

    If members have simple suffixes, as "jpg", they are the sample, and all others, as
    "mask.png", only accompany it. Else "input.jpg" and "output.txt" are a sample if
    none of its parts occurs twice. Else "1.jpg" and "1.txt" are one, and "2.jpg" and
    "2.txt" another.

    Args:
      parts: members by the text before their suffix, "" for a simple one.
    """
    if parts.get(""):
        return [parts[""]]
    kinds = [kind for part in parts.values() for kind in part]
    if parts and len({*kinds}) == len(kinds):
        return [{kind: part[kind] for part in parts.values() for kind in part}]
    return [*parts.values()]


def _is_complete(sample: Sample) -> bool:
    """Returns whether a sample has a text, and a picture or a URL."""
    return bool(sample.keys() & {"txt", "json"} and sample.keys() & {"image", "json"})


def make_pairs(
    sample: Sample, config: SourceConfig, drops: collections.Counter[str]
) -> Iterator[RawPair | None]:
    """Makes the pairs of a sample: a picture with each of its texts.

    The text is the .json's field `text_column`, else the .txt, else the .json's
    "caption" or "text"; a list of texts gives one pair per text. The .json has the URL.

    Args:
      sample: one of `read_samples`.
      config: config of the source; it names the .json's fields of text and language,
        and the language of pairs that have none.
      drops: counter of the reasons why samples give no pair.

    Yields:
      The pairs, or one None.
    """
    contents: dict[str, bytes] = {}
    for kind, content in sample.items():
        if isinstance(content, str):
            drops[content] += 1
            yield None
            return
        contents[kind] = content
    fields: Any = {}
    text: str | None = None
    try:
        if "json" in contents:
            fields = json.loads(contents["json"])
            if not isinstance(fields, dict):
                raise ValueError("no object")
        text = contents["txt"].decode() if "txt" in contents else None
    except UnicodeDecodeError:
        drops["undecodable text"] += 1
        yield None
        return
    except (ValueError, RecursionError):
        drops["bad json"] += 1
        yield None
        return
    named = fields.get(config.text_column)
    candidates = [named, text, fields.get("caption"), fields.get("text")]
    texts = next((c for c in candidates if isinstance(c, str) or _is_texts(c)), None)
    if texts is None:
        drops["no text"] += 1
        yield None
        return
    url, language = fields.get("url"), fields.get(config.language_column)
    for one in [texts] if isinstance(texts, str) else texts:
        pair = RawPair(
            contents.get("image"),
            url if isinstance(url, str) else None,
            one,
            language if isinstance(language, str) and language else config.language,
        )
        yield with_uid(pair, fields.get(UID))


def _is_texts(value: Any) -> bool:
    """Returns whether a value of JSON is a list of texts, one or more."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(text, str) for text in value)


def _check_tar(path: str) -> None:
    """Raises InputError if a file is not a tar."""
    try:
        with tarfile.open(path, "r|*"):
            pass
    except DAMAGE as error:
        raise InputError(f"{path} is not a tar file: {error}") from error


def _members(path: str) -> Iterator[tuple[str, bytes | str] | str]:
    """Yields (name, bytes) of a tar's regular files.

    A file that is sparse or has more than MAX_IMAGE_BYTES has the reason in place of
    bytes. A link, a device or an unsafe path gives the reason why it is left out.
    Damage ends the reading with one.
    """
    try:
        with Tar.open(path, "r|*", tarinfo=Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                name = member.name
                file = tar.extractfile(member) if member.isreg() else None
                if name.startswith("/") or ".." in name.split("/"):
                    yield "path outside the tar"
                elif member.isdir():
                    continue
                elif file is None:
                    yield "link or device in the tar"
                elif member.issparse():  # a small file can become a large one
                    yield name, "sparse member"
                elif member.size > MAX_IMAGE_BYTES:
                    yield name, "member too large"
                else:
                    yield name, file.read()
            if not tar.marked_end:
                yield TRUNCATED
    except DAMAGE:
        yield TRUNCATED
