"""Stages of a build: files and folders that are written atomically."""

import pathlib
from collections.abc import Callable

from align_jax import places


def materialise(target: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Makes a file or folder under a temporary name, then renames it to `target`.

    An existing target is kept, and `make` is not called.
    """
    if target.exists():
        return
    places.make_folder(target.parent)
    with places.replacing(target) as temporary:
        make(pathlib.Path(temporary))
