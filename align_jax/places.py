"""Reads and writes places: absolute paths of local files, and URLs of files in buckets.

`resolve` or `local_path` turns a user's text into a place once; all other functions
take a place. Except by `appending`, files are written under a temporary name and then
renamed, so that an interruption leaves the earlier version intact. Storage that refuses
to read or write is an InputError, except inside `replacing` and `appending`.

The scheme of a URL is gs, s3, az or hf. If TensorFlow is installed, it reads and writes
URLs; its support of gs needs no other package. Without TensorFlow, or with
EPATH_USE_TF=0 in the environment, fsspec reads and writes them with the package of the
scheme: gcsfs, s3fs, adlfs or huggingface_hub.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import types
from collections.abc import Iterator, Mapping
from typing import IO, Any

from align_jax.errors import InputError, one_line

Place = str | os.PathLike[str]

TEMPORARY = ".tmp"  # ending of the name of a file or folder that is being written
# Packages whose errors mean that storage failed.
STORAGE = (
    *("tensorflow", "fsspec", "gcsfs", "s3fs", "adlfs", "huggingface_hub"),
    *("google", "azure", "botocore"),
)


class MissingError(InputError):
    """No file or folder exists at a place."""


def resolve(typed: Place) -> str:
    """Turns a path or URL that a user typed into a place.

    Returns:
      A URL unchanged; a local path as an absolute path, with ~ as the home folder.

    Raises:
      InputError: the text is empty, which would be the working directory.
    """
    if not os.fspath(typed):
        raise InputError("a path is empty; wanted a file or a folder")
    if is_url(typed):
        return os.fspath(typed)
    return os.path.abspath(os.path.expanduser(typed))


def local_path(typed: Place) -> pathlib.Path:
    """Turns a path that a user typed into an absolute one; InputError for a URL."""
    if is_url(typed):
        raise InputError(f"{typed} is a URL; wanted a path on this machine")
    return pathlib.Path(resolve(typed))


def as_path(typed: Place) -> pathlib.Path:
    """Turns a path or URL that a user typed into a path.

    Returns:
      An absolute `pathlib.Path`, or for a URL an etils path with the same methods; see
      `size` for the size of its file.
    """
    return _open_place(resolve(typed))


def is_url(place: Place) -> bool:
    """Returns whether a place has a scheme, as gs://bucket/folder."""
    return "://" in os.fspath(place)


def exists(place: Place) -> bool:
    """Returns whether a file or folder exists."""
    with _reading(place):
        return _open_place(place).exists()


def is_folder(place: Place) -> bool:
    """Returns whether a folder exists."""
    with _reading(place):
        path: Any = _open_place(place)
        if not is_url(place):
            return path.is_dir()
        try:  # TensorFlow's `is_dir` is False if the storage refuses to answer
            return path.stat().is_directory
        except FileNotFoundError:
            return False


def is_file(place: Place) -> bool:
    """Returns whether a regular file exists."""
    with _reading(place):
        return _open_place(place).is_file()


def is_free(folder: Place, besides: tuple[str, ...] = ()) -> bool:
    """Returns whether a folder is absent or empty, and so can be used for new content.

    Args:
      folder: path or URL of the folder.
      besides: endings of names that do not count as content.
    """
    if not is_folder(folder):
        return not exists(folder)
    return all(name.endswith(besides) for name in list_names(folder))


def list_names(folder: Place) -> list[str]:
    """Lists the names of a folder's files and folders, sorted.

    Raises:
      MissingError: the folder does not exist.
    """
    with _reading(folder):
        if not is_url(folder):
            return sorted(os.listdir(folder))
        if not is_folder(folder):
            raise FileNotFoundError(folder)
        return sorted(path.name for path in _open_place(folder).iterdir())


def size(file: Place) -> int | None:
    """Returns a file's size in bytes, or None if it does not exist."""
    with contextlib.suppress(MissingError), _reading(file):
        found: Any = _open_place(file).stat()
        return found.length if is_url(file) else found.st_size
    return None


def modified(file: Place) -> float | None:
    """Returns when a file was last written, in Unix seconds, or None without a file."""
    with contextlib.suppress(MissingError), _reading(file):
        found: Any = _open_place(file).stat()
        return found.mtime if is_url(file) else found.st_mtime
    return None


@contextlib.contextmanager
def opening(file: Place) -> Iterator[IO[bytes]]:
    """Opens a file for reading in parts."""
    with _reading(file), _open_place(file).open("rb") as opened:
        yield opened


