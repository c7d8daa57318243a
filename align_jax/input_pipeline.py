"""Training batches that are a function of (seed, step), whatever the hosts and workers.

tf.data reads records in the order of `align_jax.record_order` and tokenizes texts;
threads decode and augment the pictures, some batches ahead. A host reads its share of
the streams. Nothing needs to be saved to resume.
"""

import collections
import dataclasses
import itertools
import logging
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from align_jax import record_order
from align_jax.datasets import DatasetConfig, Shard, make_parser, open_dataset
from align_jax.errors import InputError
from align_jax.image_batches import augment_batches
from align_jax.preprocess import PreprocessConfig
from align_jax.tokenizer import Tokenizer

GREY = 127
FEW_PAIRS = 1000  # the share of replaced pairs is taken of at least so many


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The training data and how it is read.

    Attributes:
      datasets: by name, which is part of the seed of its order.
      preprocess: image sizes and augmentations.
      weights: ((step, {dataset: weight, ...}), ...): shares of the pairs from a step
        on, in thousandths; the first step is 0. Empty mixes in proportion to the
        datasets' pairs.
      streams: independent readers of records; a multiple of every host count used.
      shuffle_window: records of a shard that are permuted together, and held in memory
        by each stream; a shard of at most so many is permuted whole.
      workers: threads that prepare pictures on a host; 0 takes one a core.
      max_replaced: share of a host's pairs that may be replaced because they cannot be
        decoded; above it the run stops.
    """

    datasets: dict[str, DatasetConfig]
    preprocess: PreprocessConfig
    weights: tuple = ()
    streams: int = 8
    shuffle_window: int = 1024
    workers: int = 0
    max_replaced: float = 0.01

    def __post_init__(self):
        if not self.datasets:
            raise ValueError("datasets is empty; wanted one or more")
        for name, least in (("streams", 1), ("shuffle_window", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; wanted {least} or more"
                )
        if not 0 <= self.max_replaced <= 1:
            raise ValueError(f"max_replaced is {self.max_replaced}; wanted 0 to 1")
        _check_weights(self.weights, [*self.datasets])


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The shards of every dataset, opened and checked.

    Attributes:
      config: of the input.
      shards: of each dataset, in the config's order.
      parsers: of each dataset's records, see `make_parser`.
      draws_a_step: pairs that a stream gives to a global batch.
      mixture: which dataset they are from.
    """

    config: InputConfig
    shards: list[list[Shard]]
    parsers: list[Callable]
    draws_a_step: int
    mixture: record_order.Mixture

    @property
    def pairs(self) -> int:
        """Records of all datasets that are used."""
        return sum(shard.records for shards in self.shards for shard in shards)


def open_training(
    config: InputConfig, batch_size: int, process_count: int
) -> TrainingData:
    """Opens the training data.

    Raises:
      InputError: sizes do not divide, or a dataset is missing, damaged or lacks a
        feature.
    """
    if batch_size % config.streams:
        raise InputError(
            f"the global batch of {batch_size} pairs does not divide over"
            f" input.streams = {config.streams}"
        )
    if config.streams % process_count:
        raise InputError(
            f"input.streams is {config.streams}, not a multiple of the"
            f" {process_count} hosts"
        )
    shards = [open_dataset(dataset) for dataset in config.datasets.values()]
    parsers = [make_parser(dataset) for dataset in config.datasets.values()]
    sizes = [sum(shard.records for shard in part) for part in shards]
    weights = [
        (step, [float(by_name.get(name, 0)) for name in config.datasets])
        for step, by_name in config.weights
    ] or [(0, sizes)]
    draws = batch_size // config.streams
    mixture = record_order.Mixture.of_weights(weights, draws)
    return TrainingData(config, shards, parsers, draws, mixture)


