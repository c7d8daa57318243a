"""Places: files and folders, local ones by their paths and those in buckets by URLs.

What a user types becomes a place once, by `resolve` or `local_path`; everything else
here takes a place. A file or folder is written whole: under a temporary name that then
becomes its own, so an interruption leaves what was there before.

A URL's scheme is gs, s3, az or hf. Where TensorFlow is installed, it reads and writes
them, and it brings gs by itself. Without TensorFlow, or with EPATH_USE_TF=0 in the
environment, fsspec does, with the scheme's own package: gcsfs, s3fs, adlfs or
huggingface_hub.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, Any

from align_jax.errors import InputError

Place = str | os.PathLike[str]

TEMPORARY = ".tmp"  # how a name ends under which something is being written
# Packages whose errors say that storage failed.
STORAGE = (
    *("tensorflow", "fsspec", "gcsfs", "s3fs", "adlfs", "huggingface_hub"),
    *("google", "azure", "botocore"),
)


class MissingError(InputError):
    """There is nothing at a place."""


def resolve(typed: Place) -> str:
    """Turns what a user typed into a place.

    Returns:
      A URL as it is; of a local path the absolute one, ~ being the home folder.
    """
    if is_url(typed):
        return os.fspath(typed)
    return os.path.abspath(os.path.expanduser(typed))


def local_path(typed: Place) -> pathlib.Path:
    """As `resolve`, for what must be on this machine; InputError for a URL."""
    if is_url(typed):
        raise InputError(f"{typed} is a URL; wanted a path on this machine")
    return pathlib.Path(resolve(typed))


def is_url(place: Place) -> bool:
    """Whether a place has a scheme, as gs://bucket/folder."""
    return "://" in os.fspath(place)


def exists(place: Place) -> bool:
    """Whether there is a file or folder."""
    with _reading(place):
        return _open_place(place).exists()


def is_folder(place: Place) -> bool:
    """Whether there is a folder."""
    with _reading(place):
        return _open_place(place).is_dir()


def is_free(folder: Place, besides: tuple[str, ...] = ()) -> bool:
    """Whether a folder can be taken: it is not there, or empty.

    Args:
      folder: to look into.
      besides: endings of the names that do not count.
    """
    if not exists(folder):
        return True
    if not is_folder(folder):
        return False
    return all(name.endswith(besides) for name in list_names(folder))


def list_names(folder: Place) -> list[str]:
    """The names of all that is in a folder, in order."""
    with _reading(folder):
        if not is_url(folder):
            return sorted(os.listdir(folder))
        return sorted(path.name for path in _open_place(folder).iterdir())


def size(file: Place) -> int | None:
    """A file's bytes; None where there is none."""
    try:
        with _reading(file):
            found: Any = _open_place(file).stat()
            return found.length if is_url(file) else found.st_size
    except MissingError:
        return None


def modified(file: Place) -> float | None:
    """When a file was written last, in seconds as of `time.time`; None without one."""
    try:
        with _reading(file):
            found: Any = _open_place(file).stat()
            return found.mtime if is_url(file) else found.st_mtime
    except MissingError:
        return None


@contextlib.contextmanager
def opening(file: Place) -> Iterator[IO[bytes]]:
    """Opens a file to read it in parts."""
    with _reading(file), _open_place(file).open("rb") as opened:
        yield opened


def read_bytes(file: Place) -> bytes:
    """Reads a file; InputError where it is missing or cannot be read."""
    with opening(file) as opened:
        return opened.read()


def read_text(file: Place) -> str:
    """Reads a text file; InputError where it is missing, unreadable or not UTF-8."""
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error


