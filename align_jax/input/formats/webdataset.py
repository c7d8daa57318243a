"""The format `webdataset`: tars whose members with one name are a sample.

`image_feature`, `text_feature`, `captions` and `label_feature` name the endings of
members: "image" is any ending of a picture and "text" is "txt". "json/FIELD" is a field
of the member "json", a text or a list of texts; "json/A/B" is a field of an object.
"""

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from align_jax import dataset_folder, places, tar_index
from align_jax.errors import InputError
from align_jax.input.formats.dataset import Dataset, Row, clean_texts, open_rows
from align_jax.input.shards import Shard
from align_jax.picture_limits import MAX_BYTES
from align_jax.tars import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from align_jax.input.datasets import DatasetConfig

SPAN_BYTES = 8 * 2**20  # of a tar, read together
GAP_BYTES = 256 * 2**10  # of unused members, above which a read is divided
LARGE_BYTES = 4 * MAX_BYTES  # of a sample, above which its members are read alone
LAST = 2**62  # above every offset
TRIED = 16  # samples whose json is looked into when a dataset is opened


def open_webdataset(config: "DatasetConfig") -> Dataset:
    """Opens a dataset of tars.

    Raises:
      InputError: no tars, no index, an index of other files, or no sample has a member
        or a field that the config names.
    """
    entries = tar_index.current_entries(config.directory, config.index)
    for path, entry in entries.items():
        if entry["fault"]:
            logging.warning(
                "%s: %s; its %d samples before that are used",
                *(path, entry["fault"], entry["records"]),
            )
    endings = sorted({e for entry in entries.values() for e in entry["endings"]})
    name = config.image_feature
    images = IMAGE_SUFFIXES if name == "image" else (name.lower(),)
    reader = SampleReader(
        folder=tar_index.index_folder([*entries], config.index),
        images=tuple(ending for ending in images if ending in endings),
        targets=[_split_name(target) for target in config.targets],
        labelled=bool(config.label_feature),
    )
    missing = [member for member in reader.members if member not in endings]
    if missing or not reader.images:
        raise InputError(
            f"no sample of {config.directory} has a member {[*missing, name][0]!r};"
            f" their members are {', '.join(endings)}"
        )
    shards = [Shard(path, entry["records"]) for path, entry in entries.items()]
    shards = [shard for shard in shards if shard.records]
    if shards:
        reader.check_fields(shards[0])
    return open_rows(shards, reader, len(reader.targets), reader.labelled)


def _split_name(name: str) -> tuple[str, ...]:
    """Splits a target's name into a member's ending and the fields of its json."""
    ending, *fields = name.split("/")
    return ("txt" if name == "text" else ending.lower(), *fields)


