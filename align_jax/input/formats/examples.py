"""Parses records that are tf.train.Example messages."""

import itertools
from collections.abc import Callable, Iterable, Mapping
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


# First bytes of the fields 1 and 2 of a protobuf message that are messages or bytes.
ONE, TWO = 0x0A, 0x12
MOST_SHIFT = 28  # of the bits in the last byte of a length, which has up to 32 bits


def take_picture(record: bytes, name: str) -> tuple[bytes, bytes] | None:
    """Takes the picture out of a serialized tf.train.Example, in a few microseconds.

    Args:
      record: the serialized message.
      name: feature of the picture.

    Returns:
      The picture's file, and the message with an empty one in its place. None if the
      message is encoded in an unusual way, or the feature is not one picture.
    """
    key, entries, pictures = name.encode(), [], []
    try:
        (features,) = _contents(memoryview(record), [ONE])
        for entry in _contents(features, itertools.repeat(ONE)):
            found, feature = _contents(entry, [ONE, TWO])
            if found != key:
                entries.append(_encode(ONE, entry))
                continue
            (values,) = _contents(feature, [ONE])  # bytes; others are numbers
            (picture,) = _contents(values, [ONE])
            pictures.append(bytes(picture))
        (content,) = pictures
    except (ValueError, IndexError):  # other fields, or an early end
        return None
    empty = _encode(ONE, _encode(ONE, b""))  # a list of one value
    entries.append(_encode(ONE, _encode(ONE, key) + _encode(TWO, empty)))
    return content, _encode(ONE, b"".join(entries))


def _contents(message: memoryview, firsts: Iterable[int]) -> list[memoryview]:
    """Returns the contents of a message's fields, in order.

    Args:
      message: the serialized message.
      firsts: first bytes of the fields, in order; the last fields may be missing.

    Raises:
      ValueError: another field, or one that ends too late.
      IndexError: the message ends early.
    """
    contents, at, end = [], 0, len(message)
    for first in firsts:
        if at == end:
            break
        if message[at] != first:
            raise ValueError
        at += 1
        length = shift = 0
        while (byte := message[at]) > 127:
            length |= (byte & 127) << shift
            shift += 7
            at += 1
        at += 1
        length |= byte << shift
        if shift > MOST_SHIFT or at + length > end:
            raise ValueError
        contents.append(message[at : at + length])
        at += length
    if at < end:
        raise ValueError
    return contents


def _encode(first: int, content: bytes | memoryview) -> bytes:
    """Encodes a field of a message by its first byte and its content."""
    head, length = [first], len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + content
