"""The record in a checkpoint, with which its readers check what they read.

The record is a JSON object with the form and checksum of every array of the state, the
hash of the identity, the stored scores, and a hash of the record itself. Checkpoints of
earlier versions have none. OCDBT, the format of the arrays, has checksums of its index
but not of the arrays' bytes, and Orbax offers none.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from align_jax import places
from align_jax.config import differing_fields
from align_jax.devices.exchange import gather
from align_jax.errors import InputError, one_line
from align_jax.training.integrity import DamagedCheckpointError, digest, is_sealed, seal

STATE, IDENTITY, RECORD = "state", "identity", "integrity"  # folders in a checkpoint
SCORES = "metrics"  # folder and file in which Orbax stores scores
JSON_FILE = "metadata"  # in the folder of an item that Orbax writes as JSON
ITEMS_FILE = "_CHECKPOINT_METADATA"  # Orbax lists the folders in it

# Codes of TensorStore's errors that say nothing about the files' content.
UNREACHABLE = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED"
    "|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): "
)
CODE = re.compile("[A-Z_]+: ")  # any code of an error of TensorStore


def make_record(
    arrays: dict[str, list], identity: dict[str, Any], scores: dict[str, float] | None
) -> dict[str, Any]:
    """Returns the record of a checkpoint.

    Args:
      arrays: forms and checksums of the state's arrays, see `integrity.measure`.
      identity: identity of the run, as JSON values.
      scores: scores that Orbax stores beside the state.
    """
    return seal({"arrays": arrays, "identity": digest(identity), "scores": scores})


def read_record(path: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the record of a checkpoint and compares identities.

    Args:
      path: path or URL of the checkpoint.
      identity: fields that the checkpoint must match, as JSON values.

    Returns:
      The record; None for a checkpoint of an earlier version, which has none.

    Raises:
      DamagedCheckpointError: the record or the identity is missing, or was changed.
      InputError: the checkpoint belongs to another model or vocabulary, or the storage
        refuses to read it.
    """
    with reading(path):
        record = _read_sealed(path)
        found = _read_item(path, IDENTITY)
        if record and record["identity"] != digest(found):
            raise DamagedCheckpointError(f"{path} is damaged: its identity was changed")
    if differing := differing_fields(found, identity, "checkpoint"):
        raise InputError(f"{path} does not fit this run: {'; '.join(differing)}")
    return record


def check_scores(path: str) -> None:
    """Raises DamagedCheckpointError if a checkpoint's stored scores are damaged."""
    file = os.path.join(path, SCORES, SCORES)
    if not places.exists(file):
        return
    try:
        with reading(path):
            record, scores = _read_sealed(path), json.loads(places.read_bytes(file))
            if record and record["scores"] != scores:
                raise DamagedCheckpointError(
                    f"{path} is damaged: its score is not the saved one"
                )
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(
            f"{error}; remove {file}, then the checkpoint counts as not evaluated"
        ) from error


def _read_sealed(path: str) -> dict[str, Any] | None:
    listed = places.read_bytes(os.path.join(path, ITEMS_FILE))
    has_folder = places.exists(os.path.join(path, RECORD))
    if not has_folder and f'"{RECORD}"'.encode() not in listed:
        return None
    record = _read_item(path, RECORD)
    if not is_sealed(record):
        raise DamagedCheckpointError(f"{path} is damaged: its record was changed")
    return record


def _read_item(path: str, item: str) -> Any:
    return json.loads(places.read_bytes(os.path.join(path, item, JSON_FILE)))


@contextlib.contextmanager
def reading(path: str, other: str = "") -> Iterator[None]:
    """Turns failures to read a checkpoint inside the `with` statement into InputErrors.

    Args:
      path: path or URL of the checkpoint.
      other: message about a state of another form, for a checkpoint without a record.
        Its form is unknown, so the failure may not be damage.

    Raises:
      DamagedCheckpointError: files of the checkpoint are missing, cut short or changed.
      InputError: the storage refuses to read, or the state has another form.
    """
    try:
        yield
    except places.MissingError as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax raises any error for files that it cannot parse
        reason = _reason(error)
        missing = isinstance(error, FileNotFoundError)
        if (isinstance(error, OSError) and not missing) or UNREACHABLE.match(reason):
            raise InputError(f"{path} cannot be read: {reason}") from error
        parsed = isinstance(error, ValueError | KeyError) and not (
            isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            or CODE.match(reason)
        )
        if other and parsed:
            raise InputError(f"{path} {other}: {reason}") from error
        raise DamagedCheckpointError(f"{path} is damaged: {reason}") from error


def _reason(error: BaseException) -> str:
    """Returns the text of an error, or of the error of TensorStore that caused it."""
    cause: BaseException | None = error
    while cause is not None and not CODE.match(str(cause)):
        cause = cause.__cause__ or cause.__context__
    return one_line(cause or error)[:300]


@contextlib.contextmanager
def agree(path: str) -> Iterator[None]:
    """Makes all processes fail if the reading of one of them fails.

    Otherwise the others would wait for it, or would continue from another checkpoint.

    Args:
      path: path or URL of the checkpoint.

    Raises:
      DamagedCheckpointError: a process found damage; none failed in another way.
      InputError: a process failed to read the checkpoint.
    """
    failure: InputError | None = None
    try:
        yield
    except InputError as error:
        failure = error
    severity = 0
    if failure is not None:
        severity = 1 if isinstance(failure, DamagedCheckpointError) else 2
    worst = gather(np.int32(severity)).max()
    if failure is not None and severity == worst:
        raise failure
    if worst:
        kind = DamagedCheckpointError if worst == 1 else InputError
        raise kind(f"{path} could not be read by another process of this run")


def all_see(folder: str) -> bool:
    """Returns whether a folder exists for all processes, which must all call it.

    Orbax waits for all processes where it may create its folder. It does so by a
    collective, which each start of a run would compile.
    """
    return bool(gather(np.bool_(places.exists(folder))).all())


@contextlib.contextmanager
def leaving_undeleted() -> Iterator[None]:
    """Ignores that Orbax could not delete an old checkpoint of a bucket.

    Orbax deletes old checkpoints when the new one is complete. TensorFlow repeats
    requests that failed for a moment, but not the first one that deletes a folder,
    which it then calls missing. The next start of the run deletes the checkpoint.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "doesn't exist or not a directory" not in str(error):
            raise
