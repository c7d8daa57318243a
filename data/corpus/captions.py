"""Captions of pictures, such as synthetic ones, that lie beside the texts of a corpus.

The stage `captions` has a file for each of the user's tables, with the normalised
captions of each picture. They are joined by the picture's id when records are written,
and no rule looks at them.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from align_jax.errors import InputError, one_line
from align_jax.texts import normalise
from data.corpus.build_files import remember_files
from data.corpus.config import CaptionConfig
from data.corpus.stage_tables import StageTables
from data.records.stages import materialise_shard
from data.sources.config import SourceConfig
from data.sources.files import list_files
from data.sources.parquet_tables import (
    is_list,
    is_text,
    open_parquet,
    plain_type,
    reading_parquet,
)

FIELD = "config.captions.path"
CAPTIONS = pa.schema([("image_id", pa.string()), ("captions", pa.list_(pa.string()))])
BATCH_ROWS = 8192


def check_captions(config: CaptionConfig) -> None:
    """Raises InputError if a table is missing, unreadable or lacks a column."""
    for path in list_captions(config) if config.path else ():
        _check_columns(config, path)


def list_captions(config: CaptionConfig) -> list[pathlib.Path]:
    """Lists the tables of captions, sorted by name.

    Raises:
      InputError: no file matches.
    """
    root, names = list_files(SourceConfig(FIELD, config.path), (".parquet", ".csv"))
    return [pathlib.Path(root, name) for name in names]


def write_captions(stages: StageTables) -> None:
    """Writes the stage `captions`; files that exist are kept.

    Raises:
      InputError: a table cannot be read or has changed, or an id occurs twice.
    """
    config = stages.config.captions
    tables = list_captions(config)
    remember_files(tables, stages.folder / "captions.json")
    tasks = [
        functools.partial(
            normalise_captions,
            config=config,
            source=path,
            index=index,
            stages=stages.folder,
            max_characters=stages.config.max_characters,
        )
        for index, path in enumerate(tables)
    ]
    stages.engine.map(tasks, "captions", "picture")
    captions = stages.shards("captions")
    counts = captions.group_by("image_id").agg(rows=captions.count())
    twice = counts.filter(counts.rows > 1).order_by("image_id").limit(1)
    found = stages.engine.execute(twice)
    if len(found):
        raise InputError(
            f"{config.path} ({FIELD}) has the {config.id_column}"
            f" {found['image_id'].iloc[0]!r} more than once; wanted each once, with a"
            " list of texts where a picture has several captions"
        )


def normalise_captions(
    config: CaptionConfig,
    source: pathlib.Path,
    index: int,
    stages: pathlib.Path,
    max_characters: int,
) -> int:
    """Writes the captions of a table to the stage, atomically, unless the file exists.

    Args:
      config: config of the captions, for the columns' names.
      source: path of the table.
      index: index of the table.
      stages: folder of the stages.
      max_characters: number of characters after which a caption is cut.

    Returns:
      The number of rows.
    """

    def clean(captions: Any) -> list[str]:
        listed = captions if isinstance(captions, list) else [captions]
        texts = (normalise(text or "", max_characters) for text in listed)
        return [*dict.fromkeys(filter(None, texts))]

    def write(temporary: pathlib.Path) -> None:
        with pq.ParquetWriter(temporary, CAPTIONS) as writer:
            for ids, captions in _read(config, source):
                columns = [ids, [clean(value) for value in captions]]
                arrays = map(pa.array, columns, CAPTIONS.types)
                writer.write_table(pa.Table.from_arrays([*arrays], schema=CAPTIONS))

    return materialise_shard(stages, "captions", index, write)


def describe_captions(stages: StageTables) -> dict[str, int]:
    """Counts the captions that were joined, and the ids that miss on either side.

    Returns:
      {"rows": rows of the tables; "empty": those without a text; "unknown": ids that no
      picture of the source has; "pictures": kept pictures with captions; "without":
      kept pictures without; "captions": captions of kept pictures}.
    """
    captions, by = stages.shards("captions"), "image_id"
    kept = stages.table("kept").select(by).distinct()
    filled = captions.filter(captions.captions.length() > 0)
    used = filled.semi_join(kept, by)
    counted = {
        "rows": captions.count(),
        "empty": captions.filter(captions.captions.length() == 0).count(),
        "unknown": captions.anti_join(stages.table("pictures"), by).count(),
        "pictures": used.count(),
        "without": kept.anti_join(filled, by).count(),
        "captions": used.captions.length().sum().fill_null(0),
    }
    return {name: int(stages.engine.execute(n)) for name, n in counted.items()}


def join_captions(stages: StageTables, pairs: ibis.Table) -> ibis.Table:
    """Adds the column `captions`, null where a picture has none."""
    captions = stages.shards("captions")
    joined = pairs.left_join(captions, "image_id")
    return joined.select(*pairs.columns, "captions")


def kept_captions(stages: StageTables, kept: ibis.Table) -> ibis.Table:
    """Returns the captions of the kept pictures, a row each, in the column `text`."""
    captions = stages.shards("captions").semi_join(kept, "image_id")
    return captions.select(text=captions.captions.unnest())


def _check_columns(config: CaptionConfig, path: pathlib.Path) -> None:
    """Raises InputError if a table lacks a column or has one of another type."""
    if _is_csv(path):
        with _reading_csv(path), pa.csv.open_csv(path) as reader:
            schema = reader.schema
    else:
        schema = open_parquet(path).schema_arrow
    wanted = (config.id_column, config.text_column)
    missing = [name for name in wanted if schema.names.count(name) != 1]
    if missing:
        raise InputError(
            f"{path} ({FIELD}) lacks the columns {missing}, each once; it has"
            f" {schema.names}"
        )
    if _is_csv(path):
        return
    for name in wanted:
        found = schema.field(name).type
        inner = plain_type(found)
        may_be_list = name == config.text_column
        if may_be_list and is_list(found):
            inner = plain_type(found.value_type)
        if not is_text(inner):
            wanted_type = "texts or lists of texts" if may_be_list else "texts"
            raise InputError(
                f"column {name!r} of {path} is {found}; wanted {wanted_type}"
            )


def _read(
    config: CaptionConfig, path: pathlib.Path
) -> Iterator[tuple[list[str], list[Any]]]:
    """Yields the ids and captions of a table in batches.

    Raises:
      InputError: the table is damaged, or an id is missing.
    """
    names = [config.id_column, config.text_column]
    read = _read_csv if _is_csv(path) else _read_parquet
    for ids, captions in read(path, names):
        if not all(ids):
            raise InputError(f"{path} has a row without {names[0]!r}")
        yield ids, captions


def _is_csv(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".csv"


def _read_parquet(path: pathlib.Path, names: list[str]) -> Iterator[list[list]]:
    file = open_parquet(path)
    with reading_parquet(path):
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            yield [batch[name].to_pylist() for name in names]


def _read_csv(path: pathlib.Path, names: list[str]) -> Iterator[list[list]]:
    options = pa.csv.ConvertOptions(
        include_columns=names, column_types=dict.fromkeys(names, pa.string())
    )
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    with _reading_csv(path):
        for batch in pa.csv.open_csv(path, None, parsing, options):
            yield [batch[name].to_pylist() for name in names]


@contextlib.contextmanager
def _reading_csv(path: pathlib.Path) -> Iterator[None]:
    """Raises InputError if a CSV file read in the `with` statement is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable CSV ({one_line(error)})") from error
