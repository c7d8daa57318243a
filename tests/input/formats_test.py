"""Every format gives the batches that TFRecord files of the same pairs give."""

import itertools

import pytest
import tensorflow as tf

from align_jax.input.formats import dataset
from align_jax.input.phases import Phase
from align_jax.input.streams import read_records
from align_jax.input.training_data import InputConfig, open_training
from tests.input.batches import PREPROCESS, NumberReader, assert_equal, batches
from tests.input.written import WRITERS, write_format

PAIRS, BATCH, EPOCHS = [700, 450, 1, 849], 40, 2
STEPS = sum(PAIRS) // BATCH * EPOCHS


def records(part, start, count, host=0, hosts=1):
    """The steps' (pictures, numbers in the texts) of one host."""
    config = InputConfig({"tiny": part}, PREPROCESS, streams=4, shuffle_window=128)
    data = open_training(config, (Phase(0, BATCH, PREPROCESS),), hosts)
    streams = range(host * 4 // hosts, (host + 1) * 4 // hosts)
    found = read_records(data, 0, streams, start, NumberReader()).take(count)
    return [
        ([*batch["image"]], [*batch["target"][:, 0]])
        for batch in found.as_numpy_iterator()
    ]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("formats")
    return {name: write_format(name, root, PAIRS) for name in ("tfds", *WRITERS)}


@pytest.fixture(scope="module")
def whole(parts):
    """Two epochs, read from TFRecord files."""
    return records(parts["tfds"], 0, STEPS)


@pytest.mark.parametrize(
    "name",
    [
        "webdataset",
        pytest.param("parquet", marks=pytest.mark.pods),
        pytest.param("array_record", marks=pytest.mark.pods),
    ],
)
def test_epochs_resumes_and_hosts_are_exact_in_every_format(parts, whole, name):
    assert records(parts[name], 0, STEPS) == whole
    for start in (1, 7, 33, 50, 96):
        assert records(parts[name], start, 3) == whole[start : start + 3]
    of_hosts = [records(parts[name], 47, 5, host, 4) for host in range(4)]
    for step, rows in enumerate(zip(*of_hosts, strict=True)):
        joined = [[*itertools.chain(*column)] for column in zip(*rows, strict=True)]
        assert tuple(joined) == whole[47 + step]


def test_each_epoch_has_each_pair_once(whole):
    steps = STEPS // EPOCHS
    for epoch in range(EPOCHS):
        part = whole[epoch * steps : (epoch + 1) * steps]
        drawn = [number for _, numbers in part for number in numbers]
        assert sorted(drawn) == list(range(sum(PAIRS)))


def test_pixels_at_a_step_of_a_million_are_those_of_tfrecord(parts):
    first, *others = (batches({"a": part}, 2, 1_000_000) for part in parts.values())
    for found in others:
        assert_equal(found, first)


def test_groups_of_a_reader_in_python_are_whole():
    rows = [(b"%d" % i, [[b"text %d" % i] * (i % 4)]) for i in range(20)]
    data = dataset.open_rows(
        [], lambda _, first, last: iter(rows[first:last]), 1, False
    )
    first, last = tf.constant(1, tf.int64), tf.constant(19, tf.int64)
    found, sizes = [], []
    for group in data.read(tf.constant("path"), first, last, 8):
        images, (texts,) = data.parse(group)
        sizes.append(len(images))
        found += zip(images.numpy(), ([text] for text in texts.to_list()), strict=True)
    assert found == rows[1:19]
    assert sizes == [8, 8, 2]
