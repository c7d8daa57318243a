"""An index of embeddings on local disk or in a bucket, by LanceDB.

One table has each picture's id, state, text, thumbnail and embedding. Every change is
whole or absent. What was added since the last `optimise` is found too: queries are
compared with all of it.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfSq
from lancedb.query import LanceVectorQueryBuilder

from align_jax import places
from align_jax.errors import InputError

TABLE = "pictures"
SOURCE = "source"  # a table of one row
DESCRIPTION = b"align_jax"  # key of the table's metadata
# Fewer are compared with a query one by one, which is as fast.
LEAST_INDEXED = 100_000
PARTITION = 4096  # embeddings of one, about
PROBED = 0.05  # of the partitions, for a query
REFINE = 10  # times as many as wanted are compared by their whole embeddings
IDS_AT_ONCE = 500  # in one condition
MOST_PARTS = 4  # of an index that grew, each of which is probed, before it is made anew
# When changes of other processes are seen: by what writes, and by what reads.
AT_ONCE, SOON = datetime.timedelta(0), datetime.timedelta(seconds=2)


@dataclasses.dataclass(frozen=True)
class Description:
    """What an index is of.

    Attributes:
      model: `weights.digest` of what embedded the pictures.
      checkpoint: where that was loaded from.
      width: of the embeddings, D.
      thumbnail: longer side of the thumbnails in pixels; 0 for none.
    """

    model: str
    checkpoint: str
    width: int
    thumbnail: int


@dataclasses.dataclass(frozen=True)
class IndexSource:
    """Where an index's pictures are; it may move.

    Attributes:
      prefix: what comes before a picture's id in its path.
      labels: names of the classes that the collection knows.
    """

    prefix: str = ""
    labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
      id: of the picture.
      score: cosine similarity with the query.
      text: of the picture, or "".
      path: of the picture's file, or dataset, split and id of its record.
    """

    id: str
    score: float
    text: str
    path: str


class VectorIndex:
    """Pictures by their embeddings."""

    def __init__(
        self,
        table: lancedb.table.Table,
        description: Description,
        source: IndexSource,
    ):
        """Wraps an open table; see `create_index` and `open_index`."""
        self._table = table
        self.description = description
        self.source = source

    def __len__(self) -> int:
        return self._table.count_rows()

    def ids(self) -> list[str]:
        """The ids of all pictures."""
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
        """Adds pictures, and replaces those that are there; all of them or none.

        Args:
          ids: N different ones.
          states: of the N.
          texts: of the N.
          thumbnails: JPEG files, or empty.
          embeddings: (N, D) of unit length.
        """
        rows = pa.table(
            [ids, states, texts, thumbnails, _as_arrow(embeddings)],
            schema=self._table.schema.remove_metadata(),
        )
        merge = self._table.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, ids: Iterable[str]) -> int:
        """Deletes pictures; returns how many of them were there."""
        ids, before = list(ids), len(self)
        for start in range(0, len(ids), IDS_AT_ONCE):
            self._table.delete(_among(ids[start : start + IDS_AT_ONCE]))
        return before - len(self)

    def compact(self) -> None:
        """Joins small files, and takes what was added into the indices."""
        if self._index_name("id") is None:
            self._table.create_index("id", config=BTree())
        self._table.optimize()

    def optimise(self) -> None:
        """`compact`, and makes the index of embeddings where the pictures are many.

        It is made anew once it has grown by several parts.
        """
        self.compact()
        if len(self) < LEAST_INDEXED:
            return
        name = self._index_name()
        statistics = self._table.index_stats(name) if name else None
        if statistics and (statistics.num_indices or 0) <= MOST_PARTS:
            return
        partitions = max(1, len(self) // PARTITION)
        kind = IvfSq(distance_type="dot", num_partitions=partitions)
        self._table.create_index("embedding", config=kind)

    def _index_name(self, column: str = "embedding") -> str | None:
        """The name of a column's index, if there is one."""
        indices = self._table.list_indices()
        return next((i.name for i in indices if i.columns == [column]), None)

    def search(
        self, embedding: np.ndarray, limit: int, exact: bool = False
    ) -> list[Hit]:
        """The nearest pictures of a query, best first.

        Args:
          embedding: (D,) of unit length.
          limit: most that are wanted.
          exact: compare with every picture, whatever the index says.

        Raises:
          InputError: the embedding has another width.
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
            query = query.nprobes(max(20, round(PROBED * partitions)))
            query = query.refine_factor(REFINE)
        found = query.to_arrow().to_pylist()
        # Its distance of products is 1 - x . y.
        prefix = self.source.prefix
        return [
            Hit(row["id"], 1.0 - row["_distance"], row["text"], prefix + row["id"])
            for row in found
        ]

    def rows(self, ids: Sequence[str], *columns: str) -> dict[str, dict[str, Any]]:
        """Some columns of some pictures by id, without those that are not there."""
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
    """Makes an empty index at a local path or a bucket's URL, or opens the one there.

    Args:
      place: of the index.
      description: of what it is of.
      source: where its pictures are now; None for nowhere, or where they were.

    Raises:
      InputError: the one there is of another model or has other thumbnails.
    """
    database = lancedb.connect(place, read_consistency_interval=AT_ONCE)
    table = _open_table(database, TABLE)
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
    """Opens an index.

    Raises:
      InputError: there is none, or it is not one of ours.
    """
    if places.is_url(place) or places.is_folder(place):  # connecting would make it
        database = lancedb.connect(place, read_consistency_interval=SOON)
        table = _open_table(database, TABLE)
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
    source, there = IndexSource(), _open_table(database, SOURCE)
    if there is not None:
        (row,) = there.to_arrow().to_pylist()
        source = IndexSource(row["prefix"], tuple(row["labels"]))
    description = Description(**json.loads(metadata[DESCRIPTION]))
    return VectorIndex(table, description, source)


def _open_table(
    database: lancedb.DBConnection, name: str
) -> lancedb.table.Table | None:
    """A table, if there is one: a kill may leave its folder without it."""
    if name not in database.list_tables().tables:
        return None
    try:
        return database.open_table(name)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None


def _write_source(database: lancedb.DBConnection, source: IndexSource) -> None:
    """Tells where the pictures are, in place of what was told before."""
    schema = {"prefix": pa.string(), "labels": pa.list_(pa.string())}
    row = pa.table([[source.prefix], [source.labels]], schema=pa.schema(schema))
    there = _open_table(database, SOURCE) is not None
    database.create_table(SOURCE, row, mode="overwrite" if there else "create")


def _as_arrow(embeddings: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])


def _among(ids: Sequence[str]) -> str:
    """The condition that the id is one of some; quotes are doubled, as in SQL."""
    quoted = (f"'{name}'" for name in (name.replace("'", "''") for name in ids))
    return f"id IN ({', '.join(quoted)})"
