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
