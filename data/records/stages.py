"""Stages of a build: files and folders that are written atomically."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from align_jax import places
from align_jax.config import differing_fields
from align_jax.errors import InputError


def claim(directory: pathlib.Path, arguments: dict[str, Any]) -> None:
    """Binds a folder to the arguments it is built from: writes or checks config.json.

    Raises:
      InputError: the folder was built from other arguments (the message names the
        differing fields), or holds files that no build wrote.
    """
    path = directory / "config.json"
    wanted = json.loads(json.dumps(arguments))
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"{directory} is a file; wanted a folder, new or of this build"
        )
    if path.exists():
        try:
            found = places.read_object(path)
        except InputError as error:
            reason = error.__cause__ or error
            raise InputError(
                f"{path} is damaged ({reason}); give another folder, or remove this one"
            ) from error
        differing = differing_fields(found, wanted)
        if differing:
            raise InputError(
                f"{directory} was built from another config ({'; '.join(differing)});"
                " give another folder or go back to that config"
            )
        return
    if not places.is_free(directory, (places.TEMPORARY,)):
        raise InputError(
            f"{directory} is not empty and holds no config.json, so no build of ours"
            " made it; give another folder"
        )
    places.make_folder(directory)
    places.write_json(path, wanted)


def materialise(target: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Makes a file or folder under a temporary name, then renames it to `target`.

    An existing target is kept, and `make` is not called.
    """
    if target.exists():
        return
    places.make_folder(target.parent)
    with places.replacing(target) as temporary:
        make(pathlib.Path(temporary))
