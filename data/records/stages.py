"""Stages of a build: each is one file or folder, whole or absent."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from align_jax.errors import InputError


def claim(directory: pathlib.Path, arguments: dict[str, Any]) -> None:
    """Binds a folder to what it is built from.

    Raises:
      InputError: it was built from something else (the message names the differing
        fields), or holds files that no build wrote.
    """
    path = directory / "config.json"
    wanted = json.loads(json.dumps(arguments))
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"{directory} is a file; wanted a folder, new or of this build"
        )
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(
                f"{path} is damaged ({error}); give another folder, or remove this one"
            ) from error
        differing = _differing(found, wanted, "config")
        if differing:
            raise InputError(
                f"{directory} was built from another config ({'; '.join(differing)});"
                " give another folder or go back to that config"
            )
        return
    if directory.exists() and any(directory.iterdir()):
        raise InputError(
            f"{directory} is not empty and holds no config.json, so no build of ours"
            " made it; give another folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(wanted, indent=2) + "\n")


def materialise(target: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Makes a file or folder under a temporary name, then puts it in place.

    One that is there already is left alone.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    remove(temporary)
    make(temporary)
    temporary.rename(target)


def temporary_name(target: pathlib.Path) -> pathlib.Path:
    """A name beside the target that no other process uses."""
    return target.with_name(f"{target.name}.{os.getpid()}.tmp")


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a text file through a temporary name."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def _differing(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [
            line
            for name in names
            for line in _differing(
                old.get(name, "absent"), new.get(name, "absent"), f"{where}.{name}"
            )
        ]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]
