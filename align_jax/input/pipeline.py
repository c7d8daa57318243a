"""Yields training batches that depend on (seed, step), not on hosts and workers.

tf.data reads records and tokenizes texts, see `align_jax.input.streams`. Threads decode
and augment the pictures, some batches ahead. Each host reads its share of the streams.
Resuming needs no saved state of the input.
"""

import collections
import contextlib
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from align_jax.errors import InputError
from align_jax.input.image_batches import Encoded, augment_batches
from align_jax.input.phases import find_phase
from align_jax.input.streams import read_records
from align_jax.input.teacher import take_embeddings
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.training_data import TrainingData

Fields = dict[str, np.ndarray]  # (rows, ...) each

GREY = 127
FEW_PAIRS = 1000  # while there are fewer, replaced pairs are a share of this number


class TrainBatches(Iterator):
    """An endless iterator over this host's rows of the global batches.

    A batch is a dict of images (B / hosts, H, W, 3) uint8 and tokens (B / hosts, L)
    int32, or labels (B / hosts,) int32 if the datasets have labels, and of the
    embeddings of a teacher if they have one, see `take_embeddings`. A pair that cannot
    be decoded, or lacks a text, a label or an embedding, is replaced by the next good
    pair of its stream in the batch. If the stream has none, the picture is grey, and
    the other fields stay.

    Attributes:
      started: the first batch while nobody has asked for it, otherwise None.
      pairs: number of pairs that this host has yielded, with replaced ones.
      replaced: number of replaced pairs by reason.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: Tokenizer | None,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Begins to read the first batch, in a thread.

        Args:
          data: result of `open_training` with the same process count.
          tokenizer: tokenizer of the text tower; None for labels.
          seed: seed of the order and of augmentation.
          start_step: number of the first batch, counted from 0.
          process_index: index of this host, 0 to `process_count` - 1.
          process_count: number of hosts, which divides the number of streams.
        """
        config = data.config
        per_host = config.streams // process_count
        self._streams = range(process_index * per_host, (process_index + 1) * per_host)
        self._data, self._seed, self._tokenizer = data, seed, tokenizer
        self._batches = augment_batches(
            self._encoded(start_step), config.workers or None
        )
        reader = ThreadPoolExecutor(1)
        self.started: Future | None = reader.submit(next, self._batches)
        reader.shutdown(wait=False)
        self._bad_shards: collections.Counter[str] = collections.Counter()
        self.pairs = 0
        self.replaced: collections.Counter[str] = collections.Counter()

    def __next__(self) -> Fields:
        """Returns the next batch.

        Raises:
          InputError: the share of replaced pairs is above `max_replaced`, or a shard is
            damaged.
          ValueError: the datasets have texts, but the tokenizer is None.
        """
        with self._data.naming_damage():
            images, reasons, records = self._next()
        for row, texts in enumerate(records["texts"]):
            reasons[row] = reasons[row] or ("" if texts else "no text")
        targets = records["target"].astype(np.int32)  # a writable copy
        if self._data.labelled:
            for row in map(int, np.flatnonzero(targets < 0)):
                reasons[row] = reasons[row] or "no label"
        name = "labels" if self._data.labelled else "tokens"
        batch = {"images": images, name: targets, **take_embeddings(records, reasons)}
        self.pairs += len(reasons)
        if any(reasons):
            self._replace(records, batch, reasons)
        return batch

    def _next(self) -> tuple[np.ndarray, list[str], Fields]:
        if self.started is None:
            return next(self._batches)
        first = self.started.result()
        self.started = None
        return first

    def _encoded(self, step: int) -> Iterator[Encoded]:
        """Yields the arguments of `augment_batches` from batch `step` on, endlessly."""
        data, seed = self._data, self._seed
        while True:  # each turn reads one phase
            phase = data.phases[find_phase(data.phases, step)]
            records = read_records(data, seed, self._streams, step, self._tokenizer)
            for record in records:
                keys = self._keys(step, data.draws_at(step))
                yield record["image"], keys, phase.preprocess, record
                step += 1

    def describe(self, step: int) -> list[dict]:
        """Reads the pairs of one batch again, to say where each is from.

        Args:
          step: number of the batch, counted from 0.

        Returns:
          One dict for each of this host's rows: name of the "dataset", path of the
          "shard", "picture_sha256" of the picture's file, and "tokens" or "labels".

        Raises:
          InputError: a shard is damaged.
        """
        data = self._data
        records = read_records(data, self._seed, self._streams, step, self._tokenizer)
        with data.naming_damage(), contextlib.closing(records):
            batch = next(records)
        names = [*data.config.datasets]
        columns = (batch[n] for n in ("dataset", "shard", "image", "target"))
        return [
            {
                "dataset": names[dataset],
                "shard": data.datasets[dataset].shards[shard].path,
                "picture_sha256": hashlib.sha256(image).hexdigest(),
                "labels" if data.labelled else "tokens": target.tolist(),
            }
            for dataset, shard, image, target in zip(*columns, strict=True)
        ]

    def close(self) -> None:
        """Stops the threads; waits for the first batch."""
        if self.started is not None:
            wait([self.started])
        self._batches.close()

    def _keys(self, step: int, draws: int) -> np.ndarray:
        """Returns keys (rows, 2): seed and step, and the row in the global batch."""
        rows = np.arange(draws * self._streams.start, draws * self._streams.stop)
        return np.stack([np.full(len(rows), self._seed * 2**32 + step), rows], 1)

    def _replace(self, records: Fields, batch: Fields, reasons: list[str]) -> None:
        """Replaces the pairs that have a reason, in place, and counts them."""
        draws = len(reasons) // len(self._streams)
        for row in [row for row, reason in enumerate(reasons) if reason]:
            stream = row // draws * draws
            following = [stream + (row + i) % draws for i in range(1, draws)]
            good = [other for other in following if not reasons[other]]
            batch["images"][row] = GREY
            for rows in batch.values() if good else ():
                rows[row] = rows[good[0]]
            self._count(records["dataset"][row], records["shard"][row], reasons[row])

    def _count(self, dataset: int, shard: int, reason: str) -> None:
        path = self._data.datasets[dataset].shards[shard].path
        if reason not in self.replaced:
            logging.warning("a pair of %s is replaced: %s", path, reason)
        self.replaced[reason] += 1
        self._bad_shards[path] += 1
        total, limit = self.replaced.total(), self._data.config.max_replaced
        if total > limit * max(self.pairs, FEW_PAIRS):
            (worst, count), *_ = self._bad_shards.most_common(1)
            counts = ", ".join(f"{n} x {why}" for why, n in self.replaced.most_common())
            raise InputError(
                f"{total} of {self.pairs} pairs cannot be used ({counts}), more than"
                f" input.max_replaced = {limit}; {count} of them are in {worst}: run"
                " `python -m data.doctor` on its folder"
            )
