"""Memory that is used again.

New memory costs its first writer a page fault every 4 KiB, which for a small picture is
as much time as decoding it.
"""

import sys
import threading

import numpy as np

KEPT = 64 * 2**20  # bytes; larger pieces are seldom and not kept
UNUSED = 3  # references to an array in `Spares.take`: list, loop and `getrefcount`


class Scratch(threading.local):
    """Memory of a thread that each use overwrites."""

    def __init__(self):
        self._pieces: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int) -> np.ndarray:
        """Gives uint8 (size,) with any content, the same memory at each call.

        Args:
          name: of the piece; others are not overwritten.
          size: in bytes.
        """
        piece = self._pieces.get(name)
        if piece is None or len(piece) < size:
            piece = np.empty(size, np.uint8)
            if size <= KEPT:
                self._pieces[name] = piece
        return piece[:size]


class Spares:
    """Arrays of one shape that are given again when nobody refers to them any more."""

    def __init__(self):
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Gives a uint8 array with any content that nobody else refers to.

        CPython counts references; views and devices that read an array hold one.
        """
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == UNUSED:
                return array
        array = np.empty(shape, np.uint8)
        self._arrays = [a for a in self._arrays if a.shape == shape] + [array]
        return array
