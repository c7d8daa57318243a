"""Facts about a pool's rows, one table at a time: what the rules are computed from."""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.corpus.concepts import mix
from data.curation.config import CurationConfig
from data.curation.entities import load_entities
from data.curation.languages import LANGUAGE_MODELS, Detector
from data.curation.pool import name_columns, read_numbers, read_rows, read_texts
from data.records.stages import materialise_shard
from data.sources.subsets import UIDS, parse_uids

FACTS = pa.schema(
    [
        ("shard", pa.int32()),  # index of the table among the pool's tables
        ("row", pa.int64()),  # index in the table
        ("upper", pa.int64()),  # of the uid, in `signed` form
        ("lower", pa.int64()),
        ("key", pa.int64()),  # hash of the seed and the uid
        ("width", pa.float64()),  # pixels
        ("height", pa.float64()),
        ("language", pa.string()),  # empty or null if unknown
        ("words", pa.int32()),
        ("tokens", pa.int32()),
        ("characters", pa.int32()),
        ("entity", pa.bool_()),  # whether a word is an entity; null if nobody asks
    ]
)
COLUMN = "column "  # prefix of the names of columns that filters name

BLANKS = re.compile("[ \n\r\t\v\f\0]+")  # that separate fastText's tokens
SIGN = np.uint64(1 << 63)


def write_facts(
    config: CurationConfig,
    columns: Mapping[str, bool],
    table: pathlib.Path,
    index: int,
    stages: pathlib.Path,
) -> int:
    """Writes the facts of one table to the stage `facts`, unless the file exists.

    Args:
      config: config of the curation.
      columns: result of `find_columns`.
      table: Parquet file of the pool.
      index: index of the table.
      stages: folder of the stages.

    Returns:
      The number of rows.
    """
    own = [name for name, is_own in columns.items() if is_own]

    def write(temporary: pathlib.Path) -> None:
        schema = facts_schema(own)
        names = dict.fromkeys([*name_columns(config), *own])  # each once
        with pq.ParquetWriter(temporary, schema) as writer:
            start = 0
            for batch in read_rows(table, [*names]):
                found = describe_rows(config, own, batch, table)
                found["shard"] = np.full(len(batch), index, np.int32)
                found["row"] = np.arange(start, start + len(batch))
                arrays = [
                    pa.array(found[field.name], field.type, from_pandas=True)
                    for field in schema
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                start += len(batch)

    return materialise_shard(stages, "facts", index, write)


def facts_schema(columns: list[str]) -> pa.Schema:
    """Returns the schema of the facts, with a column for each of the pool's columns."""
    fields = [pa.field(COLUMN + name, pa.float64()) for name in columns]
    return pa.schema([*FACTS, *fields])


def describe_rows(
    config: CurationConfig,
    columns: list[str],
    batch: pa.RecordBatch,
    table: pathlib.Path,
) -> dict[str, object]:
    """Returns the facts about the rows of a batch by name, without `shard` and `row`.

    Args:
      config: config of the curation.
      columns: columns of numbers to copy.
      batch: rows of the pool.
      table: file of the rows, for messages.
    """
    pool = config.pool
    texts = read_texts(batch[pool.text_column], pool.text_column, table)
    uids = parse_uids(batch[pool.uid_column].to_pylist(), str(table))
    languages: list[str] | list[None] = [None] * len(texts)
    if config.language.kind == "column":
        name = config.language.column
        languages = read_texts(batch[name], name, table)
    elif any(bounds.languages for bounds in config.bounds.values()):
        languages = _detector(config.language.kind, config.language.model)(texts)
    entities: list[bool] | list[None] = [None] * len(texts)
    if any(bounds.text_entities for bounds in config.bounds.values()):
        entities = [*map(_entities(config.entities), texts)]
    numbers = {
        "width": pool.width_column,
        "height": pool.height_column,
        **{COLUMN + name: name for name in columns},
    }
    return {
        "upper": signed(uids["f0"]),
        "lower": signed(uids["f1"]),
        "key": hash_uids(config.seed, uids),
        "language": languages,
        "words": [len(text.split()) for text in texts],
        "tokens": [*map(count_tokens, texts)],
        "characters": [*map(len, texts)],
        "entity": entities,
        **{
            fact: read_numbers(batch[name], name, table)
            for fact, name in numbers.items()
        },
    }


def count_tokens(text: str) -> int:
    """Counts the tokens of a text as fastText does; a line feed is a token."""
    return sum(map(bool, BLANKS.split(text))) + text.count("\n")


def signed(halves: np.ndarray) -> np.ndarray:
    """Converts uint64 to int64, which all engines have, in the same order."""
    return (np.ascontiguousarray(halves) ^ SIGN).view(np.int64)


def unsigned(halves: np.ndarray) -> np.ndarray:
    """Converts the result of `signed` back."""
    return np.ascontiguousarray(halves, np.int64).view(np.uint64) ^ SIGN


def hash_uids(seed: int, uids: np.ndarray) -> np.ndarray:
    """Returns a hash of the seed and each uid, (N,) int64, by SplitMix64."""
    mixed = np.full(len(uids), seed, np.uint64)
    for half in ("f0", "f1"):
        mixed = mix(mixed ^ uids[half])
    return mixed.view(np.int64)


def write_columns(
    pool_uid: str,
    columns: list[str],
    table: pathlib.Path,
    index: int,
    stages: pathlib.Path,
) -> int:
    """Writes the columns of one table of `config.pool.columns` to the stage `columns`.

    Args:
      pool_uid: name of the uids' column.
      columns: columns of numbers to copy.
      table: Parquet file.
      index: index of the table.
      stages: folder of the stages.

    Returns:
      The number of rows.
    """
    schema = pa.schema([FACTS.field("upper"), FACTS.field("lower")])
    for name in columns:
        schema = schema.append(pa.field(COLUMN + name, pa.float64()))

    def write(temporary: pathlib.Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in read_rows(table, [pool_uid, *columns]):
                uids = parse_uids(batch[pool_uid].to_pylist(), str(table))
                arrays = [pa.array(signed(uids[half])) for half in UIDS.names or ()]
                arrays += [read_numbers(batch[name], name, table) for name in columns]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    return materialise_shard(stages, "columns", index, write)


@functools.cache
def _detector(kind: str, model: str) -> Detector:
    """Returns the model of languages, loaded once per process."""
    return LANGUAGE_MODELS[kind](model)


# Loaded once per process.
_entities: Callable = functools.cache(load_entities)
