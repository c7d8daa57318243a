import collections
import itertools
import pathlib

import numpy as np
import pytest

from align_jax import input_pipeline
from align_jax.errors import InputError
from align_jax.input_pipeline import InputConfig, stream_position, train_batches
from align_jax.preprocess import PreprocessConfig
from tests import tiny

LENGTHS = [30, 20, 25, 21]
PREPROCESS = PreprocessConfig(resize=18, image_size=16, random_background=True)


class NumberReader:
    """Stands in for the tokenizer: keeps the texts, which number the pairs."""

    def __call__(self, texts):
        return texts


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_training(tmp_path_factory.mktemp("data") / "train", LENGTHS)


def batches(directory, count, start=0, seed=0, host=0, hosts=1, streams=4, window=8):
    config = InputConfig(directory, PREPROCESS, streams=streams, shuffle_window=window)
    drawn = train_batches(config, NumberReader(), 8, seed, start, host, hosts)
    return list(itertools.islice(drawn, count))


def numbers(drawn):
    return [int(t.split()[-1]) for batch in drawn for t in batch["tokens"]]


def assert_equal(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine["tokens"], theirs["tokens"])
        np.testing.assert_array_equal(mine["images"], theirs["images"])


@pytest.mark.parametrize("start", [1, 5, 12, 13, 40])
def test_resuming_anywhere_gives_the_same_batches(directory, start):
    whole = batches(directory, start + 15)
    assert_equal(batches(directory, 15, start), whole[start:])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(directory, hosts):
    whole = batches(directory, 10, start=3)
    parts = [batches(directory, 10, 3, host=h, hosts=hosts) for h in range(hosts)]
    joined = [
        {name: np.concatenate([p[name] for p in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.parametrize("window", [1, 8, 1000])
def test_an_epoch_of_a_stream_holds_each_of_its_pairs_once(directory, window):
    drawn = batches(directory, 60, window=window)
    firsts = np.cumsum([0, *LENGTHS])
    for stream, length in enumerate(LENGTHS):  # 4 shards, 4 streams, 2 rows each
        rows = [b["tokens"][2 * stream : 2 * stream + 2] for b in drawn]
        seen = [int(t.split()[-1]) for t in np.concatenate(rows)]
        epochs = [seen[i * length : (i + 1) * length] for i in range(3)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(firsts[stream], firsts[stream + 1]))
        assert (epochs[0] != epochs[1]) == (window > 1)


def test_shards_of_a_stream_change_order_between_epochs(directory):
    drawn = numbers(batches(directory, 400, streams=1))
    total = sum(LENGTHS)
    epochs = [drawn[i * total : (i + 1) * total] for i in range(30)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    shard_of = np.repeat(range(4), LENGTHS)
    orders = [tuple(dict.fromkeys(shard_of[epoch])) for epoch in epochs]
    assert len(set(orders)) > 10
    firsts = collections.Counter(order[0] for order in orders)
    assert set(firsts) == {0, 1, 2, 3}


def test_seeds_give_different_orders_and_different_crops(directory):
    mine, other = batches(directory, 3, seed=0), batches(directory, 3, seed=1)
    assert numbers(mine) != numbers(other)
    again = batches(directory, 14)
    repeated = [b["images"][0] for b in again]
    assert not all(np.array_equal(repeated[0], r) for r in repeated[1:])


def test_a_position_by_hand():
    order = input_pipeline.epoch_order(3, 0, 1, epoch=2)
    lengths = [4, 5, 6]
    first = lengths[order[0]]
    assert stream_position(lengths, 0, 1, 30 + first - 1) == (2, 0, first - 1)
    assert stream_position(lengths, 0, 1, 30 + first) == (2, 1, 0)
    assert stream_position(lengths, 0, 1, 45) == (3, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 3}, "batch of 8 pairs does not divide over input.streams = 3"),
        ({"streams": 8}, "input.streams is 8, but .* has only 4 shards"),
        ({"hosts": 3}, "input.streams is 4, not a multiple of the 3 hosts"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(directory, arguments, message):
    with pytest.raises(InputError, match=message):
        batches(directory, 1, **arguments)


def test_a_missing_dataset_split_or_shard_is_named(directory, tmp_path):
    with pytest.raises(InputError, match="no TFDS dataset in .*nowhere"):
        input_pipeline.open_shards(str(tmp_path / "nowhere"), "train")
    with pytest.raises(InputError, match="no split 'val'; it has .*train"):
        input_pipeline.open_shards(directory, "val")
    broken = pathlib.Path(tiny.write_training(tmp_path / "broken", [3, 3]))
    (broken / "tiny-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(
        InputError, match="1 of 2 shards .* missing, the first is .*-00001"
    ):
        input_pipeline.open_shards(str(broken), "train")


def test_evaluation_records_keep_the_files_bytes(tmp_path):
    directory = tiny.write_evaluation(tmp_path / "test")
    records = input_pipeline.evaluation_records(directory, "test")
    assert len(records) == len(tiny.NAMES)
    assert records[0]["image"] == tiny.draw(tiny.NAMES[0], 110)
    assert [r["texts"][0].decode() for r in records] == tiny.NAMES
