"""Pairs in packed files: WebDataset tars and the output folder of img2dataset.

Tars are streamed; nothing is extracted to disk. Rows are as in `data.sources.tables`.
"""

import collections
import json
import lzma
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from align_jax.errors import InputError
from data.sources.tables import (
    MAX_IMAGE_BYTES,
    Row,
    open_parquet,
    read_parquet_columns,
    read_picture,
)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_HEADER_BYTES = 2**20

_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class _Member(tarfile.TarInfo):
    """A header of a tar: bounds its extensions, and remembers how a tar ended."""

    @classmethod
    def frombuf(cls, *arguments: Any) -> "_Member":
        member = super().frombuf(*arguments)
        if member.type in b"LKxgX" and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("too long a header")
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            tar.marked_end = True
            raise


def check_tar(path: str) -> None:
    """Raises InputError where a file is no tar at all."""
    try:
        with tarfile.open(path, "r|*"):
            pass
    except _DAMAGE as error:
        raise InputError(f"{path} is not a tar file: {error}") from error


def read_tar(
    path: str,
    text_name: str,
    language_name: str,
    language: str,
    drops: collections.Counter,
) -> Iterator[Row]:
    """Reads pairs from a tar of WebDataset's layout.

    Members that follow each other and share a name up to its first dot are a pair: a
    picture, its text in .txt or .json, its url in .json. The text is the .json's
    field `text_name`, else the .txt, else the .json's "caption" or "text".

    Args:
      path: of the tar, perhaps compressed.
      text_name: field of the .json that holds the text.
      language_name: field of the .json that holds the language.
      language: of rows that have none.
      drops: counts what is no pair by its reason, a damaged tar once.

    Yields:
      Rows up to where a tar is cut.
    """
    key, sample = None, {}
    cuts = drops["truncated tar"]
    for name, content in _members(path, drops):
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if (folder, stem) != key:
            yield from _pair(sample, text_name, language_name, language, drops)
            key, sample = (folder, stem), {}
        suffix = suffix.lower()
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind in ("image", "txt", "json"):
            sample.setdefault(kind, content)
    if drops["truncated tar"] > cuts:  # What the last pair lacks is counted by that.
        drops = collections.Counter()
    yield from _pair(sample, text_name, language_name, language, drops)


def _members(
    path: str, drops: collections.Counter
) -> Iterator[tuple[str, bytes | None]]:
    """Names and bytes of the plain files of a tar; None for one that is too large."""
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as tar:
            tar.marked_end = False
            while (member := tar.next()) is not None:
                tar.members.clear()  # A stream keeps every header otherwise.
                name = member.name
                if name.startswith("/") or ".." in name.split("/"):
                    drops["path outside the tar"] += 1
                elif not member.isreg():
                    drops["link or device in the tar"] += not member.isdir()
                elif member.size > MAX_IMAGE_BYTES:
                    drops["member too large"] += 1
                    yield name, None
                else:
                    yield name, tar.extractfile(member).read()
            if not tar.marked_end:
                drops["truncated tar"] += 1
    except _DAMAGE:
        drops["truncated tar"] += 1


def _pair(
    sample: dict[str, bytes | None],
    text_name: str,
    language_name: str,
    language: str,
    drops: collections.Counter,
) -> Iterator[Row]:
    if not sample or None in sample.values():  # The latter is counted already.
        return
    fields = {}
    try:
        if "json" in sample:
            fields = json.loads(sample["json"])
            if not isinstance(fields, dict):
                raise ValueError("no object")
    except (ValueError, RecursionError):
        drops["bad json"] += 1
        return
    try:
        text = sample["txt"].decode() if "txt" in sample else None
    except UnicodeDecodeError:
        drops["undecodable text"] += 1
        return
    texts = [fields.get(text_name), text, fields.get("caption"), fields.get("text")]
    text = next((value for value in texts if isinstance(value, str)), None)
    if text is None:
        drops["no text"] += 1
        return
    url, spoken = fields.get("url"), fields.get(language_name)
    yield (
        sample.get("image"),
        url if isinstance(url, str) else None,
        text,
        spoken if isinstance(spoken, str) and spoken else language,
    )