def read_json(file: Place) -> Any:
    """Reads a JSON file; InputError where it is missing, unreadable or broken."""
    try:
        return json.loads(read_bytes(file))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def read_object(file: Place) -> dict[str, Any]:
    """Reads a JSON object as `read_json`; InputError where the file holds another."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}; wanted an object")
    return found


@contextlib.contextmanager
def replacing(place: Place) -> Iterator[str]:
    """Gives a name to write a file or folder under, which then becomes the place.

    It is beside the place, and no other process has it. What was written there is
    removed where an error ends the writing, and the place is as it was before. A file
    at the place is replaced, and so is an empty folder.
    """
    place = os.fspath(place).rstrip("/")
    temporary = f"{place}.{secrets.token_hex(4)}{TEMPORARY}"
    try:
        yield temporary
        _open_place(temporary).replace(place)
    except BaseException:
        with contextlib.suppress(Exception):
            remove(temporary)
        raise


@contextlib.contextmanager
def writing(place: Place) -> Iterator[None]:
    """Says what could not be written where the storage refuses it.

    Raises:
      InputError: the disk is full, the folder read-only or the bucket out of reach.
    """
    try:
        yield
    except Exception as error:
        if not _is_refusal(place, error):
            raise
        raise InputError(
            f"{place} cannot be written: {_reason(error)}; what was written before is"
            " whole, and the same command continues"
        ) from error


def write_bytes(file: Place, content: bytes) -> None:
    """Writes a file whole."""
    with writing(file), replacing(file) as temporary:
        with _open_place(temporary).open("wb") as opened:
            opened.write(content)


def write_text(file: Place, text: str) -> None:
    """Writes a text file whole."""
    write_bytes(file, text.encode())


def write_json(file: Place, value: Any) -> None:
    """Writes a JSON file whole."""
    write_text(file, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def appending(file: Place) -> Iterator[IO[str]]:
    """Opens a text file to write at its end; it is made where there is none."""
    with contextlib.ExitStack() as stack:
        with writing(file):
            opened = _open_place(file).open("a", encoding="utf-8")
            opened = stack.enter_context(opened)
        try:
            yield opened
        except GeneratorExit:  # left open, by an error that has been told
            with contextlib.suppress(Exception):
                stack.close()
            raise


def make_folder(folder: Place) -> None:
    """Makes a folder, and those above it, unless it is there."""
    with writing(folder):
        _open_place(folder).mkdir(parents=True, exist_ok=True)


def remove(place: Place) -> None:
    """Removes a file, a link, or a folder with all in it, if there is one."""
    path: Any = _open_place(place)
    try:
        if os.path.islink(place) or not path.is_dir():
            path.unlink(missing_ok=True)
        elif is_url(place):
            path.rmtree()
        else:
            shutil.rmtree(path)
    except Exception as error:
        if not _is_refusal(place, error):
            raise
        raise InputError(f"{place} cannot be removed: {_reason(error)}") from error


def _open_place(place: Place) -> pathlib.Path:
    """What reads and writes a place: a path, or etils' with the same methods."""
    if not is_url(place):
        return pathlib.Path(place)
    from etils import epath

    try:
        return epath.Path(place)
    except KeyError as error:
        raise InputError(
            f"{place} has an unknown scheme; wanted a local path or a URL with gs://,"
            " s3://, az:// or hf://"
        ) from error


@contextlib.contextmanager
def _reading(place: Place) -> Iterator[None]:
    """Says what could not be read where the storage refuses it."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{_shown(place)} is missing") from error
    except Exception as error:
        if not _is_refusal(place, error):
            raise
        reason = f"{_shown(place)} cannot be read: {_reason(error)}"
        raise InputError(reason) from error


def _is_refusal(place: Place, error: Exception) -> bool:
    """Whether an error is of the storage, and not of this code."""
    if isinstance(error, ImportError):  # fsspec lacks the scheme's package
        return is_url(place)
    if isinstance(error, ValueError):  # Orbax's storage, with the name of gRPC's code
        return re.match("[A-Z_]+: ", str(error)) is not None
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in STORAGE


def _shown(place: Place) -> str:
    """A place for a message: bytes that are no UTF-8 are escaped, to be printed."""
    return os.fspath(place).encode("utf-8", "backslashreplace").decode()


def _reason(error: Exception) -> str:
    """An error's message in one line, shortened where it is long."""
    reason = " ".join(str(error).split())
    if len(reason) <= 500:
        return reason
    return f"{reason[:100]} ... {reason[-400:]}"  # the cause stands last
