"""Keeps pictures in Python while tf.data orders their records.

On its way through tf.data, a picture would be copied up to five times. Its number goes
that way instead.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

GROUP_RECORDS = 2**31  # above the number of records of a group
ABSENT = -1  # in place of a number, for a picture that tf.data holds


class KeptPictures:
    """Picture files of the records that are read ahead, by number."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self._groups: dict[int, Sequence[bytes]] = {}
        self._newest: dict[tuple[int, int], int] = {}  # group by source
        self._closed = False

    def keep(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Keeps the pictures of a group of N records; returns their numbers (N,)."""
        group = next(self._count)
        self._groups[group] = pictures
        if self._closed:
            self._groups.clear()
        return GROUP_RECORDS * group + np.arange(len(pictures))

    def take(
        self, numbers: np.ndarray, sources: Iterable[tuple[int, int]]
    ) -> list[bytes | None]:
        """Returns the pictures of records, and forgets the groups before theirs.

        Args:
          numbers: (N,) int64 results of `keep`, or `ABSENT`.
          sources: stream and dataset of each record. The groups of a source are taken
            one after the other, in the order in which they were kept.

        Returns:
          N pictures; None for absent ones.
        """
        pictures: list[bytes | None] = []
        for number, source in zip(numbers.tolist(), sources, strict=True):
            if number == ABSENT:
                pictures.append(None)
                continue
            group, index = divmod(number, GROUP_RECORDS)
            before = self._newest.setdefault(source, group)
            if before != group:
                del self._groups[before]
                self._newest[source] = group
            pictures.append(self._groups[group][index])
        return pictures

    def close(self) -> None:
        """Forgets all pictures, and those that other threads keep later.

        TensorFlow may hold this object as long as the process runs, because it holds
        the Python functions of datasets.
        """
        self._closed = True
        self._groups.clear()
