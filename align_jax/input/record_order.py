"""Which record stands at each place of training: a pure function of (seed, place).

A dataset of N records is an endless sequence: epoch after epoch, each with all shards
in a new order. Its places are dealt to S streams, place g to stream g mod S, and a
batch of B takes the next B / S places of every stream. So step s holds places s B to (s
+ 1) B - 1, and places e N to (e + 1) N - 1 are epoch e: each record once. Within an
epoch a stream's records lie side by side, so it reads few shards. Several datasets take
turns in a stream by their weights; each goes on with its own sequence.

Nothing here reads a file; nothing needs to be saved to resume.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

CYCLE = 1000  # draws of a stream in which each dataset has its share exactly


@dataclasses.dataclass(frozen=True)
class Piece:
    """Records of one shard that a stream reads in one go.

    Attributes:
      epoch: of the dataset.
      shard: index in the dataset.
      first: place of the first of them in the shard, as it is permuted in that epoch.
      records: how many.
    """

    epoch: int
    shard: int
    first: int
    records: int


def epoch_order(
    lengths: Sequence[int], key: Sequence[int], epoch: int
) -> tuple[np.ndarray, int]:
    """How an epoch goes through a dataset.

    Returns:
      The order of the shards, (shards,) indices, and the record of it, counted through
      all shards in that order, that the epoch begins at; it ends before the same. So a
      record is as likely at every place, whatever the lengths of the shards are.
    """
    rng = np.random.default_rng((*key, epoch))
    return rng.permutation(len(lengths)), int(rng.integers(sum(lengths)))


def stream_span(records: int, streams: int, stream: int, epoch: int) -> range:
    """Places of an epoch's sequence that a stream reads in it.

    The streams' spans cover the epoch's `records` places, each once; their lengths
    differ by at most 1, and so do their sums over any number of epochs.
    """
    first = _ceil(epoch * records - np.arange(stream + 1), streams)  # (stream + 1,)
    last = _ceil((epoch + 1) * records - np.arange(stream + 1), streams)
    stop = int((last - first).sum())
    return range(stop - int(last[-1] - first[-1]), stop)


def pieces(
    lengths: Sequence[int], key: Sequence[int], streams: int, stream: int, taken: int
) -> Iterator[Piece]:
    """Yields what a stream reads after its first `taken` records, without end.

    Args:
      lengths: records of each shard of the dataset.
      key: integers of the shuffle: seed and dataset.
      streams: S.
      stream: 0 to S - 1.
      taken: records that it has given.
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
    """Which dataset each draw of a stream is from.

    Attributes:
      phases: (first draw, share of each dataset in CYCLE draws), in order; the first
        begins at draw 0.
    """

    phases: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of_weights(
        cls, phases: Sequence[tuple[int, Sequence[float]]], draws_a_step: int
    ) -> "Mixture":
        """Rounds weights to shares of CYCLE draws, by largest remainder.

        Args:
          phases: (first step, weight of each dataset), in order.
          draws_a_step: of a stream.
        """
        return cls(
            tuple((step * draws_a_step, _shares(weights)) for step, weights in phases)
        )

    def drawn(self, seed: int, stream: int, draws: int) -> np.ndarray:
        """How many of a stream's first `draws` draws are from each dataset."""
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
        """Yields the dataset of each draw of a stream from draw `start` on."""
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
    """Datasets of one cycle's draws, (CYCLE,), in an order of its own."""
    rng = np.random.default_rng((seed, stream, phase, cycle))
    return rng.permutation(np.repeat(np.arange(len(shares)), shares))


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    wanted = np.asarray(weights, np.float64) / sum(weights) * CYCLE
    shares = np.floor(wanted).astype(int)
    for i in np.argsort(shares - wanted, kind="stable")[: CYCLE - shares.sum()]:
        shares[i] += 1
    return tuple(int(share) for share in shares)


def _ceil(numerator, denominator: int):
    return -(-numerator // denominator)
