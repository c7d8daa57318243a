"""Memory that is reused for many pictures.

The first write to new memory costs a page fault for every 4 KiB. For a small picture
this takes as much time as decoding it.
"""

import sys
import threading

import numpy as np

KEPT = 64 * 2**20  # bytes; larger pieces are rare and not kept


class Scratch(threading.local):
    """Named pieces of memory for intermediate results, separate for each thread."""

    def __init__(self) -> None:
        self._pieces: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int) -> np.ndarray:
        """Returns uint8 (size,) whose content is undefined.

        The next call in this thread with the same name may return the same memory.

        Args:
          name: name of the piece; different names never share memory.
          size: number of bytes.
        """
        piece = self._pieces.get(name)
        if piece is None or len(piece) < size:
            piece = np.empty(size, np.uint8)
            if size <= KEPT:
                self._pieces[name] = piece
        return piece[:size]


def _count_references(arrays: list[np.ndarray]) -> list[int]:
    """Returns CPython's number of references to each array, with those of this call."""
    return [sys.getrefcount(array) for array in arrays]


# References to an array of a list that has no others: 3 up to Python 3.13. Later ones
# do not count all references of a call.
(UNUSED,) = _count_references([np.empty(0)])


class Spares:
    """Arrays of one shape, each reused as soon as nothing refers to it."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a uint8 array of `shape` to which nothing else refers.

        Its content is undefined. If a new array is made, kept arrays of other shapes
        are dropped.

        CPython's counts of references tell which arrays are free: views and devices
        that read an array hold a reference.
        """
        counts = _count_references(self._arrays)
        for array, count in zip(self._arrays, counts, strict=True):
            if array.shape == shape and count == UNUSED:
                return array
        array = np.empty(shape, np.uint8)
        self._arrays = [a for a in self._arrays if a.shape == shape] + [array]
        return array
