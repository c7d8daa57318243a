"""An index of embeddings on local disk or in a bucket, stored by LanceDB.

One table has each picture's id, state, text, thumbnail and embedding. Every change of
the table is atomic. A search also finds the pictures added since the last `optimise`,
because the query is compared with each of them.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfRq, IvfSq
from lancedb.query import LanceVectorQueryBuilder

from align_jax import places
from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.search.database import AT_ONCE, SOON, connect, open_table

TABLE = "pictures"
SOURCE = "source"  # a table of one row
DESCRIPTION = b"align_jax"  # key of the table's metadata
# With fewer embeddings, comparing a query with all of them is as fast.
LEAST_INDEXED = 100_000
PARTITION = 4096  # embeddings per partition, about
PROBED = 0.05  # share of the partitions that a query searches
LEAST_PROBED = 40  # partitions
# RaBitQ's codes (arXiv 2405.12497, 2409.09913) are compared ten times as fast as 8-bit
# integers. LanceDB has them for widths that `CODED` divides.
BITS = 4  # of a number's code
SAMPLED = 64  # embeddings a partition that k-means sees
CODED = 8
REFINE = 4  # candidates per hit that are compared again by full embeddings
IDS_AT_ONCE = 500  # in one SQL condition
# An index that grew has several parts, and a query probes each: with more than these,
# it is rebuilt.
MOST_PARTS = 4


@dataclasses.dataclass(frozen=True)
class Description:
    """The model of an index, and the sizes of its embeddings and thumbnails.

    Attributes:
      model: digest of the weights that embed the pictures, see `weights.folder.digest`.
      checkpoint: source from which `align_jax.load` read the model.
      width: width of the embeddings, D.
      thumbnail: the thumbnails' longer side in pixels; 0 for none.
    """

    model: str
    checkpoint: str
    width: int
    thumbnail: int


@dataclasses.dataclass(frozen=True)
class IndexSource:
    """The collection of an index; each build may give another.

    Attributes:
      prefix: text that gives a picture's path if the picture's id is appended.
      labels: class names of the collection; empty if it has none.
    """

    prefix: str = ""
    labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Hit:
    """A picture that a search returns.

    Attributes:
      id: the picture's id.
      score: cosine similarity with the query.
      text: the picture's text, or "".
      path: path of the picture's file; for a record, its dataset, split and id.
    """

    id: str
    score: float
    text: str
    path: str


class VectorIndex:
    """A table of pictures, searched by their embeddings; the length counts pictures."""

    def __init__(
        self,
        table: lancedb.table.Table,
        description: Description,
        source: IndexSource,
    ) -> None:
        """Wraps an open table; use `create_index` or `open_index` instead."""
        self._table = table
        self.description = description
        self.source = source

    def __len__(self) -> int:
        return self._table.count_rows()

    def ids(self) -> list[str]:
        """Returns the ids of all pictures."""
        found = self._table.search().select(["id"]).limit(None).to_arrow()
        return found["id"].to_pylist()

    def put(
        self,
        ids: Sequence[str],
        states: Sequence[str],
        texts: Sequence[str],
        thumbnails: Sequence[bytes],
        embeddings: np.ndarray,
    ) -> None:
        """Adds pictures, or replaces those of equal id, in one atomic change.

        Args:
          ids: N different ids.
          states: N fingerprints, see `Entry.state`.
          texts: N texts; "" for none.
          thumbnails: N JPEG files; b"" for none.
          embeddings: (N, D) embeddings of unit length.
        """
        rows = pa.table(
            [ids, states, texts, thumbnails, _as_arrow(embeddings)],
            schema=self._table.schema.remove_metadata(),
        )
        merge = self._table.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, ids: Iterable[str]) -> int:
        """Deletes pictures by id; returns how many of them the index had.

        More than `IDS_AT_ONCE` ids are deleted in several atomic changes.
        """
        ids, before = list(ids), len(self)
        for start in range(0, len(ids), IDS_AT_ONCE):
            self._table.delete(_among(ids[start : start + IDS_AT_ONCE]))
        return before - len(self)

    def compact(self) -> None:
        """Merges small files, and adds new pictures to the indices of the columns.

        The index of ids is created if it is absent.
        """
        if self._index_name("id") is None:
            self._table.create_index("id", config=BTree())
        self._table.optimize()

    def optimise(self) -> None:
        """Compacts the table, and indexes the embeddings if there are enough pictures.

        Enough are `LEAST_INDEXED`. The index of embeddings is rebuilt if it has grown
        to over `MOST_PARTS` parts, or is of the kind that earlier releases built.
        """
        self.compact()
        if len(self) < LEAST_INDEXED:
            return
        partitions = max(1, len(self) // PARTITION)
        kind: IvfRq | IvfSq = IvfSq("dot", partitions)
        if self.description.width % CODED == 0:
            kind = IvfRq("dot", partitions, BITS, sample_rate=SAMPLED)
        name = self._index_name()
        if name and (there := self._table.index_stats(name)):
            same = there.index_type == {IvfRq: "IVF_RQ", IvfSq: "IVF_SQ"}[type(kind)]
            if same and (there.num_indices or 0) <= MOST_PARTS:
                return
        self._table.create_index("embedding", config=kind)

    def warm(self) -> None:
        """Reads the index of embeddings into memory, if there is one.

        Otherwise a query reads the partitions that no query has searched before.
        """
        if name := self._index_name():
            cast(lancedb.table.LanceTable, self._table).prewarm_index(name)

    def _index_name(self, column: str = "embedding") -> str | None:
        """Returns the name of a column's index; None if there is none."""
        indices = self._table.list_indices()
        return next((i.name for i in indices if i.columns == [column]), None)

    def search(
        self, embedding: np.ndarray, limit: int, exact: bool = False
    ) -> list[Hit]:
        """Returns the pictures of the highest cosine with a query, best first.

        If the embeddings are indexed, some of the nearest pictures may be missed.

        Args:
          embedding: (D,) embedding of the query, of unit length.
          limit: largest number of pictures to return.
          exact: whether to compare with every picture, without the index of embeddings.

        Raises:
          InputError: the query and the index differ in width.
        """
        if embedding.shape != (self.description.width,):
            raise InputError(
                f"the query has {embedding.shape} numbers, the index"
                f" {self.description.width} a picture"
            )
        query = cast(
            LanceVectorQueryBuilder,
            self._table.search(embedding, vector_column_name="embedding"),
        )
        query = query.distance_type("dot").limit(limit)
        query = query.select(["id", "text", "_distance"])
        if exact or self._index_name() is None:
            query = query.bypass_vector_index()
        else:
            partitions = max(1, len(self) // PARTITION)
            query = query.nprobes(max(LEAST_PROBED, round(PROBED * partitions)))
            query = query.refine_factor(REFINE)
        found = query.to_arrow().to_pylist()
        # LanceDB's distance "dot" is 1 - x . y.
        prefix = self.source.prefix
        return [
            Hit(row["id"], 1.0 - row["_distance"], row["text"], prefix + row["id"])
            for row in found
        ]

    def rows(self, ids: Sequence[str], *columns: str) -> dict[str, dict[str, Any]]:
        """Returns {id: {column: value}}; ids that the index lacks are left out.

        Args:
          ids: pictures' ids.
          *columns: "state", "text", "thumbnail" or "embedding"; "id" is always read.
        """
        found = {}
        for start in range(0, len(ids), IDS_AT_ONCE):
            condition = _among(ids[start : start + IDS_AT_ONCE])
            query = self._table.search().where(condition).select(["id", *columns])
            for row in query.limit(None).to_arrow().to_pylist():
                found[row["id"]] = row
        return found


def create_index(
    place: str, description: Description, source: IndexSource | None = None
) -> VectorIndex:
    """Creates an empty index, or opens the one that exists in the same place.

    Args:
      place: path or bucket's URL of the index.
      description: the model and the sizes of the index.
      source: the current collection, which replaces that of an existing index; None
        keeps the latter.

    Raises:
      InputError: the existing index has another model, width or thumbnail size, or is
        a table that `create_index` did not make.
    """
    database = connect(place, AT_ONCE)
    table = open_table(database, TABLE)
    if table is not None:
        index = _read_index(database, table)
        found, wanted = index.description, description
        differing = [
            f"{name}: {old!r} -> {getattr(wanted, name)!r}"
            for name, old in dataclasses.asdict(found).items()
            if name != "checkpoint" and old != getattr(wanted, name)
        ]
        if differing:
            raise InputError(
                f"{place} is an index of another kind ({'; '.join(differing)}); give"
                " another --out"
            )
        if source and index.source != source:
            _write_source(database, source)
            index.source = source
        return index
    width = description.width
    schema = pa.schema(
        {
            "id": pa.string(),
            "state": pa.string(),
            "text": pa.string(),
            "thumbnail": pa.binary(),
            "embedding": pa.list_(pa.float32(), width),
        },
        metadata={DESCRIPTION: json.dumps(dataclasses.asdict(description))},
    )
    source = source or IndexSource()
    _write_source(database, source)
    table = database.create_table(TABLE, schema=schema)
    return VectorIndex(table, description, source)


def open_index(place: str) -> VectorIndex:
    """Opens an existing index.

    Args:
      place: path or bucket's URL of the index.

    Raises:
      InputError: no index exists there, or `create_index` did not make it.
    """
    if places.is_url(place) or places.is_folder(place):  # connecting would create it
        database = connect(place, SOON)
        table = open_table(database, TABLE)
        if table is not None:
            return _read_index(database, table)
    raise InputError(
        f"no index in {place!r}; make one with `python -m align_jax.search build`"
    )


def _read_index(
    database: lancedb.DBConnection, table: lancedb.table.Table
) -> VectorIndex:
    metadata: Mapping = table.schema.metadata or {}
    if DESCRIPTION not in metadata:
        raise InputError(
            f"{database.uri} holds a table {TABLE!r} that is no index of ours"
        )
    source, there = IndexSource(), open_table(database, SOURCE)
    if there is not None:
        (row,) = there.to_arrow().to_pylist()
        source = IndexSource(row["prefix"], tuple(row["labels"]))
    try:
        found = read_config(Description, json.loads(metadata[DESCRIPTION]))
    except (ValueError, TypeError) as error:
        raise InputError(f"{database.uri} is a damaged index: {error}") from error
    return VectorIndex(table, found, source)


def _write_source(database: lancedb.DBConnection, source: IndexSource) -> None:
    """Stores the collection of the index, in place of an earlier one."""
    schema = {"prefix": pa.string(), "labels": pa.list_(pa.string())}
    row = pa.table([[source.prefix], [source.labels]], schema=pa.schema(schema))
    there = open_table(database, SOURCE) is not None
    database.create_table(SOURCE, row, mode="overwrite" if there else "create")


def _as_arrow(embeddings: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])


def _among(ids: Sequence[str]) -> str:
    """Returns the SQL condition that the id is one of these; quotes are doubled."""
    quoted = (f"'{name}'" for name in (name.replace("'", "''") for name in ids))
    return f"id IN ({', '.join(quoted)})"
