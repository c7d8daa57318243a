"""The index of a dataset of tars: where each member of each sample begins.

`python -m data.index DATASET` writes it beside the tars or to another folder:

    index.json      of each tar its size, time, number of samples and their endings
    NAME.tar.index  offsets and sizes of the members of the tar, for NumPy

A sample is WebDataset's: consecutive members of one folder whose names agree up to the
first dot. The rest of a name is the member's ending, in lower case. Files that macOS
adds, with names that begin with "._", belong to no sample.
"""

import dataclasses
import errno
import io
import os
import shlex
from typing import IO, Any

import numpy as np

from align_jax import dataset_folder, places, shard_files
from align_jax.errors import InputError, one_line
from align_jax.tars import DAMAGE, Member, Tar

NAME, ENDING, VERSION = "index.json", ".index", 1
TARS = (".tar",)
PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
ABSENT = -1  # offset of a member that a sample lacks


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The members of a tar's samples.

    Attributes:
      endings: endings of all members, sorted; the names of the columns.
      offsets: (samples, endings) int64 offsets of the members' contents; `ABSENT` for a
        member that the sample lacks.
      sizes: (samples, endings) int64 sizes of the members in bytes.
      fault: description of the damage that ends the tar too early; "" for a whole tar.
    """

    endings: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    fault: str = ""


def list_tars(dataset: str) -> list[str]:
    """Lists the tars of a dataset; raises InputError if it has none or packed ones."""
    paths = shard_files.list_files(dataset, (*TARS, ".tgz"))
    if packed := [path for path in paths if path.endswith(PACKED)]:
        raise InputError(
            f"{packed[0]} is compressed, so no member of it can be reached alone;"
            " unpack it to a .tar, or use it as a source of data.build"
        )
    if not (tars := [path for path in paths if path.endswith(TARS)]):
        raise InputError(f"no .tar files in {dataset}")
    return tars


def scan_tar(path: str) -> TarIndex:
    """Reads the headers of a tar; the samples before damage are kept.

    Raises:
      InputError: the file is missing or cannot be read, or it is no tar.
    """
    samples: list[dict[str, tuple[int, int]]] = []
    with places.opening(path) as file:
        fault = _read_headers(file, places.size(path) or 0, samples)
    if fault and not samples:
        raise InputError(f"{path} is not a tar file with samples: {fault}")
    endings = sorted({ending for sample in samples for ending in sample})
    column = {ending: number for number, ending in enumerate(endings)}
    offsets = np.full((len(samples), len(endings)), ABSENT, np.int64)
    sizes = np.zeros_like(offsets)
    for row, sample in enumerate(samples):
        for ending, (offset, size) in sample.items():
            offsets[row, column[ending]], sizes[row, column[ending]] = offset, size
    return TarIndex(tuple(endings), offsets, sizes, fault)


def _read_headers(
    file: IO[bytes], total: int, samples: list[dict[str, tuple[int, int]]]
) -> str:
    """Adds the samples of an open tar to `samples`.

    Args:
      file: opened tar.
      total: size of the file in bytes.
      samples: list that receives, for each sample, the place (offset, size) of each
        member by ending.

    Returns:
      The damage that ends the tar too early, or "".
    """
    key: tuple[str, str] | None = None
    try:
        with Tar.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if not member.isreg() or member.issparse() or not stem:
                    continue  # also "._name", which macOS adds
                if member.offset_data + member.size > total:
                    if key == (folder, stem):
                        samples.pop()
                    return f"it ends inside {member.name}"
                if (folder, stem) != key:
                    key = (folder, stem)
                    samples.append({})
                place = (member.offset_data, member.size)
                samples[-1].setdefault(ending.lower(), place)
            return (
                ""
                if tar.marked_end
                else "it lacks the mark of its end, so it may be cut short"
            )
    except DAMAGE as error:
        # A damaged header may lead to an impossible place in the file. Any other
        # OSError is of the storage and says nothing about the tar.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        return one_line(error)


def shard_entry(path: str, index: TarIndex) -> dict[str, Any]:
    """Returns a tar's entry in index.json."""
    counts = (index.offsets != ABSENT).sum(0)
    return {
        **shard_state(path),
        "records": len(index.offsets),
        "endings": dict(zip(index.endings, map(int, counts), strict=True)),
        "fault": index.fault,
    }


