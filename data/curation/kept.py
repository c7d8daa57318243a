"""Writes the rows that a filter keeps, and their uids."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.curation.clusters import read_split
from data.curation.facts import FACTS, signed, unsigned
from data.curation.pool import copy_rows
from data.records.stages import materialise
from data.sources.subsets import UIDS, open_subset

AT_ONCE = 1 << 20  # uids that are converted at a time


def write_kept(
    table: pathlib.Path, index: int, stage: pathlib.Path, folder: pathlib.Path
) -> int:
    """Writes a table's kept rows to a Parquet file, if it has some.

    Args:
      table: Parquet file of the pool.
      index: index of the table.
      stage: folder of the split stage with the kept rows.
      folder: output folder.

    Returns:
      The number of rows.
    """
    rows = read_split(stage, index)
    if len(rows):
        target = folder / f"{index:05}.parquet"
        materialise(target, lambda path: copy_rows(table, rows, path))
    return len(rows)


def copy_subset(path: str, stage: pathlib.Path) -> None:
    """Writes the uids of a subset file as a stage, unless the stage exists."""

    def write(temporary: pathlib.Path) -> None:
        uids = open_subset(path)
        schema = pa.schema([FACTS.field("upper"), FACTS.field("lower")])
        with pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(uids), AT_ONCE):
                part = np.array(uids[start : start + AT_ONCE])
                halves = [pa.array(signed(part[half])) for half in UIDS.names or ()]
                writer.write_table(pa.Table.from_arrays(halves, schema=schema))

    materialise(stage, write)


def read_uids(stage: pathlib.Path) -> Iterator[np.ndarray]:
    """Yields the sorted uids of a stage, which is a file or a folder of files."""
    files = sorted(stage.glob("*.parquet")) if stage.is_dir() else [stage]
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(AT_ONCE):
            uids = np.empty(len(batch), UIDS)
            for half, name in zip(UIDS.names or (), ("upper", "lower"), strict=True):
                uids[half] = unsigned(batch[name].to_numpy())
            yield uids
