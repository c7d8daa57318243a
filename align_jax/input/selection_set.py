"""Reads sets of instances whose pictures and captions are to be matched.

`sugar_crepe` is the folder `data` of https://github.com/RAIVNLab/sugar-crepe, seven
files PART.json of {index: {"filename", "caption", "negative_caption"}} on the pictures
of COCO's val2017. `winoground` is a snapshot of `facebook/winoground`, with Parquet
files of the columns `image_0`, `image_1`, `caption_0` and `caption_1` in its folder
`data`. `wds` is a set in CLIP_benchmark's folder layout, see `benchmark_folder`, whose
samples have the right caption in the first line of their `txt` and wrong ones below.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from align_jax import pictures as picture_files
from align_jax import places, shard_files
from align_jax.errors import InputError, one_line
from align_jax.input.benchmark_folder import read_captions
from align_jax.texts import check_text

PARTS = (
    "add_att add_obj replace_att replace_obj replace_rel swap_att swap_obj"
).split()
FIELDS = ("filename", "caption", "negative_caption")
IMAGES, CAPTIONS = ("image_0", "image_1"), ("caption_0", "caption_1")
TOGETHER = 16  # rows of a Parquet file that are read together


@dataclasses.dataclass(frozen=True)
class SelectionSet:
    """N instances of I pictures and C captions; picture i belongs to caption i.

    Attributes:
      rows: (N, I) rows of the pictures among those that `read` yields.
      captions: N lists of C captions.
      read: function that yields the encoded pictures, each once.
      parts: range of the instances of each part, by name; {} for a set without parts.
    """

    rows: np.ndarray
    captions: list[list[str]]
    read: Callable[[], Iterable[bytes]]
    parts: dict[str, slice] = dataclasses.field(default_factory=dict)


def read_sugar_crepe(directory: str, pictures: str) -> SelectionSet:
    """Reads SugarCrepe (arXiv 2306.14610): a picture, its caption and a wrong one.

    Args:
      directory: path or URL of the folder with the seven files.
      pictures: path or URL of the folder with the pictures.

    Raises:
      InputError: a file or a picture is missing, or an entry has another form.
    """
    files: dict[str, int] = {}  # row of each picture
    rows: list[list[int]] = []
    captions: list[list[str]] = []
    parts = {}
    for part in PARTS:
        path = os.path.join(places.resolve(directory), f"{part}.json")
        first = len(captions)
        for index, entry in places.read_object(path).items():
            where = f"entry {index} of {path}"
            if not isinstance(entry, dict) or not {*FIELDS} <= {*entry}:
                raise InputError(f"{where} is {entry!a}; wanted {', '.join(FIELDS)}")
            name, *texts = (_as_text(entry[field], where) for field in FIELDS)
            rows.append([files.setdefault(name, len(files))])
            captions.append(texts)
        if len(captions) == first:
            raise InputError(f"{path} has no entries")
        parts[part] = slice(first, len(captions))
    folder = places.resolve(pictures)
    missing = {*files}.difference(places.list_names(folder))
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing):,} of {len(files):,} pictures, among them"
            f" {min(missing)}; wanted COCO's val2017"
        )

    def read() -> Iterator[bytes]:
        for name in files:
            yield picture_files.read_file(os.path.join(folder, name))

    return SelectionSet(np.array(rows), captions, read, parts)


def read_winoground(directory: str) -> SelectionSet:
    """Reads Winoground: two pictures and two captions of the same words.

    Args:
      directory: path or URL of the snapshot.

    Raises:
      InputError: the Parquet files are missing, or one is damaged or lacks a column.
    """
    folder = os.path.join(places.resolve(directory), "data")
    paths = shard_files.list_files(folder, (".parquet",))
    captions = [
        [_as_text(row[name], f"row {number} of {path}") for name in CAPTIONS]
        for path in paths
        for number, row in enumerate(_stream_rows(path, CAPTIONS))
    ]

    def read() -> Iterator[bytes]:
        for path in paths:
            for number, row in enumerate(_stream_rows(path, IMAGES)):
                for name in IMAGES:
                    found = row[name]
                    content = found.get("bytes") if isinstance(found, dict) else found
                    if not isinstance(content, bytes) or not content:
                        raise InputError(
                            f"row {number} of {path} has no bytes in {name}"
                        )
                    yield content

    rows = np.arange(2 * len(captions)).reshape(-1, 2)  # (N, I)
    return SelectionSet(rows, captions, read)


def read_benchmark(directory: str, split: str) -> SelectionSet:
    """Reads a set in CLIP_benchmark's folder layout.

    Args:
      directory: path or URL of the set's folder.
      split: name of the folder with the tars.

    Raises:
      InputError: an error of `read_captions`, or the samples have different numbers of
        captions, or only one each.
    """
    found = read_captions(directory, split)
    counts = sorted({len(texts) for _, texts in found})
    if len(counts) > 1 or counts[0] < 2:
        raise InputError(
            f"samples of {directory} have {' or '.join(map(str, counts))} captions;"
            " wanted the same number for all, two or more"
        )
    rows = np.arange(len(found))[:, None]  # (N, 1)
    pictures = [picture for picture, _ in found]
    return SelectionSet(rows, [texts for _, texts in found], lambda: pictures)


def _as_text(value: Any, where: str) -> str:
    check_text(value, where)
    return value


def _stream_rows(path: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields rows of a Parquet file; InputError if it is damaged or lacks a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with places.opening(path) as opened:
        try:
            file = pq.ParquetFile(shard_files.Seekable(opened))
            if missing := [c for c in columns if c not in file.schema_arrow.names]:
                raise InputError(
                    f"{path} has no column {missing[0]!r}; its columns are"
                    f" {', '.join(file.schema_arrow.names)}"
                )
            for batch in file.iter_batches(TOGETHER, columns=[*columns]):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} is no Parquet file, or is cut short: {one_line(error)}"
            ) from error
