"""Reads embeddings that lie in the order of a table's rows, a part at a time."""

import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from align_jax.errors import InputError, one_line
from data.curation.config import PoolConfig
from data.curation.pool import count_rows, embedding_file, read_rows

AT_ONCE = 8192  # rows of a part


def read_vectors(pool: PoolConfig, table: pathlib.Path) -> Iterator[np.ndarray]:
    """Yields the embeddings of a table's rows in order, in parts (n, D) of unit length.

    A row without an embedding, or whose length is 0 or not finite, is all 0. An .npz is
    read as a stream, compressed or not, so a part is all that memory holds.

    Raises:
      InputError: a file is missing, damaged, or has another number of rows.
    """
    path = embedding_file(pool, table)
    rows, done = count_rows(table), 0
    read = _read_npz if path.suffix == ".npz" else _read_parquet
    for part in read(path, pool.embedding):
        done += len(part)
        yield unit_rows(part)
    if done != rows:
        raise InputError(
            f"{path} has {done} embeddings {pool.embedding!r}, but {table} has"
            f" {rows} rows; wanted one a row, in the same order"
        )


def select_vectors(
    pool: PoolConfig, table: pathlib.Path, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the embeddings of chosen rows in order, in parts (n, D) of unit length.

    Args:
      pool: config of the pool.
      table: one of the pool's tables.
      rows: (N,) indices in ascending order.
    """
    start = 0
    for part in read_vectors(pool, table):
        first, last = np.searchsorted(rows, [start, start + len(part)])
        if first < last:
            yield part[rows[first:last] - start]
        start += len(part)


def read_matrix(path: pathlib.Path, field: str) -> np.ndarray:
    """Reads a NumPy file of finite vectors as float32 (N, D).

    Args:
      path: path of the file.
      field: config field of the path, for messages.

    Raises:
      InputError: the file is missing or holds something else.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # of NumPy
        reason = one_line(error)
        raise InputError(f"{path} ({field}) is no NumPy file: {reason}") from error
    is_matrix = isinstance(found, np.ndarray) and found.ndim == 2 and found.size
    if not is_matrix or found.dtype.kind != "f" or not np.isfinite(found).all():
        shown = f"{found.dtype} {found.shape}" if is_matrix else "something else"
        raise InputError(
            f"{path} ({field}) has {shown}; wanted finite floating-point numbers (N, D)"
        )
    return np.ascontiguousarray(found, np.float32)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to unit length, as float32; a row that has no direction becomes 0."""
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    return np.where(usable, vectors / np.where(usable, lengths, 1), 0)


def _read_npz(path: pathlib.Path, name: str) -> Iterator[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, by_columns, dtype = read(file)
            if len(shape) != 2 or by_columns or dtype.kind != "f":
                order = "F" if by_columns else "C"
                raise InputError(
                    f"{path}: {name} is {dtype} {shape} in {order} order; wanted"
                    " floating-point numbers (N, D) in C order"
                )
            for start in range(0, shape[0], AT_ONCE):
                rows = min(AT_ONCE, shape[0] - start)
                content = file.read(rows * shape[1] * dtype.itemsize)
                yield np.frombuffer(content, dtype).reshape(rows, shape[1])
            file.read(1)  # to the end, where the checksum is compared
    except KeyError as error:
        raise InputError(f"{path} lacks the array {name!r}") from error
    except InputError:
        raise
    except Exception as error:  # of zipfile, zlib and NumPy
        raise InputError(f"{path} is damaged ({one_line(error)})") from error


def _read_parquet(path: pathlib.Path, name: str) -> Iterator[np.ndarray]:
    for batch in read_rows(path, [name], AT_ONCE):
        try:
            column = batch[name]
            width = column.type.list_size
            present = column.is_valid().to_numpy(zero_copy_only=False)
            vectors = np.zeros((len(batch), width), np.float32)
            values = column.flatten().to_numpy(zero_copy_only=False)
            vectors[present] = values.reshape(-1, width)
        except (KeyError, AttributeError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{path} has no column {name!r} with a list of as many numbers in each"
                " row"
            ) from error
        yield vectors
