"""Adds a collection's pictures to an index, in batches that are written atomically."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from align_jax import places
from align_jax.embed.model import Model
from align_jax.errors import InputError
from align_jax.input.colours import lay_over
from align_jax.input.preprocess import WHITE
from align_jax.input.resample import resample
from align_jax.pictures import Picture, encode_jpeg
from align_jax.search.collection import Entry, Folder, Records
from align_jax.search.vector_index import SOURCE, TABLE, VectorIndex, open_index
from align_jax.weights.folder import digest

AT_ONCE = 256  # pictures per change of the index
COMPACT_EVERY = 200  # batches, so that looking pictures up stays fast
QUALITY = 80  # of JPEG thumbnails


@dataclasses.dataclass
class Indexed:
    """The outcome of indexing a collection.

    Attributes:
      added: number of new or changed pictures that were put into the index.
      kept: number of pictures that the index already had unchanged.
      seen: ids of all pictures of the collection.
      unreadable: error message of each unreadable picture, by id; the index does not
        have these pictures.
    """

    added: int = 0
    kept: int = 0
    seen: set[str] = dataclasses.field(default_factory=set)
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Pictures for one change of the index.

    Attributes:
      entries: the N readable pictures.
      embeddings: (N, D).
      thumbnails: N JPEG files.
      unreadable: error message of each other picture, by id.
    """

    entries: Sequence[Entry]
    embeddings: np.ndarray
    thumbnails: Sequence[bytes]
    unreadable: Mapping[str, str]


def index_pictures(
    model: Model,
    entries: Iterable[Entry],
    index: VectorIndex,
    progress: Callable[[int], None],
) -> Indexed:
    """Embeds new and changed pictures and adds them to the index.

    After an interruption, the same call adds the remaining pictures. Pictures that have
    become unreadable are deleted from the index; those absent from `entries` stay.
    At the end, the index is optimised.

    Each picture is read and decoded once. A thread writes pictures to the index while
    the next ones are decoded and embedded.

    Args:
      model: the model that the index was made for, see `check_model`.
      entries: pictures of the collection.
      index: the index that receives the pictures.
      progress: function that is called with the number of pictures in the index since
        its last call, or found unreadable.
    """
    done = Indexed()
    groups = _embed_groups(model, _absent(entries, index, done, progress), index)
    for group in _written(groups, index):
        done.added += len(group.entries)
        done.unreadable |= group.unreadable
        progress(len(group.entries) + len(group.unreadable))
    index.optimise()
    return done


def _absent(
    entries: Iterable[Entry],
    index: VectorIndex,
    done: Indexed,
    progress: Callable[[int], None],
) -> Iterator[Entry]:
    """Yields the pictures that the index lacks or has in another state.

    Counts the others, and calls `progress` with their number.
    """
    waiting = iter(entries)
    while batch := list(itertools.islice(waiting, AT_ONCE)):
        done.seen.update(entry.id for entry in batch)
        there = index.rows([entry.id for entry in batch], "state")
        states = {name: row["state"] for name, row in there.items()}
        absent = [e for e in batch if states.get(e.id) != e.state]
        kept = len(batch) - len(absent)
        done.kept += kept
        progress(kept)
        yield from absent


def _embed_groups(
    model: Model, entries: Iterable[Entry], index: VectorIndex
) -> Iterator[_Group]:
    """Yields groups of `AT_ONCE` pictures, readable or not; the last may be smaller."""
    waiting: collections.deque[Entry] = collections.deque()
    thumbnails: dict[int, bytes] = {}
    unreadable: dict[int, str] = {}
    side = index.description.thumbnail

    def pictures() -> Iterator[Picture]:
        for entry in entries:
            waiting.append(entry)
            yield entry.picture

    def see(place: int, pixels: np.ndarray) -> None:
        thumbnails[place] = thumbnail(pixels, side)

    def group(first: int, rows: np.ndarray) -> _Group:
        taken = [(first + row, waiting.popleft()) for row in range(len(rows))]
        good = [(place, entry) for place, entry in taken if place not in unreadable]
        return _Group(
            [entry for _, entry in good],
            rows[[place - first for place, _ in good]],
            [thumbnails.pop(place) for place, _ in good],
            {
                entry.id: unreadable.pop(place).removeprefix(f"picture {place} ")
                for place, entry in taken
                if place in unreadable
            },
        )

    first, found = 0, np.zeros((0, model.width), np.float32)
    for rows in model.stream_images(pictures(), unreadable, see):
        found = np.concatenate([found, rows])
        while len(found) >= AT_ONCE:
            yield group(first, found[:AT_ONCE])
            first, found = first + AT_ONCE, found[AT_ONCE:]
    if len(found):
        yield group(first, found)


