"""Training batches whose order is a function of (seed, step), and evaluation records.

A dataset is a folder in TFDS's on-disk layout. Its shards are dealt to `streams`
streams; each stream walks its own shards in a new order every epoch, without end, and
every global batch takes the same number of pairs from every stream. A host reads its
share of the streams. Nothing needs to be saved to resume: the position of each stream
at a step follows from the step and the shard lengths, and reading starts inside a
shard.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from align_jax.image_batches import augment_batches
from align_jax.preprocess import PreprocessConfig
from align_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The training data and how it is read.

    Attributes:
      directory: dataset in TFDS's layout, local or any path TensorFlow reads.
      preprocess: image sizes and augmentations.
      split: split of the dataset.
      image_feature: name of the encoded picture in a record.
      text_feature: name of the text in a record.
      streams: independent readers of shards; a multiple of every host count used.
      shuffle_window: records of a shard that are permuted together.
    """

    directory: str
    preprocess: PreprocessConfig
    split: str = "train"
    image_feature: str = "image"
    text_feature: str = "text"
    streams: int = 8
    shuffle_window: int = 1024


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file of a dataset; `records` as its metadata states."""

    path: str
    records: int


def open_shards(directory: str, split: str) -> list[Shard]:
    """Lists a split's shards in order.

    Raises:
      InputError: there is no dataset or split, or a shard is missing or empty.
    """
    if not tf.io.gfile.exists(os.path.join(directory, "dataset_info.json")):
        raise InputError(
            f"no TFDS dataset in {directory!r} (no dataset_info.json): prepare it"
            " first, the quickstart's with `make data`, any corpus with `python -m"
            " data.build`"
        )
    splits = tfds.builder_from_directory(directory).info.splits
    if split not in splits:
        raise InputError(f"{directory} has no split {split!r}; it has {list(splits)}")
    info = splits[split]
    paths = [str(path) for path in info.filepaths]
    shards = [Shard(*pair) for pair in zip(paths, info.shard_lengths, strict=True)]
    absent = [shard.path for shard in shards if not tf.io.gfile.exists(shard.path)]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(shards)} shards of {directory} are missing, the"
            f" first is {absent[0]}; build the dataset again"
        )
    return [shard for shard in shards if shard.records]


def open_training(
    config: InputConfig, batch_size: int, process_count: int
) -> list[Shard]:
    """Lists the training shards; raises InputError where sizes do not fit them."""
    shards = open_shards(config.directory, config.split)
    if len(shards) < config.streams:
        raise InputError(
            f"input.streams is {config.streams}, but {config.directory} has only"
            f" {len(shards)} shards; lower input.streams or write more shards"
        )
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
    return shards


def stream_position(
    lengths: list[int], seed: int, stream: int, taken: int
) -> tuple[int, int, int]:
    """Finds where a stream stands after `taken` pairs.

    Args:
      lengths: records in each of the stream's shards.
      seed: of the run.
      stream: index of the stream.
      taken: pairs the stream has given.

    Returns:
      Epoch, place in that epoch's shard order, and records read of that shard.
    """
    epoch, rest = divmod(taken, sum(lengths))
    for place, shard in enumerate(epoch_order(len(lengths), seed, stream, epoch)):
        if rest < lengths[shard]:
            return epoch, place, rest
        rest -= lengths[shard]
    raise AssertionError("an epoch is as long as its shards")


def epoch_order(count: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """Order of a stream's `count` shards in an epoch, (count,) indices."""
    return np.random.default_rng((seed, stream, epoch)).permutation(count)


