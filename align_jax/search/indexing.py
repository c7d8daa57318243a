"""Adds a collection's pictures to an index, in batches that are written atomically."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from align_jax import places
from align_jax.embed.model import Model
from align_jax.errors import InputError
from align_jax.pictures import small_jpeg
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

    Args:
      model: the model that the index was made for, see `check_model`.
      entries: pictures of the collection.
      index: the index that receives the pictures.
      progress: function that is called with the size of each finished batch.
    """
    done, waiting = Indexed(), iter(entries)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for turn in itertools.count(1):
            batch = list(itertools.islice(waiting, AT_ONCE))
            if not batch:
                break
            done.seen.update(entry.id for entry in batch)
            there = index.rows([entry.id for entry in batch], "state")
            states = {name: row["state"] for name, row in there.items()}
            absent = [e for e in batch if states.get(e.id) != e.state]
            done.kept += len(batch) - len(absent)
            if absent:
                _index_batch(model, absent, index, done, pool)
            progress(len(batch))
            if turn % COMPACT_EVERY == 0:
                index.compact()
    index.optimise()
    return done


def _index_batch(
    model: Model,
    batch: list[Entry],
    index: VectorIndex,
    done: Indexed,
    pool: concurrent.futures.Executor,
) -> None:
    wrong: dict[int, str] = {}
    read = [*pool.map(_read, batch)]
    contents = [b"" if isinstance(found, InputError) else found for found in read]
    embeddings = model.encode_images(contents, wrong)
    wrong |= {row: str(e) for row, e in enumerate(read) if isinstance(e, InputError)}
    rows = [row for row in range(len(batch)) if row not in wrong]
    unreadable = {batch[row].id: wrong[row] for row in sorted(wrong)}
    index.delete(unreadable)  # their earlier versions
    done.unreadable |= unreadable
    if not rows:
        return
    side = index.description.thumbnail
    thumbnails = pool.map(lambda row: thumbnail(contents[row], side), rows)
    index.put(
        [batch[row].id for row in rows],
        [batch[row].state for row in rows],
        [batch[row].text for row in rows],
        list(thumbnails),
        embeddings[rows],
    )
    done.added += len(rows)


def _read(entry: Entry) -> bytes | InputError:
    try:
        return entry.read()
    except InputError as error:
        return error


def thumbnail(content: bytes, side: int) -> bytes:
    """Makes a JPEG of a picture file, on white if it is transparent.

    Args:
      content: picture file.
      side: longest permitted side in pixels; 0 makes the result b"".
    """
    return small_jpeg(content, side, QUALITY) if side else b""


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
