"""Locks of folders, so that two runs or builds never write to one folder at once.

A local folder is locked by `flock` on a file in it: the system frees the lock when the
process ends, however it ends. In a bucket, or on a file system without locks, the lock
is an object with the holder's random id, which the holder rewrites every `BEAT`
seconds. A second process watches the object for `PATIENCE` seconds and takes it over if
it does not change. So no two machines' clocks are compared.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from align_jax import places
from align_jax.errors import InputError

LOCK_FILE = "lock.json"  # in a locked folder; it describes the holder
BEAT = 8.0  # seconds between two rewritings of the object in a bucket
PATIENCE = 30.0  # seconds without a change after which the holder counts as gone
SETTLE = 1.0  # seconds in which two processes that start at once overwrite each other
# Errors of file systems that have no locks, as some that mount buckets.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """A lock that this process holds."""

    def check(self) -> None:
        """Raises InputError if another process has taken the folder over."""


@contextlib.contextmanager
def locked(folder: places.Place) -> Iterator[Lock]:
    """Holds a folder's lock inside the `with` statement; makes the folder.

    Afterwards the lock's file is removed, and the folder too if it was made and is
    empty. In a bucket this waits `PATIENCE` seconds if an earlier holder was killed.

    Raises:
      InputError: another process holds the lock, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if places.is_url(folder):
            yield stack.enter_context(_beating(folder))
            return
        if not places.exists(folder):
            places.make_folder(folder)
            stack.callback(_remove_empty, folder)
        try:
            lock: Lock = stack.enter_context(_flocked(folder))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            lock = stack.enter_context(_beating(folder))
        yield lock


def try_flock(file: Any, mode: int = fcntl.LOCK_EX) -> bool:
    """Locks an open file by `flock`, unless another process holds it.

    A process that inherits the open file shares the lock.

    Args:
      file: file object or descriptor.
      mode: LOCK_EX, or LOCK_SH to share the lock with others that share it.

    Returns:
      Whether this process now holds the lock.
    """
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _flocked(folder: places.Place) -> Iterator[Lock]:
    """Holds a local folder's lock; OSError if the file system has no locks."""
    path = os.path.join(folder, LOCK_FILE)
    with contextlib.ExitStack() as stack:
        while True:
            with places.writing(path):
                file = stack.enter_context(open(path, "a+b"))
            if not try_flock(file):
                raise _in_use(folder, _read(path))
            # The holder before may have removed the file after we opened it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
        # A forked child would hold the lock after the end of this process.
        os.register_at_fork(after_in_child=file.close)
        with places.writing(path):
            file.truncate(0)
            file.write(json.dumps(_describe()).encode() + b"\n")
            file.flush()
        stack.callback(_remove_file, path)
        yield Lock()


def _remove_file(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _remove_empty(folder: places.Place) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


@contextlib.contextmanager
def _beating(folder: places.Place) -> Iterator[Lock]:
    """Holds a folder's lock by an object that a thread rewrites."""
    lock = _Heartbeat(folder)
    lock.acquire()
    thread = threading.Thread(target=lock.keep, daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        lock.ended.set()
        thread.join()
        lock.release()


class _Heartbeat(Lock):
    """A lock held by rewriting an object; the object's length stays the same.

    Attributes:
      ended: event after which `keep` returns.
    """

    def __init__(self, folder: places.Place) -> None:
        self.ended = threading.Event()
        self._folder = folder
        self._path = os.path.join(folder, LOCK_FILE)
        self._owner = secrets.token_hex(8)
        self._described = _describe()
        self._beats = 0
        self._seen = time.monotonic()  # when the object was last known to be ours
        self._beating = threading.Lock()
        self._lost: InputError | None = None

    def acquire(self) -> None:
        """Takes the lock; raises InputError if its holder is alive."""
        first = found = _read(self._path)
        if first is not None:
            print(
                f"{self._folder} has the lock of {_holder(first)}; waiting"
                f" {PATIENCE:.0f} s to see whether that process is alive",
                flush=True,
            )
        end = time.monotonic() + PATIENCE
        while found is not None and time.monotonic() < end:
            time.sleep(min(2.0, PATIENCE / 5))
            found = _read(self._path)
            if found is not None and found != first:
                raise _in_use(self._folder, found)
        self._write()
        time.sleep(SETTLE)
        if not self._is_ours(found := _read(self._path)):
            raise _in_use(self._folder, found)
        self._seen = time.monotonic()

    def keep(self) -> None:
        """Rewrites the object until `ended` is set or another process has it."""
        while self._lost is None and not self.ended.wait(BEAT):
            # Storage that does not answer may answer at the next beat.
            with contextlib.suppress(Exception):
                self._beat()

    def check(self) -> None:
        """Raises InputError if another process has taken the folder over."""
        if self._lost is None and time.monotonic() - self._seen > 2 * BEAT:
            # This process was suspended, or the storage is slow. If the storage refuses
            # to answer, so it does to the writer that asks.
            with contextlib.suppress(InputError):
                self._beat()
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Removes the object, if it is ours."""
        with contextlib.suppress(Exception):
            if self._is_ours(_read(self._path)):
                places.remove(self._path)

    def _beat(self) -> None:
        with self._beating:
            found = _read(self._path)
            if found == {}:
                return
            if found is not None and not self._is_ours(found):
                self._lost = InputError(
                    f"{self._folder} was taken over by {_holder(found)}; this process"
                    " ends before it writes more"
                )
                return
            self._write()
            self._seen = time.monotonic()

    def _write(self) -> None:
        self._beats += 1
        fields = {"owner": self._owner, "beat": f"{self._beats:08}", **self._described}
        places.write_json(self._path, fields)

    def _is_ours(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("owner") == self._owner


def _describe() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


def _read(path: str) -> dict[str, Any] | None:
    """Reads a lock's file; None if there is none, {} if it cannot be understood."""
    try:
        return places.read_object(path)
    except places.MissingError:
        return None
    except InputError:
        return {}


def _holder(found: dict[str, Any] | None) -> str:
    """Formats the process that a lock's file describes."""
    if not found or not {"host", "pid", "since"} <= found.keys():
        return "another process"
    return f"process {found['pid']} on {found['host']} since {found['since']}"


def _in_use(folder: places.Place, found: dict[str, Any] | None) -> InputError:
    return InputError(
        f"{folder} is in use by {_holder(found)}; wait for its end, or give another"
        " folder"
    )
