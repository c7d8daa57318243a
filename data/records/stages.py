"""Writes stages, the intermediate files and folders of a build, atomically."""

import pathlib
from collections.abc import Callable

from align_jax import places


def materialise(target: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Makes a file or folder under a temporary name, then renames it to `target`.

    An existing target is kept, and `make` is not called. If `make` fails, nothing is
    left at either path.

    Args:
      target: path of the file or folder; missing folders above it are made.
      make: function that writes the file or folder to the path it gets.

    Raises:
      InputError: the disk is full or cannot be written.
    """
    if target.exists():
        return
    places.make_folder(target.parent)
    with places.writing(target), places.replacing(target) as temporary:
        make(pathlib.Path(temporary))


def materialise_shard(
    stages: pathlib.Path, name: str, index: int, make: Callable[[pathlib.Path], None]
) -> int:
    """Makes the Parquet file of a shard, STAGES/NAME/NNNNN.parquet; see `materialise`.

    Args:
      stages: folder of the stages.
      name: name of the stage.
      index: index of the shard.
      make: function that writes the file to the path it gets.

    Returns:
      The number of rows in the file.
    """
    import pyarrow.parquet as pq  # needed by builds only

    path = stages / name / f"{index:05}.parquet"
    materialise(path, make)
    return pq.read_metadata(path).num_rows