class TrainBatches(Iterator):
    """This host's rows of every global batch from a step on, without end.

    A batch is images (B / hosts, H, W, 3) uint8 and tokens (B / hosts, L) int32. A pair
    that cannot be decoded, or has no text, is replaced by the next good one of its
    stream in the batch; where there is none, its picture is grey.

    Attributes:
      pairs: of this host so far.
      replaced: how many of them were replaced, by reason.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: Tokenizer,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Begins to read.

        Args:
          data: from `open_training` with the same process count.
          tokenizer: of the text tower.
          seed: of order and augmentation.
          start_step: first step to give.
          process_index: this host among `process_count`.
          process_count: hosts; divides the streams.
        """
        config = data.config
        per_host = config.streams // process_count
        self._streams = range(process_index * per_host, (process_index + 1) * per_host)
        self._data = data
        records = read_records(data, seed, self._streams, start_step, tokenizer)
        numbered = enumerate(records.as_numpy_iterator(), start_step)
        self._batches = augment_batches(
            (
                (record["image"], self._keys(seed, step), record)
                for step, record in numbered
            ),
            config.preprocess,
            config.workers or None,
        )
        self._bad_shards: collections.Counter[str] = collections.Counter()
        self.pairs = 0
        self.replaced: collections.Counter[str] = collections.Counter()

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch.

        Raises:
          InputError: more pairs than `max_replaced` allows cannot be decoded.
        """
        images, reasons, records = next(self._batches)
        for row, texts in enumerate(records["texts"]):
            reasons[row] = reasons[row] or ("" if texts else "no text")
        tokens = records["tokens"]
        self.pairs += len(reasons)
        if any(reasons):
            tokens = tokens.copy()  # TensorFlow's own memory is not to be written
            self._replace(records, images, tokens, reasons)
        return {"images": images, "tokens": tokens}

    def close(self) -> None:
        """Ends the threads."""
        self._batches.close()

    def _keys(self, seed: int, step: int) -> np.ndarray:
        """A key (2,) for each of this host's rows: seed and step, and its place."""
        draws = self._data.draws_a_step
        rows = np.arange(draws * self._streams.start, draws * self._streams.stop)
        return np.stack([np.full(len(rows), seed * 2**32 + step), rows], 1)

    def _replace(self, records, images, tokens, reasons) -> None:
        """Fills the rows that have a reason, and counts them."""
        draws = self._data.draws_a_step
        for row in [row for row, reason in enumerate(reasons) if reason]:
            stream = row // draws * draws
            following = [stream + (row + i) % draws for i in range(1, draws)]
            good = [other for other in following if not reasons[other]]
            images[row] = images[good[0]] if good else GREY
            tokens[row] = tokens[good[0]] if good else tokens[row]
            self._count(records["dataset"][row], records["shard"][row], reasons[row])

    def _count(self, dataset: int, shard: int, reason: str) -> None:
        path = self._data.shards[dataset][shard].path
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


def read_records(
    data: TrainingData,
    seed: int,
    streams: range,
    start_step: int,
    tokenizer: Tokenizer,
) -> tf.data.Dataset:
    """Records of some streams, a batch a step.

    Returns:
      A dataset of image (rows,) encoded, texts (rows,) the number of texts to choose
      from, tokens (rows, L) int32, dataset and shard (rows,) int64, without end.
    """
    start, draws = start_step * data.draws_a_step, data.draws_a_step
    parts, taken = [], {s: data.mixture.drawn(seed, s, start) for s in streams}
    for stream in streams:
        parts += [
            _stream(data, index, seed, stream, int(taken[stream][index]))
            for index in range(len(data.shards))
        ]

    def choices() -> Iterator[np.ndarray]:
        """Which part each row of a step is from, (rows,)."""
        datasets = [data.mixture.draws(seed, stream, start) for stream in streams]
        while True:
            yield np.array(
                [
                    i * len(data.shards) + dataset
                    for i, drawn in enumerate(datasets)
                    for dataset in itertools.islice(drawn, draws)
                ]
            )

    rows = draws * len(streams)
    if len(data.shards) == 1:  # the same without asking Python
        order = tf.data.Dataset.from_tensors(np.repeat(np.arange(len(streams)), draws))
        order = order.repeat()
    else:
        signature = tf.TensorSpec((rows,), tf.int64)
        order = tf.data.Dataset.from_generator(choices, output_signature=signature)
    records = tf.data.Dataset.choose_from_datasets(parts, order.unbatch())
    return (
        records.batch(rows, drop_remainder=True)
        .map(lambda record: {"tokens": tokenizer(record.pop("text")), **record})
        .prefetch(1)
    )