def check_img2dataset(path: str) -> None:
    """Raises InputError where a file is no metadata table of img2dataset."""
    try:
        found = open_parquet(path).schema_arrow.names
    except InputError as error:
        raise InputError(
            f"{error}; img2dataset was stopped before this shard was whole: run it"
            " again with --incremental_mode=incremental, or remove the shard's files"
        ) from error
    missing = [name for name in ("key", "status") if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the columns {missing} of img2dataset's output; it has"
            f" {found}"
        )
    _packing(pathlib.Path(path), found)


def _packing(path: pathlib.Path, names: list[str]) -> str:
    """How img2dataset packed the pictures of a shard: its `output_format`."""
    if any(name in names for name in IMAGE_SUFFIXES):
        return "parquet"
    for packing, name in (
        ("webdataset", f"{path.stem}.tar"),
        ("tfrecord", f"{path.stem}.tfrecord"),
        ("files", path.stem),
    ):
        if (path.parent / name).exists():
            return packing
    raise InputError(
        f"no pictures beside {path}: wanted {path.stem}.tar, {path.stem}.tfrecord, a"
        f" folder {path.stem} or a column 'jpg'"
    )


def read_img2dataset(
    path: str,
    text_name: str,
    language_name: str,
    language: str,
    drops: collections.Counter,
) -> Iterator[Row]:
    """Reads pairs from one shard of img2dataset's output, in any of its formats.

    Args:
      path: of the shard's metadata, NNNNN.parquet.
      text_name: column that holds the text; where there is none, "caption".
      language_name: column that holds the language.
      language: of rows that have none.
      drops: counts rows by the reason; pictures that img2dataset did not get by its
        status.

    Yields:
      Rows.
    """
    table = pathlib.Path(path)
    names = open_parquet(path).schema_arrow.names
    for (status,) in read_parquet_columns(path, ["status"]):
        status = (status or b"").decode(errors="replace")
        if status != "success":
            known = re.fullmatch("[a-z_]{1,40}", status)
            drops[f"img2dataset: {status if known else 'other status'}"] += 1
    packing = _packing(table, names)
    if packing == "webdataset":
        tar = str(table.with_suffix(".tar"))
        yield from read_tar(tar, text_name, language_name, language, drops)
        return
    if packing == "tfrecord":
        rows = _tfrecord_rows(table.with_suffix(".tfrecord"), drops)
    else:
        rows = _table_rows(table, names, packing, drops)
    for image, fields in rows:
        texts = [fields.get(name) for name in (text_name, "caption", "txt")]
        text = next((value for value in texts if value is not None), None)
        if text is None:
            drops["no text"] += 1
            continue
        url, spoken = fields.get("url") or b"", fields.get(language_name) or b""
        try:
            yield (
                image,
                url.decode() or None,
                text.decode(),
                spoken.decode() or language,
            )
        except (UnicodeDecodeError, AttributeError):
            drops["undecodable text"] += 1


def _table_rows(
    table: pathlib.Path, names: list[str], packing: str, drops: collections.Counter
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    images = [name for name in IMAGE_SUFFIXES if name in names]
    folder = table.with_suffix("")
    for values in read_parquet_columns(str(table), names):
        fields = dict(zip(names, values, strict=True))
        if fields["status"] != b"success":
            continue
        if packing == "files":
            key = (fields["key"] or b"").decode(errors="replace")
            found = [s for s in IMAGE_SUFFIXES if (folder / f"{key}.{s}").exists()]
            image = read_picture(folder, f"{key}.{[*found, 'jpg'][0]}", drops)
        else:
            image = next((fields[n] for n in images if fields[n] is not None), None)
            drops["image file missing"] += image is None
        if image is not None:
            yield image, fields


def _tfrecord_rows(
    path: pathlib.Path, drops: collections.Counter
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    import tensorflow as tf  # Slow, and no other kind of source needs it.

    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    while True:
        try:
            record = next(records, None)
        except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
            drops["truncated tfrecord"] += 1
            return
        if record is None:
            return
        example = tf.train.Example.FromString(record)
        fields = {
            name: feature.bytes_list.value[0]
            for name, feature in example.features.feature.items()
            if feature.bytes_list.value
        }
        image = next((fields[n] for n in IMAGE_SUFFIXES if n in fields), None)
        if image is None:
            drops["image file missing"] += 1
        else:
            yield image, fields
