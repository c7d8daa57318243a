"""Opens training datasets: the records that a run uses, and a parser for them."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from align_jax import dataset_folder
from align_jax.errors import InputError
from align_jax.input.shards import Shard, list_shards, open_builder
from align_jax.ranges import INT64, Range

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of training.

    Attributes:
      directory: path or URL of a folder in TFDS's layout, or of a folder that holds its
        versions; the newest one is used.
      split: name of the dataset's split.
      image_feature: name of the encoded picture in a record.
      text_feature: name of the text, or of a list of texts; each visit of a record uses
        a random one. "captions/text" is the field `text` of a list `captions`.
      label_feature: name of a class number that replaces the text; "" for none.
      fraction: fraction of the records that is used, the first ones of the files. If
        the records are in random order, as `data.build` writes them, these are a random
        sample, and a smaller sample is part of a larger one.
      max_pairs: largest number of records that is used, the first ones; 0 for all.
    """

    directory: str
    split: str = "train"
    image_feature: str = "image"
    text_feature: str = "text"
    label_feature: str = ""
    fraction: Annotated[float, Range(above=0, most=1)] = 1.0
    max_pairs: Annotated[int, Range(least=0, most=INT64)] = 0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of a dataset that a run uses.

    Attributes:
      shards: files in order, each with one or more records that are used.
      parse: function from a serialized record () bytes to the picture's file () bytes
        and its text () bytes, texts (texts,) bytes or label () int64.
    """

    shards: list[Shard]
    parse: Callable


def open_dataset(config: DatasetConfig) -> Dataset:
    """Opens the records of a dataset that a run uses.

    Raises:
      InputError: an error of `open_shards`, no records to use, or a feature that is
        missing or of another type.
    """
    directory = dataset_folder.newest_version(config.directory)
    builder = open_builder(directory, config.split)
    shards = list_shards(directory, builder.info, config.split)
    total = sum(shard.records for shard in shards)
    wanted = round(total * config.fraction)
    if config.max_pairs:
        wanted = min(wanted, config.max_pairs)
    if not wanted:
        raise InputError(
            f"{config.fraction} of the {total} records of {config.directory}"
            f" {config.split} are none"
        )
    used = []
    for shard in shards:
        used.append(dataclasses.replace(shard, records=min(shard.records, wanted)))
        wanted -= used[-1].records
        if not wanted:
            break
    return Dataset(used, _make_parser(builder.info.features, config))


def _make_parser(
    features: "tfds.features.FeaturesDict", config: DatasetConfig
) -> Callable[["tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]]:
    """Makes `Dataset.parse`; raises InputError for missing or unfit features."""
    import tensorflow as tf

    known = features.tf_example_spec
    target = config.label_feature or config.text_feature
    target_type, description = tf.string, "a text or a list of texts"
    if config.label_feature:
        target_type, description = tf.int64, "one whole number"
    wanted = {
        config.image_feature: (tf.string, False, "one encoded picture"),
        target: (target_type, not config.label_feature, description),
    }
    for name, (dtype, may_be_list, description) in wanted.items():
        if name not in known:
            raise InputError(
                f"{config.directory} has no feature {name!r}; it has"
                f" {', '.join(sorted(known))}"
            )
        is_list = isinstance(known[name], tf.io.FixedLenSequenceFeature)
        if (
            known[name].dtype != dtype
            or len(known[name].shape)
            or (is_list and not may_be_list)
        ):
            raise InputError(
                f"feature {name!r} of {config.directory} is {known[name]}; wanted"
                f" {description}"
            )
    spec = {name: known[name] for name in wanted}

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, spec)
        return example[config.image_feature], example[target]

    return parse


def count_labels(config: DatasetConfig) -> int | None:
    """Returns the number of classes that a dataset's metadata state, or None.

    `config.label_feature` must be a feature of the dataset.
    """
    directory = dataset_folder.newest_version(config.directory)
    feature = open_builder(directory, config.split).info.features
    for name in config.label_feature.split("/"):
        feature = feature[name]
    return getattr(feature, "num_classes", None)
