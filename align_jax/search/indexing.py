"""Puts a collection's pictures into an index, in parts that are whole or absent."""

import concurrent.futures
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable

from align_jax.embed.model import Model
from align_jax.errors import InputError
from align_jax.pictures import lay_on_white, make_thumbnail
from align_jax.search.collection import Entry
from align_jax.search.vector_index import VectorIndex
from align_jax.weights.folder import digest

AT_ONCE = 256  # pictures of one change of the index
COMPACT_EVERY = 200  # changes, so that looking pictures up stays fast
QUALITY = 80  # of the thumbnails' JPEG


@dataclasses.dataclass
class Indexed:
    """What came of a collection's pictures.

    Attributes:
      added: that the index did not have, or had otherwise.
      kept: that it had as they are.
      unreadable: what is wrong with others, by id; they are not in the index.
    """

    added: int = 0
    kept: int = 0
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)


def index_pictures(
    model: Model,
    entries: Iterable[Entry],
    index: VectorIndex,
    progress: Callable[[int], None],
) -> Indexed:
    """Embeds what the index does not have yet; a killed call is continued by another.

    Args:
      model: embeds them; its digest is the index's.
      entries: of the collection.
      index: to put them into.
      progress: called with the number of pictures that are done.
    """
    done, waiting = Indexed(), iter(entries)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for turn in itertools.count(1):
            batch = list(itertools.islice(waiting, AT_ONCE))
            if not batch:
                break
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
    index.delete(unreadable)  # what they were before
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
    """A small JPEG of a picture's file, on white; empty for a side of 0."""
    if not side:
        return b""
    file = io.BytesIO()
    lay_on_white(make_thumbnail(content, side)).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


def check_model(index: VectorIndex, model: Model) -> None:
    """Raises InputError where an index is not of a model."""
    found = digest(model.weights)
    if index.description.model != found:
        raise InputError(
            f"the index is of another model, {index.description.checkpoint}"
            f" ({index.description.model}), not of this one ({found})"
        )
