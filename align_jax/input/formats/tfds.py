"""The format `tfds`: TFRecord files in the layout of TensorFlow Datasets."""

from typing import TYPE_CHECKING

from align_jax import dataset_folder
from align_jax.input.formats.dataset import Dataset, ShardPart
from align_jax.input.formats.examples import make_parser
from align_jax.input.shards import list_shards, open_builder

if TYPE_CHECKING:
    import tensorflow as tf

    from align_jax.input.datasets import DatasetConfig


def open_tfds(config: "DatasetConfig") -> Dataset:
    """Opens a dataset; raises InputError as `open_shards`, or for other features."""
    directory = dataset_folder.newest_version(config.directory)
    builder = open_builder(directory, config.split)
    shards = list_shards(directory, builder.info, config.split)
    parse = make_parser(builder.info.features.tf_example_spec, config)
    return Dataset(shards, _read, parse)


def _read(part: ShardPart) -> "tf.data.Dataset":
    """Reads records, see `Dataset.read`; those before the first are passed over."""
    import tensorflow as tf

    records = tf.data.TFRecordDataset(part.path).take(part.last)
    groups = records.batch(part.size).skip(part.first // part.size)
    return groups.map(lambda records: {"record": records})