def shard_state(path: str) -> dict[str, Any]:
    """Returns the size and the time of a file, which an index must have."""
    return {"bytes": places.size(path), "modified": places.modified(path)}


def write_index(folder: str, path: str, index: TarIndex) -> None:
    """Writes the index of the tar `path` to a folder."""
    file = io.BytesIO()
    endings = np.array(index.endings, np.str_)
    np.savez_compressed(file, endings=endings, offsets=index.offsets, sizes=index.sizes)
    places.write_bytes(_index_path(folder, path), file.getvalue())


def read_index(folder: str, path: str) -> TarIndex:
    """Reads the index of the tar `path` from a folder.

    Raises:
      DamagedFileError: the index is damaged.
      InputError: the index is missing.
    """
    place = _index_path(folder, path)
    try:
        with np.load(io.BytesIO(places.read_bytes(place)), allow_pickle=False) as found:
            endings = tuple(map(str, found["endings"]))
            index = TarIndex(endings, found["offsets"], found["sizes"])
        shape = (len(index.offsets), len(endings))
        if not index.offsets.shape == index.sizes.shape == shape:
            raise ValueError("its arrays have other shapes")
    except InputError:
        raise
    except Exception as error:  # of zipfile, zlib and NumPy
        raise dataset_folder.DamagedFileError(place, one_line(error)) from error
    return index


def write_entries(folder: str, entries: dict[str, dict[str, Any]]) -> None:
    """Writes index.json, with the entries of tars by name."""
    content = {"version": VERSION, "shards": dict(sorted(entries.items()))}
    places.write_json(os.path.join(folder, NAME), content)


def read_entries(folder: str) -> dict[str, dict[str, Any]]:
    """Reads the entries of tars from index.json; {} if it is missing.

    Raises:
      InputError: the file is damaged or of another version.
    """
    path = os.path.join(folder, NAME)
    if not places.exists(path):
        return {}
    found = places.read_object(path, {"version": int, "shards": dict})
    if found["version"] != VERSION:
        raise InputError(f"{path} is of version {found['version']}; wanted {VERSION}")
    return found["shards"]


def is_current(entry: Any, state: dict[str, Any]) -> bool:
    """Returns whether an entry of index.json is of a file with this size and time."""
    fields = {"records": int, "endings": dict, "fault": str}
    return (
        isinstance(entry, dict)
        and all(entry.get(name) == value for name, value in state.items())
        and all(isinstance(entry.get(name), kind) for name, kind in fields.items())
    )


def current_entries(dataset: str, folder: str) -> dict[str, dict[str, Any]]:
    """Returns the entries of a dataset's tars by path, in order.

    Args:
      dataset: path, pattern or URL of the tars.
      folder: folder of the index; "" for the folder of the tars.

    Raises:
      InputError: the dataset has no tars, or a tar has no index or an older one.
    """
    paths = list_tars(dataset)
    command = f"`python -m data.index {shlex.quote(dataset)}"
    command += f" --out {shlex.quote(folder)}`" if folder else "`"
    entries = read_entries(index_folder(paths, folder))
    if not entries:
        raise InputError(f"{dataset} has no index of its tars: run {command}")
    found: dict[str, dict[str, Any]] = {}
    for path, state in zip(
        paths, shard_files.for_each(shard_state, paths), strict=True
    ):
        entry = entries.get(os.path.basename(path))
        if entry is None or not is_current(entry, state):
            reason = "is not in the index" if entry is None else "is not as indexed"
            raise InputError(f"{path} {reason}: run {command}")
        found[path] = entry
    return found


def index_folder(paths: list[str], folder: str) -> str:
    """Returns the folder of an index: the given one, or that of the tars for ""."""
    return places.resolve(folder) if folder else os.path.dirname(paths[0])


def _index_path(folder: str, path: str) -> str:
    return os.path.join(folder, os.path.basename(path) + ENDING)