def _stream(
    data: TrainingData, index: int, seed: int, stream: int, taken: int
) -> tf.data.Dataset:
    """Records of one dataset in one stream after its first `taken`, without end."""
    config, shards, parse = data.config, data.shards[index], data.parsers[index]
    number = zlib.crc32([*config.datasets][index].encode())
    lengths = [shard.records for shard in shards]

    def walk():
        key = (seed, number)
        for piece in record_order.pieces(lengths, key, config.streams, stream, taken):
            shuffle = np.random.default_rng((*key, piece.epoch, piece.shard))
            shuffle_key = shuffle.integers(2**62, size=2)
            shard = shards[piece.shard]
            yield (
                (shard.path, shard.records, piece.shard),
                shuffle_key,
                (
                    piece.first,
                    piece.records,
                ),
            )

    def read(shard, shuffle_key, span):
        path, records, place = shard
        first, count = span
        window = config.shuffle_window

        def permute(index: tf.Tensor, window: tf.Tensor):
            window_key = shuffle_key + tf.stack([tf.constant(0, tf.int64), index])
            return tf.data.Dataset.from_tensor_slices(
                tf.random.experimental.stateless_shuffle(window, window_key)
            )

        windows = tf.data.TFRecordDataset(path).take(records).batch(window)
        found = windows.enumerate().skip(first // window).flat_map(permute)
        found = found.skip(first % window).take(count)
        return found.map(lambda record: (record, place))

    def choose(draw, content):
        record, place = content
        image, texts = parse(record)
        count = tf.size(texts)
        key = tf.stack([seed * 2**32 + number, stream * 2**40 + draw])
        chosen = tf.random.stateless_uniform((), key, 0, tf.maximum(count, 1), tf.int32)
        return {
            "image": image,
            "text": tf.concat([texts, [""]], 0)[chosen],
            "texts": count,
            "dataset": tf.constant(index, tf.int64),
            "shard": place,
        }

    integer = tf.TensorSpec((), tf.int64)
    signature = (
        (tf.TensorSpec((), tf.string), integer, integer),
        tf.TensorSpec((2,), tf.int64),
        (integer, integer),
    )
    found = tf.data.Dataset.from_generator(walk, output_signature=signature)
    found = found.flat_map(read).enumerate(taken).map(choose)
    return found.prefetch(data.draws_a_step)


def _check_weights(weights: tuple, names: list[str]) -> None:
    """Raises ValueError for weights that are not those of `InputConfig`."""
    steps = [-1]
    for phase in weights:
        if not (
            isinstance(phase, tuple)
            and len(phase) == 2
            and isinstance(phase[0], int)
            and isinstance(phase[1], dict)
        ):
            raise ValueError(
                f"weights holds {phase!r}; wanted (step, {{dataset: weight}})"
            )
        step, by_name = phase
        unknown = sorted({*by_name} - {*names})
        if unknown:
            raise ValueError(
                f"weights names {unknown}, but datasets has {', '.join(names)}"
            )
        if min(by_name.values(), default=-1) < 0 or not sum(by_name.values()):
            raise ValueError(
                f"weights from step {step} are {by_name}; wanted 0 or more"
            )
        if step <= steps[-1] or (steps == [-1] and step):
            raise ValueError(
                f"weights begins phases at steps {[s for s, _ in weights]}; wanted 0"
                " first and then later ones"
            )
        steps.append(step)