def _written(groups: Iterable[_Group], index: VectorIndex) -> Iterator[_Group]:
    """Yields each group when the index has it.

    A thread writes a group while the next one is made.
    """
    before: tuple[concurrent.futures.Future[None], _Group] | None = None
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        for turn, group in enumerate(groups, 1):
            if before is not None:
                before[0].result()
                yield before[1]
            compacts = turn % COMPACT_EVERY == 0
            before = thread.submit(_write, index, group, compacts), group
        if before is not None:
            before[0].result()
            yield before[1]


def _write(index: VectorIndex, group: _Group, compacts: bool) -> None:
    """Writes a group to the index, and compacts the index if asked to."""
    index.delete(group.unreadable)  # their earlier versions
    if group.entries:
        index.put(
            [entry.id for entry in group.entries],
            [entry.state for entry in group.entries],
            [entry.text for entry in group.entries],
            group.thumbnails,
            group.embeddings,
        )
    if compacts:
        index.compact()


def thumbnail(pixels: np.ndarray, side: int) -> bytes:
    """Makes a JPEG of a picture, on white if it is transparent.

    Args:
      pixels: uint8 (H, W, 3) or (H, W, 4), see `read_picture`.
      side: longest permitted side in pixels; 0 makes the result b"".
    """
    if not side:
        return b""
    small = lay_over(pixels, WHITE)
    height, width = small.shape[:2]
    if (scale := side / max(height, width)) < 1:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        small = resample(small, size, filtering="bicubic")
    return encode_jpeg(np.ascontiguousarray(small), QUALITY)


def check_model(index: VectorIndex, model: Model) -> None:
    """Raises InputError if an index was made with another model."""
    found = digest(model.weights)
    if index.description.model != found:
        raise InputError(
            f"the index is of another model, {index.description.checkpoint}"
            f" ({index.description.model}), not of this one ({found})"
        )


def check_place(place: str) -> None:
    """Raises InputError unless a place is free, or may hold an index.

    Args:
      place: path of the index, or a bucket's URL, which is not checked.
    """
    if places.is_url(place) or not places.exists(place):
        return
    if not places.is_folder(place):
        raise InputError(f"{place} is a file; wanted the folder of an index")
    names = places.list_names(place)
    if names and not {f"{TABLE}.lance", f"{SOURCE}.lance"} & {*names}:
        raise InputError(f"{place} is not empty and holds no index; give another --out")


def check_collection(place: str, collection: Folder | Records) -> None:
    """Checks that an existing index is of this collection, perhaps in another place.

    An index stores its pictures' paths as one prefix and their ids, so that a second
    collection would change the paths of the first one's pictures.

    Args:
      place: path or URL of the index; without an index there, nothing is checked.
      collection: the collection whose pictures will be added.

    Raises:
      InputError: the index is of another place, and more than half of its pictures
        are not in this collection.
    """
    try:
        index = open_index(place)
    except InputError:  # no index, or a damaged one, which `create_index` refuses
        return
    first, prefix = index.source.prefix, collection.prefix
    if not first or first == prefix:
        return
    ids, there = index.ids(), {entry.id for entry in collection}
    absent = sum(name not in there for name in ids)
    if 2 * absent > len(ids):
        raise InputError(
            f"{place} is an index of {first}, and {absent:,} of its {len(ids):,}"
            f" pictures are not in {prefix}; give another --out, or --prune to delete"
            " them"
        )


@contextlib.contextmanager
def writing_index(place: str) -> Iterator[None]:
    """Turns failures to write an index inside the `with` statement into InputErrors.

    Raises:
      InputError: the disk is full, or the storage cannot be written.
    """
    with places.writing(place):
        try:
            yield
        except RuntimeError as error:  # LanceDB has no class for it
            if "LanceError(IO)" not in str(error):
                raise
            raise OSError(str(error).partition(", /")[0]) from error
