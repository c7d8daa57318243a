"""Opens LanceDB's databases and tables, on local disk or in a bucket."""

import datetime

import lancedb

from align_jax import places
from align_jax.errors import InputError, one_line

# How soon changes of other processes are seen, by writers and by readers.
AT_ONCE, SOON = datetime.timedelta(0), datetime.timedelta(seconds=2)


def connect(place: str, seen: datetime.timedelta) -> lancedb.DBConnection:
    """Opens the database of a place; a local one is created.

    Args:
      place: path or bucket's URL of the database.
      seen: time after which the changes of other processes are seen.

    Raises:
      InputError: the bucket is missing or out of reach, or does not permit reading.
    """
    try:
        return lancedb.connect(place, read_consistency_interval=seen)
    except (ValueError, RuntimeError) as error:  # LanceDB has no class for it
        if not places.is_url(place):
            raise
        raise InputError(f"{place} cannot be read: {one_line(error)}") from error


def open_table(database: lancedb.DBConnection, name: str) -> lancedb.table.Table | None:
    """Opens a table; None if there is none, or only the folder that a kill left."""
    if name not in database.list_tables().tables:
        return None
    try:
        return database.open_table(name)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None
