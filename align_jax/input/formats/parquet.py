"""The format `parquet`: rows with a picture's bytes and its texts or its label.

`image_feature`, `text_feature`, `captions` and `label_feature` name columns; "A/B" is
the field B of the structs in column A, or of each struct in its lists. A picture is
binary, or Hugging Face's struct {bytes, path} with the bytes. Texts are strings or
lists of strings. No index is needed: footers have the rows of each row group.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from align_jax import dataset_folder, places, shard_files
from align_jax.errors import InputError, one_line
from align_jax.input.formats.dataset import Dataset, Row, clean_texts, open_rows
from align_jax.input.shards import Shard

if TYPE_CHECKING:
    import pyarrow as pa

    from align_jax.input.datasets import DatasetConfig

TOGETHER = 64  # rows that are read together
# Pages are read in parts of this size, not whole columns of a row group.
BUFFER_BYTES = 2 * 2**20
# Names of Arrow's types.
TEXTS = ("string", "large_string", "string_view", "null")
BYTES = ("binary", "large_binary", "binary_view")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def open_parquet(config: "DatasetConfig") -> Dataset:
    """Opens a dataset of Parquet files.

    Raises:
      InputError: no files, a file that is no Parquet file or is cut short, no rows, or
        a column that is missing or of another type.
    """
    paths = shard_files.list_files(config.directory, (".parquet",))
    footers = shard_files.for_each(_read_footer, paths)
    for path, (_, schema) in zip(paths, footers, strict=True):
        _check_columns(path, schema, config)
    pairs = zip(paths, footers, strict=True)
    shards = [Shard(path, rows) for path, (rows, _) in pairs if rows]
    reader = RowReader(config.image_feature, config.targets, bool(config.label_feature))
    return open_rows(shards, reader, len(reader.targets), reader.labelled)


def _read_footer(path: str) -> tuple[int, "pa.Schema"]:
    """Returns the number of rows and the schema of a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with places.opening(path) as file:
        try:
            found = pq.ParquetFile(shard_files.Seekable(file))
            return found.metadata.num_rows, found.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is no Parquet file, or is cut short: {one_line(error)}"
            ) from error


def _check_columns(path: str, schema: "pa.Schema", config: "DatasetConfig") -> None:
    """Raises InputError if a column is missing or of another type."""
    image = _find_type(path, schema, config.image_feature)
    parts = {field.name: field.type for field in image} if _is_struct(image) else {}
    if str(parts.get("bytes", image)) not in BYTES:
        raise InputError(
            f"column {config.image_feature!r} of {path} is {image}; wanted a picture's"
            " bytes, or a struct with them"
        )
    for name in config.targets:
        kind = _find_type(path, schema, name)
        if config.label_feature:
            if str(kind) not in INTEGERS:
                raise InputError(
                    f"column {name!r} of {path} is {kind}; wanted one whole number"
                )
        elif str(_plain(kind.value_type) if _is_list(kind) else kind) not in TEXTS:
            raise InputError(
                f"column {name!r} of {path} is {kind}; wanted a text or a list of texts"
            )


def _find_type(path: str, schema: "pa.Schema", name: str) -> "pa.DataType":
    """Returns the type of a column, or of a field in it; see this module."""
    import pyarrow as pa

    kind, lists = pa.struct(list(schema)), False
    for part in name.split("/"):
        if _is_list(kind) and _is_struct(kind.value_type):
            kind, lists = kind.value_type, True
        if not _is_struct(kind) or kind.get_field_index(part) < 0:
            raise InputError(
                f"{path} has no column {name!r}; its columns are"
                f" {', '.join(schema.names)}"
            )
        kind = _plain(kind.field(part).type)
    return pa.list_(kind) if lists else kind


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Reads the rows of Parquet files.

    Attributes:
      image: column of the picture.
      targets: columns of the texts or of the label.
      labelled: whether the target is a label.
    """

    image: str
    targets: list[str]
    labelled: bool

    def __call__(self, path: str, first: int, last: int) -> Iterator[Row]:
        """Yields the rows [first, last) of a file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with places.opening(path) as opened:
            try:
                # Arrow reads local files faster without Python between.
                source = shard_files.Seekable(opened) if places.is_url(path) else path
                file = pq.ParquetFile(source, buffer_size=BUFFER_BYTES)
                yield from self._rows(path, file, first, last)
            except (pa.ArrowException, OSError) as error:
                reason = one_line(error)
                raise dataset_folder.DamagedFileError(path, reason) from error

    def _rows(self, path: str, file: Any, first: int, last: int) -> Iterator[Row]:
        """Yields rows of an opened file; reads only the row groups that have them."""
        groups = range(file.metadata.num_row_groups)
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
        begin = int(np.searchsorted(ends, first, "right"))
        end = int(np.searchsorted(ends, last, "left")) + 1
        at = int(ends[begin - 1]) if begin else 0
        names = [name.split("/") for name in (self.image, *self.targets)]
        if _is_struct(_find_type(path, file.schema_arrow, self.image)):
            names[0].append("bytes")
        columns = [*dict.fromkeys(name[0] for name in names)]
        batches = file.iter_batches(
            TOGETHER, row_groups=groups[begin:end], columns=columns, use_threads=False
        )
        for batch in batches:
            wanted = batch[max(first - at, 0) : last - at]
            at += len(batch)
            values = [_values(wanted, name) for name in names]
            for image, *targets in zip(*values, strict=True):
                yield image or b"", self._target(targets)
            if at >= last:
                return

    def _target(self, values: list[Any]) -> list[list[bytes]] | int:
        """Returns the texts or the label of a row; -1 is no label."""
        if not self.labelled:
            lists = [v if isinstance(v, list) else [v] for v in values]
            return [clean_texts(texts) for texts in lists]
        (label,) = values
        return label if label is not None and 0 <= label < 2**31 else -1


def _values(batch: "pa.RecordBatch", parts: list[str]) -> list[Any]:
    """Returns the values of a column or of a field in it; texts are bytes."""
    import pyarrow.compute as pc

    column, fields = batch[parts[0]], parts[1:]
    while fields and _is_struct(column.type):  # also if another field has the type null
        column, fields = pc.struct_field(column, fields[0]), fields[1:]
    if (plain := _plain(column.type)) != column.type:
        column = column.cast(plain)
    if (content := _with_bytes(column.type)) != column.type:
        column = column.cast(content)
    values = column.to_pylist()
    for part in fields:
        values = [_field(value, part) for value in values]
    return values


def _field(value: Any, name: str) -> Any:
    """Returns a field of a struct, or of each struct in a list."""
    if isinstance(value, list):
        return [_field(item, name) for item in value]
    return value and value.get(name)


def _with_bytes(kind: "pa.DataType") -> "pa.DataType":
    """Returns a type with bytes in place of texts, which may be no UTF-8."""
    import pyarrow as pa

    if str(kind) in TEXTS and str(kind) != "null":
        return pa.large_binary()
    if _is_list(kind):
        return pa.large_list(_with_bytes(kind.value_type))
    if _is_struct(kind):
        return pa.struct([f.with_type(_with_bytes(f.type)) for f in kind])
    return kind


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """Returns the type of a dictionary's values; other types as they are."""
    return kind.value_type if str(kind).startswith("dictionary<") else kind


def _is_struct(kind: "pa.DataType") -> bool:
    return str(kind).startswith("struct<")


def _is_list(kind: "pa.DataType") -> bool:
    return str(kind).startswith(("list<", "large_list<", "fixed_size_list<"))
