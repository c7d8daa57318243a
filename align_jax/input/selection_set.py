"""Reads sets of instances whose pictures and captions are to be matched.

`sugar_crepe` is the folder `data` of https://github.com/RAIVNLab/sugar-crepe, seven
files PART.json of {index: {"filename", "caption", "negative_caption"}} on the pictures
of COCO's val2017. `winoground` is a snapshot of `facebook/winoground`, with Parquet
files of the columns `image_0`, `image_1`, `caption_0` and `caption_1` in its folder
`data`. `wds` is a set in CLIP_benchmark's folder layout, see `benchmark_folder`, whose
samples have the right caption in the first line of their `txt` and wrong ones below.
`align_jax.input.aro_set` reads ARO.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from align_jax import pictures as picture_files
from align_jax import places, shard_files
from align_jax.errors import InputError, one_line
from align_jax.input.benchmark_folder import read_captions
from align_jax.input.hub_cache import find_snapshot
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
      read: function that yields the encoded pictures.
      parts: numbers of the instances of each part, by name; {} for a set without parts.
        An instance may be in no part.
      right_first: whether the right caption is the first one in the code of the set's
        authors, so that their argmax gives it ties.
    """

    rows: np.ndarray
    captions: list[list[str]]
    read: Callable[[], Iterable[bytes]]
    parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    right_first: bool = True


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
            name, *texts = (as_text(entry[field], where) for field in FIELDS)
            rows.append([files.setdefault(name, len(files))])
            captions.append(texts)
        if len(captions) == first:
            raise InputError(f"{path} has no entries")
        parts[part] = np.arange(first, len(captions))
    folder = places.resolve(pictures)
    check_pictures(folder, files, "; wanted COCO's val2017")

    def read() -> Iterator[bytes]:
        for name in files:
            yield picture_files.read_file(os.path.join(folder, name))

    return SelectionSet(np.array(rows), captions, read, parts)


def read_columns(paths: Sequence[str], names: Sequence[str]) -> list[list[str]]:
    """Reads the texts of some columns of Parquet files, for each row."""
    return [
        [as_text(row[name], where) for name in names]
        for where, row in stream_rows(paths, names)
    ]


def read_winoground(directory: str) -> SelectionSet:
    """Reads Winoground: two pictures and two captions of the same words.

    Args:
      directory: path or URL of the snapshot.

    Raises:
      InputError: the Parquet files are missing, or one is damaged or lacks a column.
    """
    paths = list_parquet(directory)
    captions = read_columns(paths, CAPTIONS)

    def read() -> Iterator[bytes]:
        for where, row in stream_rows(paths, IMAGES):
            for name in IMAGES:
                yield as_picture(row[name], f"{where} has no bytes in {name}")

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


def as_text(value: Any, where: str) -> str:
    """Returns a value that is a text; raises InputError for another one."""
    check_text(value, where)
    return value


def as_picture(value: Any, message: str) -> bytes:
    """Returns the file's bytes of a picture in a Parquet column.

    Args:
      value: content of the column in a row.
      message: text of the error.

    Raises:
      InputError: the column has no bytes.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        raise InputError(message)
    return content


def check_pictures(folder: str, files: Collection[str], advice: str = "") -> None:
    """Raises InputError if a folder lacks one of some pictures.

    Args:
      folder: path or URL of the folder.
      files: name of each picture.
      advice: last part of the message.
    """
    missing = {*files}.difference(places.list_names(folder))
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing):,} of {len(files):,} pictures, among them"
            f" {min(missing)}{advice}"
        )


def list_parquet(directory: str) -> list[str]:
    """Lists the Parquet files of a snapshot; raises InputError if there are none."""
    folder = os.path.join(find_snapshot(directory), "data")
    return shard_files.list_files(folder, (".parquet",))


def stream_rows(
    paths: Iterable[str], columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place of each row, as "row 3 of FILE", and the row.

    Raises:
      InputError: a file is damaged or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        with places.opening(path) as opened:
            try:
                file = pq.ParquetFile(shard_files.Seekable(opened))
                if missing := [c for c in columns if c not in file.schema_arrow.names]:
                    raise InputError(
                        f"{path} has no column {missing[0]!r}; its columns are"
                        f" {', '.join(file.schema_arrow.names)}"
                    )
                batches = file.iter_batches(TOGETHER, columns=[*columns])
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows):
                    yield f"row {number} of {path}", row
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{path} is no Parquet file, or is cut short: {one_line(error)}"
                ) from error
