"""Subset files of DataComp: sorted uids, of 128 bits each, in a NumPy file.

A uid is written as 32 hexadecimal digits. A subset file has one dimension and the dtype
UIDS: the upper and the lower 64 bits of each uid, in ascending order.
"""

import bisect
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from align_jax import places
from align_jax.errors import InputError, one_line

UIDS = np.dtype("u8,u8")
DIGITS = 32
AT_ONCE = 1 << 20  # uids that are checked at a time


def parse_uids(uids: Sequence[str | None], where: str) -> np.ndarray:
    """Converts uids of 32 hexadecimal digits to an array (N,) of UIDS.

    Args:
      uids: N texts.
      where: name of the texts, for messages.

    Raises:
      InputError: a text is no uid.
    """
    try:
        if all(isinstance(uid, str) and len(uid) == DIGITS for uid in uids):
            digits = bytes.fromhex("".join(map(str, uids)))
            if len(digits) == len(uids) * DIGITS // 2:  # no white space
                halves = np.frombuffer(digits, ">u8").astype("u8")
                return halves.view(UIDS)
    except ValueError:
        pass
    wrong = next(uid for uid in uids if parse_uid(uid) is None)
    raise InputError(
        f"{where} has the uid {wrong!r}; wanted {DIGITS} hexadecimal digits"
    )


def parse_uid(uid: str | None) -> tuple[int, int] | None:
    """Returns the upper and the lower 64 bits of a uid; None if a text is no uid."""
    if not isinstance(uid, str) or len(uid) != DIGITS:
        return None
    try:
        number = bytes.fromhex(uid)
    except ValueError:
        return None
    if len(number) != DIGITS // 2:
        return None
    return int.from_bytes(number[:8], "big"), int.from_bytes(number[8:], "big")


def open_subset(path: str, check: bool = True) -> np.ndarray:
    """Opens a subset file as an array (N,) of UIDS that stays on disk.

    Args:
      path: path of the file.
      check: whether to read all uids and check their order.

    Raises:
      InputError: the file is missing, damaged or something else, or is not sorted.
    """
    local = places.local_path(path)
    try:
        uids = np.load(local, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of NumPy
        raise InputError(
            f"{local} is no readable subset file ({one_line(error)})"
        ) from error
    found = f"{uids.dtype} {uids.shape}" if isinstance(uids, np.ndarray) else "an npz"
    if not isinstance(uids, np.ndarray) or uids.dtype != UIDS or uids.ndim != 1:
        raise InputError(f"{local} has {found}; wanted a vector of dtype u8,u8")
    for start in range(0, len(uids) if check else 0, AT_ONCE):
        part = np.array(uids[max(start - 1, 0) : start + AT_ONCE])
        upper, lower = part["f0"], part["f1"]
        rises = upper[:-1] < upper[1:]
        rises |= (upper[:-1] == upper[1:]) & (lower[:-1] <= lower[1:])
        if not rises.all():
            raise InputError(f"{local} is not sorted; sort it, as by numpy.sort")
    return uids


class Subset:
    """The uids of a subset file, for the question whether one is among them."""

    def __init__(self, path: str) -> None:
        """Opens the file; its order was checked before."""
        self._uids = open_subset(path, check=False)

    def __contains__(self, uid: str | None) -> bool:
        """Returns whether a uid is in the subset; a text that is no uid is not."""
        wanted = parse_uid(uid)
        if wanted is None:
            return False
        place = bisect.bisect_left(self._uids, wanted, key=_halves)
        return place < len(self._uids) and _halves(self._uids[place]) == wanted


def write_subset(
    path: str | os.PathLike[str], parts: Iterable[np.ndarray], n: int
) -> None:
    """Writes a subset file, completely or not at all.

    Args:
      path: path of the file; its folder must exist.
      parts: arrays of UIDS in ascending order; each follows the one before.
      n: number of uids in all parts.

    Raises:
      InputError: the uids are not in ascending order, or their number is not `n`.
    """
    with places.writing(path), places.replacing(path) as temporary:
        with pathlib.Path(temporary).open("wb") as file:
            header = {"descr": UIDS.descr, "fortran_order": False, "shape": (n,)}
            np.lib.format.write_array_header_1_0(file, header)
            done = 0
            for part in parts:
                file.write(np.ascontiguousarray(part, UIDS).tobytes())
                done += len(part)
        if done != n:
            raise InputError(f"{path}: found {done} uids; wanted {n}")
        open_subset(temporary)


def _halves(uid: np.void) -> tuple[int, int]:
    return int(uid["f0"]), int(uid["f1"])
