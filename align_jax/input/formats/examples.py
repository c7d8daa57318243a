"""Parses records that are tf.train.Example messages."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from align_jax.errors import InputError
from align_jax.input.formats.dataset import Pairs

if TYPE_CHECKING:
    import tensorflow as tf

    from align_jax.input.datasets import DatasetConfig


def make_parser(
    known: Mapping[str, "tf.io.FixedLenFeature"], config: "DatasetConfig"
) -> Callable[[dict[str, "tf.Tensor"]], Pairs]:
    """Makes `Dataset.parse` for records {"record": (N,) string}.

    Args:
      known: the features of a record, as tf.io describes them.
      config: config of the dataset, which names the features to use.

    Raises:
      InputError: a feature is missing or of another type.
    """
    import tensorflow as tf

    texts = (tf.string, True, "a text or a list of texts")
    label = (tf.int64, False, "one whole number")
    names = config.targets
    wanted = {
        config.image_feature: (tf.string, False, "one encoded picture"),
        **dict.fromkeys(names, label if config.label_feature else texts),
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
    for name, feature in spec.items():  # padding would be taken for empty texts
        if isinstance(feature, tf.io.FixedLenSequenceFeature):
            spec[name] = tf.io.RaggedFeature(feature.dtype, row_splits_dtype=tf.int64)

    def parse(records: dict[str, "tf.Tensor"]) -> Pairs:
        examples = tf.io.parse_example(records["record"], spec)
        return examples[config.image_feature], [examples[name] for name in names]

    return parse
