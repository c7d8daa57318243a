"""Every format gives the batches that TFRecord files of the same pairs give."""

import itertools
import logging
import types

import pytest
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.input import streams
from align_jax.input.formats import array_record, dataset
from align_jax.input.formats.examples import take_picture
from align_jax.input.formats.kept_pictures import ABSENT, KeptPictures
from align_jax.input.phases import Phase
from align_jax.input.training_data import InputConfig, open_training
from tests.input.batches import (
    PREPROCESS,
    NumberReader,
    assert_equal,
    batches,
    open_batches,
)
from tests.input.written import WRITERS, write_format

PAIRS, BATCH, EPOCHS = [700, 450, 1, 849], 40, 2
STEPS = sum(PAIRS) // BATCH * EPOCHS


def records(parts, start, count, host=0, hosts=1):
    """The steps' (pictures, numbers in the texts) of one host."""
    parts = parts if isinstance(parts, dict) else {"tiny": parts}
    config = InputConfig(parts, PREPROCESS, streams=4, shuffle_window=128)
    data = open_training(config, (Phase(0, BATCH, PREPROCESS),), hosts)
    of_host = range(host * 4 // hosts, (host + 1) * 4 // hosts)
    found = streams.read_records(data, 0, of_host, start, NumberReader())
    return [
        ([*batch["image"]], [*batch["target"][:, 0]])
        for batch in itertools.islice(found, count)
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


def test_a_mixture_of_formats_gives_the_batches_of_tfrecord(parts):
    names = ("tfds", "webdataset", "parquet")
    mixed = records({name: parts[name] for name in names}, 3, 20)
    assert mixed == records({name: parts["tfds"] for name in names}, 3, 20)


class Watched(KeptPictures):
    """Notes the number of groups that are held after each batch."""

    def __init__(self):
        super().__init__()
        self.sizes, self.kept = [], 0

    def keep(self, pictures):
        self.kept += 1
        return super().keep(pictures)

    def take(self, numbers, sources):
        found = super().take(numbers, sources)
        self.sizes.append(len(self._groups))
        return found


def test_pictures_of_used_windows_are_forgotten(parts, monkeypatch):
    kept = Watched()
    monkeypatch.setattr(streams, "KeptPictures", lambda: kept)
    records(parts["webdataset"], 0, 400)
    assert kept.kept > 150
    # Each of the four streams holds its window and those that it reads ahead, of which
    # the smallest has one record.
    assert 0 < min(kept.sizes) <= max(kept.sizes) < 40
    assert not kept._groups  # although it stopped within windows


@pytest.mark.parametrize("use", ["close", "describe", "fail"])
def test_no_pictures_stay_when_reading_ends(parts, monkeypatch, use):
    """TensorFlow keeps the functions of a thread's datasets, and thereby the store."""
    stores = []
    monkeypatch.setattr(
        streams, "KeptPictures", lambda: stores.append(Watched()) or stores[-1]
    )
    reader, read = open_batches(parts["parquet"], shuffle_window=128), []
    read += [next(reader)]
    if use == "describe":
        read += [reader.describe(3)]
    if use == "fail":
        monkeypatch.setattr(Watched, "take", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read += itertools.islice(reader, 10)
    reader.close()
    assert len(stores) == (2 if use == "describe" else 1)
    assert all(store.kept for store in stores)
    for store in stores:
        store.keep([b"of a thread that still reads"])
        assert not store._groups


def test_reading_logs_no_warnings(parts, caplog, monkeypatch):
    # A copy, because TensorFlow warns once of a function that it cannot convert.
    copy = types.FunctionType(dataset.read_in_python.__code__, vars(dataset))
    monkeypatch.setattr(dataset, "read_in_python", copy)
    assert len(batches(parts["parquet"], 1)) == 1
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def message(**features):
    """A serialized tf.train.Example."""
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(**{kinds[type(values[0])]: {"value": values}})
                for name, values in features.items()
            }
        )
    ).SerializeToString()


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_a_picture_is_taken_out_of_its_record(length):
    others = {"text": [b"a", b"b" * 200], "label": [7], "size": [0.5]}
    picture = bytes(length)
    for features in ({"image": [picture]} | others, others | {"image": [picture]}):
        taken = take_picture(message(**features), "image")
        assert taken is not None
        assert taken[0] == picture
        expected = tf.train.Example.FromString(message(**others, image=[b""]))
        assert tf.train.Example.FromString(taken[1]) == expected