@dataclasses.dataclass(frozen=True)
class SampleReader:
    """Reads the samples of tars by their index.

    Attributes:
      folder: path or URL of the index.
      images: endings of pictures; a sample's picture is its first member with one.
      targets: ending of the member of each text or of the label, perhaps followed by
        fields of its json.
      labelled: whether the target is a label.
    """

    folder: str
    images: tuple[str, ...]
    targets: list[tuple[str, ...]]
    labelled: bool

    @functools.cached_property
    def members(self) -> tuple[str, ...]:
        """The distinct endings of the targets' members."""
        return tuple(dict.fromkeys(ending for ending, *_ in self.targets))

    def __call__(self, path: str, first: int, last: int) -> Iterator[Row]:
        """Yields the rows of the samples [first, last) of a tar."""
        index = tar_index.read_index(self.folder, path)
        if last > len(index.offsets):
            raise InputError(
                f"the index of {path} has {len(index.offsets)} samples; wanted {last}:"
                " run `python -m data.index` on its folder again"
            )
        for contents in self.contents(path, index, slice(first, last)):
            yield self._row(contents)

    def contents(
        self, path: str, index: tar_index.TarIndex, rows: slice
    ) -> Iterator[list[bytes]]:
        """Yields the contents of the picture and the members of some samples.

        Args:
          path: path or URL of the tar.
          index: index of the tar.
          rows: range of the samples.
        """
        offsets, sizes = self._columns(index, rows)
        with places.opening(path) as file:
            yield from _read_members(path, file, offsets, sizes)

    def check_fields(self, shard: Shard) -> None:
        """Raises InputError if the first samples lack a field of the config."""
        if not any(fields for _, *fields in self.targets):
            return
        last = min(TRIED, shard.records)
        members = dataclasses.replace(
            self, targets=[(ending,) for ending, *_ in self.targets], labelled=False
        )
        rows = [*members(shard.path, 0, last)]
        for number, (ending, *fields) in enumerate(self.targets):
            texts = [row[number] for _, row in rows if isinstance(row, list)]
            objects = [_parse(b"".join(found)) for found in texts]
            if fields and all(_find(o, fields) is None for o in objects):
                known = sorted({key for found in objects for key in found})
                raise InputError(
                    f"the first {last} samples of {shard.path} have no field"
                    f" {'/'.join(fields)} in their {ending}; it has {', '.join(known)}"
                )

    def _columns(
        self, index: tar_index.TarIndex, rows: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the offsets and sizes (N, 1 + members) of the members of N samples.

        The first column is the picture. An absent member has size 0.
        """
        column = {ending: number for number, ending in enumerate(index.endings)}
        absent = len(column)  # a column that is added
        offsets = np.pad(
            index.offsets[rows], ((0, 0), (0, 1)), constant_values=tar_index.ABSENT
        )
        sizes = np.pad(index.sizes[rows], ((0, 0), (0, 1)))
        images = np.array([column.get(ending, absent) for ending in self.images])
        found = offsets[:, images]
        first = np.where(found == tar_index.ABSENT, LAST, found).argmin(1)
        others = [column.get(ending, absent) for ending in self.members]
        columns = np.column_stack(
            [images[first], np.tile(np.array(others, int), (len(offsets), 1))]
        )
        sizes = np.minimum(np.take_along_axis(sizes, columns, 1), MAX_BYTES + 1)
        return np.take_along_axis(offsets, columns, 1), sizes

    def _row(self, contents: list[bytes]) -> Row:
        """Makes a row from the contents of a sample's picture and other members."""
        image, *others = contents
        members = dict(zip(self.members, others, strict=True))
        objects = {
            ending: _parse(members[ending])
            for ending in {ending for ending, *fields in self.targets if fields}
        }
        values = [
            _find(objects[ending], fields) if fields else members[ending]
            for ending, *fields in self.targets
        ]
        if self.labelled:
            return image, _as_label(values[0])
        return image, [_as_texts(value) for value in values]


def _read_members(
    path: str, file: Any, offsets: np.ndarray, sizes: np.ndarray
) -> Iterator[list[bytes]]:
    """Yields the contents of the members of each sample.

    Args:
      path: path or URL of the tar.
      file: the opened tar.
      offsets: (N, members) offsets of the members.
      sizes: (N, members) sizes of the members; 0 for absent ones.

    Raises:
      DamagedFileError: the tar ends too early.
    """

    def read(begin: int, size: int) -> bytes:
        file.seek(begin)
        content = file.read(size)
        if len(content) < size:
            reason = f"it ends before byte {begin + size}"
            raise dataset_folder.DamagedFileError(path, reason)
        return content

    present = sizes > 0
    ends = np.maximum.accumulate(np.where(present, offsets + sizes, 0).max(1))
    starts = np.minimum(np.where(present, offsets, LAST).min(1), ends)
    for rows in _divide(starts, ends):
        begin = int(starts[rows][0])
        size = int(ends[rows][-1]) - begin
        span = read(begin, size) if size <= LARGE_BYTES else None
        for members in zip(offsets[rows].tolist(), sizes[rows].tolist(), strict=True):
            pairs = zip(*members, strict=True)
            if span is None:  # a member that is not used is very large
                yield [read(at, length) if length else b"" for at, length in pairs]
            else:
                yield [
                    span[at - begin : at - begin + length] if length else b""
                    for at, length in pairs
                ]


def _divide(starts: np.ndarray, ends: np.ndarray) -> Iterator[slice]:
    """Divides samples into parts that are read together.

    Args:
      starts: (N,) offsets of the first bytes of the samples.
      ends: (N,) offsets after their last bytes.
    """
    is_far = starts[1:] - ends[:-1] > GAP_BYTES
    cuts = np.flatnonzero(is_far | (np.diff(starts // SPAN_BYTES) > 0)) + 1
    for first, last in itertools.pairwise([0, *map(int, cuts), len(starts)]):
        if last > first:
            yield slice(first, last)


def _parse(content: bytes) -> dict[str, Any]:
    """Returns a JSON object; {} for other or broken content."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _find(found: Any, fields: list[str]) -> Any:
    """Returns the value of a field of a field of an object; None if it is absent."""
    for name in fields:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _as_texts(value: Any) -> list[bytes]:
    """Returns the texts of a member, or of a value of JSON."""
    if isinstance(value, bytes):
        return clean_texts([value])
    texts = value if isinstance(value, list) else [value]
    return clean_texts(t.encode(errors="ignore") for t in texts if isinstance(t, str))


def _as_label(value: Any) -> int:
    """Returns the label in a member, or in a value of JSON; -1 for none."""
    try:
        label = int(value) if isinstance(value, bytes | int) else -1
    except ValueError:
        return -1
    return label if 0 <= label < 2**31 else -1
