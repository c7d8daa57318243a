"""Opens dataset folders and checks their TFRecord files before a run starts.

A dataset is a folder in TFDS's layout with TFRecord files, written by us or by TFDS.
"""

import dataclasses
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align_jax import dataset_folder, places, shard_files
from align_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

FRAME = 16  # bytes of TFRecord's framing around a record


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a dataset.

    Attributes:
      path: path or URL of the file.
      records: number of records that are used, the first ones of the file.
    """

    path: str
    records: int


def open_shards(directory: str, split: str) -> list[Shard]:
    """Lists a split's shards in order, without those that have no records.

    Args:
      directory: path or URL of the folder that holds dataset_info.json.
      split: name of the split.

    Raises:
      InputError: the dataset, the split or a shard is missing, the files are no
        TFRecord files, or a shard is cut short or not of the size in the manifest.
    """
    return list_shards(directory, open_builder(directory, split).info, split)


def list_shards(
    directory: str,
    info: "tfds.core.DatasetInfo",
    split: str,
    file_format: str = "tfrecord",
) -> list[Shard]:
    """Lists the shards of an open dataset; see `open_shards`.

    Args:
      directory: path or URL of the folder that holds dataset_info.json.
      info: metadata of the dataset.
      split: name of the split.
      file_format: file format that the shards must have, as TFDS names it.
    """
    found_format = info.file_format.value if info.file_format else "tfrecord"
    if found_format != file_format:
        raise InputError(
            f"{directory} holds {found_format} files; wanted {file_format}"
        )
    split_info = info.splits[split]
    records = dataset_folder.records_by_shard(split_info)
    shards = [Shard(path, count) for path, count in records.items()]
    found = shard_files.for_each(places.size, [shard.path for shard in shards])
    absent = [s.path for s, size in zip(shards, found, strict=True) if size is None]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(shards)} shards of {directory} are missing, the"
            f" first is {absent[0]}; build the dataset again"
        )
    sizes = [size for size in found if size is not None]
    _check_manifest(directory, shards, sizes)
    if file_format == "tfrecord":
        _check_sizes(directory, shards, sizes, split_info.num_bytes)
    return [shard for shard in shards if shard.records]


def is_dataset(directory: str) -> bool:
    """Returns whether a folder holds a dataset or the versions of one."""
    path = os.path.join(dataset_folder.newest_version(directory), "dataset_info.json")
    return places.exists(path)


def open_builder(directory: str, split: str) -> "tfds.core.DatasetBuilder":
    """Opens a dataset with TFDS.

    Raises:
      InputError: the dataset or the split is missing, or the metadata are damaged.
    """
    if not places.exists(os.path.join(directory, "dataset_info.json")):
        raise InputError(
            f"no TFDS dataset in {directory!r} (no dataset_info.json): prepare it"
            " first, the quickstart's with `make data`, any corpus with `python -m"
            " data.build`, an evaluation set as docs/evaluation_sets.md says"
        )
    builder = dataset_folder.open_folder(directory)
    splits = builder.info.splits
    if split not in splits:
        raise InputError(f"{directory} has no split {split!r}; it has {list(splits)}")
    return builder


def _check_manifest(
    directory: str, shards: Sequence[Shard], sizes: Sequence[int]
) -> None:
    """Raises InputError for a shard whose size differs from a corpus's manifest."""
    manifest = os.path.join(directory, dataset_folder.MANIFEST)
    described = dataset_folder.read_manifest(directory).get("shards", [])
    wanted = {shard["name"]: shard["bytes"] for shard in described}
    for shard, size in zip(shards, sizes, strict=True):
        expected = wanted.get(os.path.basename(shard.path), size)
        if size != expected:
            raise InputError(
                f"{shard.path} has {size:,} bytes, but {manifest} says {expected:,};"
                " build the dataset again, or copy that file again"
            )


def _check_sizes(
    directory: str, shards: Sequence[Shard], sizes: Sequence[int], total: int
) -> None:
    """Raises InputError for a TFRecord file that is shorter than the metadata say.

    TFDS states only the sum over all records, with or without their framing. If the
    files' size is neither of the two sums nor more, their records are counted to find
    the file that is cut short.

    Args:
      directory: path or URL of the dataset.
      shards: all shards of a split.
      sizes: bytes of each shard's file.
      total: bytes of all records, as TFDS states them.
    """
    framed = total + FRAME * sum(shard.records for shard in shards)
    if sum(sizes) == total or sum(sizes) >= framed:
        return
    for shard in shards:
        found = count_records(shard.path)
        if found < shard.records:
            raise InputError(
                f"{shard.path} is cut short: it has {found} whole records, and"
                f" {directory}/dataset_info.json says {shard.records}; prepare the"
                " dataset again, or copy that file again"
            )


def count_records(path: str) -> int:
    """Counts the complete records of a TFRecord file by its framing alone."""
    size, place, records = places.size(path) or 0, 0, 0
    with places.opening(path) as file:
        while place + FRAME <= size:
            file.seek(place)
            place += FRAME + struct.unpack("<Q", file.read(8))[0]
            records += place <= size
    return records