def test_a_record_without_one_picture_stays_whole():
    plain = message(image=[b"abc"])
    assert take_picture(plain, "image") is not None
    odd = [
        message(text=[b"image"]),
        message(image=[b"a", b"b"]),
        message(image=[7]),
        message(image=[0.5]),
        message(image=[b"a"]) + message(image=[b"b"]),
        tf.train.Example().SerializeToString(),
        b"",
        b"\xff",
        b"\x1a" + plain[1:],  # other fields, which parsers skip
        plain.replace(b"\x0a\x10\x0a\x05", b"\x1a\x10\x0a\x05"),
        plain.replace(b"\x0a\x03abc", b"\x1a\x03abc"),
        b"\x0a" + b"\x92" + b"\x80" * 10 + b"\x00" + plain[2:],  # 12 bytes of a length
    ]
    assert [take_picture(record, "image") for record in odd] == [None] * len(odd)
    whole = message(image=[b"a" * 300], text=[b"b"])
    for size in range(len(whole)):
        assert take_picture(whole[:size], "image") is None


def test_records_that_stay_whole_are_not_kept():
    pictures = KeptPictures()
    fields = array_record._stack(pictures, [(None, b"a"), (None, b"b")])
    assert fields["kept"].tolist() == [ABSENT] * 2
    assert not pictures._groups


def test_pictures_of_array_records_do_not_pass_through_tensorflow(parts, monkeypatch):
    part, found = parts["array_record"], []

    def take(kept, numbers, sources):
        found.extend(numbers)
        return KeptPictures.take(kept, numbers, sources)

    monkeypatch.setattr(Watched, "take", take)
    monkeypatch.setattr(streams, "KeptPictures", Watched)
    kept = records(part, 3, 2)
    assert len(found) == 2 * BATCH
    assert ABSENT not in found
    monkeypatch.setattr(array_record, "take_picture", lambda *_: None)
    assert records(part, 3, 2) == kept
    assert found[2 * BATCH :] == [ABSENT] * 2 * BATCH


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


def test_a_shard_that_has_lost_records_is_named():
    rows = [(b"picture", [[b"text"]])] * 5
    data = dataset.open_rows(
        [], lambda _, first, last: iter(rows[first:last]), 1, False
    )
    first, last = tf.constant(2, tf.int64), tf.constant(9, tf.int64)
    part = dataset.ShardPart(tf.constant("x.parquet"), first, last, 2)
    with pytest.raises(InputError, match="parquet ends before record 9, which it had"):
        with dataset.naming_damage([data], lambda: []):
            list(data.read(part))


def test_groups_of_a_reader_in_python_are_whole():
    rows = [(b"%d" % i, [[b"text %d" % i] * (i % 4)]) for i in range(20)]
    data = dataset.open_rows(
        [], lambda _, first, last: iter(rows[first:last]), 1, False
    )
    first, last = tf.constant(1, tf.int64), tf.constant(19, tf.int64)
    found, sizes = [], []
    part = dataset.ShardPart(tf.constant("path"), first, last, 8)
    for group in data.read(part):
        images, (texts,) = data.parse(group)
        sizes.append(len(images))
        found += zip(images.numpy(), ([text] for text in texts.to_list()), strict=True)
    assert found == rows[1:19]
    assert sizes == [8, 8, 2]
