"""Assigns a record to each position of training, as a pure function of the seed.

A dataset of N records is read as an endless sequence of epochs, each with the shards in
a new order. The sequence's positions are dealt to S streams, position g to stream
g mod S, and a batch of B takes the next B / S positions of every stream. So step s
holds positions s B to (s + 1) B - 1, and positions e N to (e + 1) N - 1 are epoch e,
which has each record once. If the batch changes with the step, s B is the number of
pairs in the batches before step s. Within an epoch a stream reads neighbouring records,
so it opens few shards. Several datasets take turns in a stream by their weights, and
each continues its sequence.

No file is read here, and resuming needs no saved state.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Count = TypeVar("Count", int, np.ndarray)

CYCLE = 1000  # draws of a stream in which each dataset has exactly its share


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive records of one shard that a stream reads.

    Attributes:
      epoch: number of the dataset's epoch, from 0.
      shard: index of the shard in the dataset.
      first: index of the first record in the shard, as permuted in that epoch.
      records: number of records.
    """

    epoch: int
    shard: int
    first: int
    records: int


def epoch_order(
    lengths: Sequence[int], key: Sequence[int], epoch: int
) -> tuple[np.ndarray, int]:
    """Returns the order in which an epoch reads a dataset.

    Args:
      lengths: number of records of each shard of the dataset.
      key: integers that seed the shuffle: seed and dataset.
      epoch: number of the epoch, from 0.

    Returns:
      The order of the shards, (shards,) indices, and the index of the epoch's first
      record, counted through the shards in that order. The epoch wraps around and ends
      before this record. So a record is equally likely at every position, whatever the
      lengths of the shards.
    """
    rng = np.random.default_rng((*key, epoch))
    return rng.permutation(len(lengths)), int(rng.integers(sum(lengths)))


def stream_span(records: int, streams: int, stream: int, epoch: int) -> range:
    """Returns the positions in an epoch, from 0, that a stream reads.

    The spans of all streams cover the epoch's `records` positions, each once. Their
    lengths differ by at most 1, and so do their sums over any number of epochs.

    Args:
      records: number of the dataset's records, N.
      streams: number of streams, S.
      stream: index of the stream, 0 to S - 1.
      epoch: number of the epoch, from 0.
    """
    first = _ceil(epoch * records - np.arange(stream + 1), streams)  # (stream + 1,)
    last = _ceil((epoch + 1) * records - np.arange(stream + 1), streams)
    stop = int((last - first).sum())
    return range(stop - int(last[-1] - first[-1]), stop)


def pieces(
    lengths: Sequence[int], key: Sequence[int], streams: int, stream: int, taken: int
) -> Iterator[Piece]:
    """Yields the pieces that a stream reads after its first `taken` records, endlessly.

    Args:
      lengths: number of records of each shard of the dataset.
      key: integers that seed the shuffle: seed and dataset.
      streams: number of streams, S.
      stream: index of the stream, 0 to S - 1.
      taken: number of records that the stream has read before.
    """
    records = sum(lengths)
    epoch = (taken * streams + stream) // records
    skip = taken - _ceil(epoch * records - stream, streams)
    while True:
        span = stream_span(records, streams, stream, epoch)[skip:]
        order, begin = epoch_order(lengths, key, epoch)
        ends = np.cumsum(np.asarray(lengths)[order])
        place, rest = (span.start + begin) % records, len(span)
        while rest:
            i = int(np.searchsorted(ends, place, "right"))
            count = min(int(ends[i]) - place, rest)
            shard = int(order[i])
            first = place - (int(ends[i]) - lengths[shard])
            yield Piece(epoch, shard, first, count)
            place, rest = (place + count) % records, rest - count
        epoch, skip = epoch + 1, 0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Assigns a dataset to each draw of a stream.

    Attributes:
      phases: tuples (first draw, share of each dataset in CYCLE draws), in order; the
        first begins at draw 0.
    """

    phases: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of_weights(cls, phases: Iterable[tuple[int, Sequence[float]]]) -> "Mixture":
        """Rounds weights to shares of CYCLE draws, by largest remainder.

        Args:
          phases: tuples (first draw of a stream, weight of each dataset), in order.
        """
        return cls(tuple((draw, _shares(weights)) for draw, weights in phases))

    def drawn(self, seed: int, stream: int, draws: int) -> np.ndarray:
        """Counts the draws from each dataset among a stream's first `draws` draws.

        Returns:
          (datasets,) int64.
        """
        counts = np.zeros(len(self.phases[0][1]), np.int64)
        starts = [first for first, _ in self.phases]
        for phase, (first, shares) in enumerate(self.phases):
            last = min([draws, *starts[phase + 1 : phase + 2]])
            if last <= first:
                break
            cycles, rest = divmod(last - first, CYCLE)
            counts += cycles * np.asarray(shares)
            part = _cycle(shares, seed, stream, phase, cycles)[:rest]
            counts += np.bincount(part, minlength=len(counts))
        return counts

    def draws(self, seed: int, stream: int, start: int) -> Iterator[int]:
        """Yields the index of the dataset of each draw from draw `start` on, endlessly.

        Args:
          seed: seed of the order.
          stream: index of the stream, from 0.
          start: number of the first draw, from 0.
        """
        starts = [first for first, _ in self.phases] + [None]
        for phase, (first, shares) in enumerate(self.phases):
            last = starts[phase + 1]
            if last is not None and start >= last:
                continue
            cycle, rest = divmod(max(start - first, 0), CYCLE)
            at = first + cycle * CYCLE + rest
            while last is None or at < last:
                for dataset in _cycle(shares, seed, stream, phase, cycle)[rest:]:
                    if at == last:
                        break
                    yield int(dataset)
                    at += 1
                cycle, rest = cycle + 1, 0


def _cycle(
    shares: Sequence[int], seed: int, stream: int, phase: int, cycle: int
) -> np.ndarray:
    """Returns the datasets' indices of one cycle's draws, (CYCLE,), in random order."""
    rng = np.random.default_rng((seed, stream, phase, cycle))
    return rng.permutation(np.repeat(np.arange(len(shares)), shares))


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    wanted = np.asarray(weights, np.float64) / sum(weights) * CYCLE
    shares = np.floor(wanted).astype(int)
    for i in np.argsort(shares - wanted, kind="stable")[: CYCLE - shares.sum()]:
        shares[i] += 1
    return tuple(int(share) for share in shares)


def _ceil(numerator: Count, denominator: int) -> Count:
    return -(-numerator // denominator)