def read_bytes(file: Place) -> bytes:
    """Reads a file; raises InputError if it is missing or cannot be read."""
    with opening(file) as opened:
        return opened.read()


def read_text(file: Place) -> str:
    """Reads a text; raises InputError if it is missing, unreadable or not UTF-8."""
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error


def read_json(file: Place) -> Any:
    """Reads a JSON file; raises InputError if it is missing, unreadable or broken."""
    try:
        return json.loads(read_bytes(file))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def read_object(
    file: Place, fields: Mapping[str, type] = types.MappingProxyType({})
) -> dict[str, Any]:
    """Reads a JSON object; raises InputError as `read_json`, or for another content.

    Args:
      file: path or URL of the file.
      fields: types of the fields that the object must have, by name.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}; wanted an object")
    for name, kind in fields.items():
        if name not in found:
            raise InputError(f"{file} lacks the field {name!r}")
        if not isinstance(found[name], kind):
            typed = type(found[name]).__name__
            raise InputError(f"{file}: {name} is a {typed}; wanted {kind.__name__}")
    return found


@contextlib.contextmanager
def replacing(place: Place) -> Iterator[str]:
    """Yields a temporary path to write to, and renames it to `place` at the end.

    The temporary path is beside `place`, and no other process uses it. After an error
    its content is removed and `place` is unchanged. An earlier file or an empty folder
    at `place` is replaced. The folder that holds `place` must exist.
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
    """Turns failures to write inside the `with` statement into InputErrors.

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
    """Writes a file completely or not at all."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(file))
        # An object in a bucket appears when its last byte was sent.
        path = file if is_url(file) else stack.enter_context(replacing(file))
        stack.enter_context(_open_place(path).open("wb")).write(content)


def write_text(file: Place, text: str) -> None:
    """Writes a text file completely or not at all."""
    write_bytes(file, text.encode())


def write_json(file: Place, value: Any) -> None:
    """Writes a JSON file completely or not at all."""
    write_text(file, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def appending(file: Place) -> Iterator[IO[str]]:
    """Opens a text file for appending; creates it if it does not exist."""
    with contextlib.ExitStack() as stack:
        with writing(file):
            opened = _open_place(file).open("a", encoding="utf-8")
            opened = stack.enter_context(opened)
        try:
            yield opened
        except GeneratorExit:  # left open after an error, which has been reported
            with contextlib.suppress(Exception):
                stack.close()
            raise


def make_folder(folder: Place) -> None:
    """Makes a folder and those above it, unless it exists; a bucket needs none."""
    if not is_url(folder):  # TensorFlow would repeat a refused request for minutes
        with writing(folder):
            _open_place(folder).mkdir(parents=True, exist_ok=True)


def move(place: Place, to: Place) -> None:
    """Renames a file or folder in the same storage; replaces an earlier one at `to`."""
    with writing(to):
        remove(to)
        _open_place(place).rename(to)


def remove(place: Place) -> None:
    """Removes a file, a link, or a folder with its content, if it exists."""
    path: Any = _open_place(place)
    try:
        if os.path.islink(place) or not is_folder(place):
            path.unlink(missing_ok=True)
        elif is_url(place):
            with contextlib.suppress(FileNotFoundError):
                path.rmtree()
            if is_folder(place):  # a failed request made TensorFlow call it missing
                path.rmtree()
        else:
            shutil.rmtree(path)
    except Exception as error:
        if not _is_refusal(place, error):
            raise
        raise InputError(f"{place} cannot be removed: {_reason(error)}") from error


def _open_place(place: Place) -> pathlib.Path:
    """Returns a pathlib path, or for a URL an etils path with the same methods."""
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
    """Turns failures to read inside the `with` statement into InputErrors."""
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
    """Returns whether an error comes from the storage and not from this code."""
    if isinstance(error, ImportError):  # fsspec lacks the scheme's package
        return is_url(place)
    if isinstance(error, ValueError):  # Orbax's gRPC codes; a path with a null byte
        return re.match("[A-Z_]+: |embedded null ", str(error)) is not None
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in STORAGE


def _shown(place: Place) -> str:
    """Formats a place for a message; bytes that are not UTF-8 are escaped."""
    return os.fspath(place).encode("utf-8", "backslashreplace").decode()


def _reason(error: Exception) -> str:
    """Formats an error's message in one line, shortened if it is long."""
    reason = one_line(error)
    if len(reason) <= 500:
        return reason
    return f"{reason[:100]} ... {reason[-400:]}"  # the cause is at the end
