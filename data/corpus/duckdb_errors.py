"""Errors of DuckDB that come from the user's storage or files."""

import contextlib
from collections.abc import Iterator

import duckdb

from align_jax.errors import InputError, one_line

# Classes for values that cannot be converted, and for files that do not fit together.
OF_DATA = (duckdb.ConversionException, duckdb.InvalidInputException)


@contextlib.contextmanager
def duckdb_errors() -> Iterator[None]:
    """Turns errors of DuckDB inside the `with` statement into others; see Raises.

    Raises:
      OSError: the storage failed, as by a full disk.
      InputError: a file is damaged, or a value in it cannot be converted.
    """
    try:
        yield
    except duckdb.IOException as error:
        raise OSError(one_line(error)) from error
    except duckdb.Error as error:
        # For damage inside a Parquet file, DuckDB raises the base class.
        if not isinstance(error, OF_DATA) and type(error) is not duckdb.Error:
            raise
        raise InputError(f"a table cannot be read: {reason_of(error)}") from error


def reason_of(error: duckdb.Error) -> str:
    """Returns an error's message in one line, without the query."""
    return one_line(error).partition(" LINE 1: ")[0]