def train_batches(
    config: InputConfig,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's rows of every global batch from `start_step` on.

    Args:
      config: the dataset.
      tokenizer: of the text tower.
      batch_size: global, B.
      seed: of order and augmentation.
      start_step: first step to yield.
      process_index: this host among `process_count`.
      process_count: hosts; divides the streams.

    Yields:
      images (B / hosts, H, W, 3) uint8 and tokens (B / hosts, L) int32.

    Raises:
      InputError: sizes that do not divide, fewer shards than streams, no dataset, a
        picture that cannot be used.
    """
    shards = open_training(config, batch_size, process_count)
    per_stream = batch_size // config.streams
    own = np.array_split(np.arange(config.streams), process_count)[process_index]

    streams = [
        _stream(config, shards, seed, int(stream), start_step * per_stream)
        for stream in own
    ]
    order = tf.data.Dataset.range(len(streams)).repeat()
    order = order.flat_map(
        lambda stream: tf.data.Dataset.from_tensors(stream).repeat(per_stream)
    )
    records = tf.data.Dataset.choose_from_datasets(streams, order)
    local_batch = per_stream * len(streams)
    first_row = per_stream * int(own[0])

    def parse(index: tf.Tensor, record: tf.Tensor):
        step = start_step + index // local_batch
        row = first_row + index % local_batch
        example = tf.io.parse_single_example(
            record,
            {
                config.image_feature: tf.io.FixedLenFeature((), tf.string),
                config.text_feature: tf.io.FixedLenFeature((), tf.string),
            },
        )
        key = tf.stack([seed * 2**32 + step, row])
        return example[config.image_feature], key, example[config.text_feature]

    dataset = (
        records.enumerate()
        .map(parse)
        .batch(local_batch, drop_remainder=True)
        .map(lambda encoded, keys, texts: (encoded, keys, tokenizer(texts)))
        .prefetch(1)
    )
    drawn = augment_batches(dataset.as_numpy_iterator(), config.preprocess)
    for images, reasons, tokens in drawn:
        bad = [reason for reason in reasons if reason]
        if bad:
            raise InputError(
                f"{len(bad)} of {len(reasons)} pictures of a batch cannot be used, the"
                f" first is {bad[0]}"
            )
        yield {"images": images, "tokens": tokens}


def evaluation_records(directory: str, split: str) -> list[dict]:
    """Reads a whole evaluation split in the order of its files.

    Returns:
      One dict a record, as the dataset's features describe it, but with the picture
      left encoded (bytes).

    Raises:
      InputError: there is no such dataset or split, or it is empty.
    """
    shards = open_shards(directory, split)
    if not shards:
        raise InputError(f"split {split!r} of {directory} has no records")
    builder = tfds.builder_from_directory(directory)
    pictures_encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    dataset = builder.as_dataset(
        split=split, decoders=pictures_encoded, shuffle_files=False
    )
    return list(dataset.as_numpy_iterator())


def _stream(
    config: InputConfig, shards: list[Shard], seed: int, stream: int, taken: int
) -> tf.data.Dataset:
    """Serialized records of one stream after its first `taken`, without end."""
    own = shards[stream :: config.streams]
    start = stream_position([shard.records for shard in own], seed, stream, taken)

    def walk():
        epoch, place, skip = start
        while True:
            for shard in epoch_order(len(own), seed, stream, epoch)[place:]:
                number = stream + shard * config.streams  # in the dataset
                yield own[shard].path, (seed * 2**32 + epoch, number), skip
                skip = 0
            epoch, place = epoch + 1, 0

    def read_shard(path: tf.Tensor, key: tf.Tensor, skip: tf.Tensor):
        windows = tf.data.TFRecordDataset(path).batch(config.shuffle_window)
        first, rest = skip // config.shuffle_window, skip % config.shuffle_window

        def permute(index: tf.Tensor, window: tf.Tensor):
            window_key = key + tf.stack([tf.constant(0, tf.int64), index * 2**32])
            return tf.data.Dataset.from_tensor_slices(
                tf.random.experimental.stateless_shuffle(window, window_key)
            )

        return windows.enumerate().skip(first).flat_map(permute).skip(rest)

    signature = (
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((2,), tf.int64),
        tf.TensorSpec((), tf.int64),
    )
    places = tf.data.Dataset.from_generator(walk, output_signature=signature)
    return places.flat_map(read_shard)
