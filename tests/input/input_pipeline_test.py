import collections
import io
import itertools
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.evaluation_records import evaluation_records
from align_jax.input.pipeline import TrainBatches, read_records
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.shards import open_shards
from align_jax.input.training_data import InputConfig, open_training
from tests import tiny

LENGTHS = [30, 20, 25, 21]
PREPROCESS = PreprocessConfig(resize=18, image_size=16, random_background=True)


class NumberReader:
    """Replaces the tokenizer: its token is the number at the end of a text."""

    def __call__(self, texts):
        last = tf.strings.regex_replace(texts, ".* ", "")
        return tf.strings.to_number(last, tf.int32)[:, None]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_training(tmp_path_factory.mktemp("data") / "train", LENGTHS)


def open_batches(directory, start=0, seed=0, host=0, hosts=1, batch=8, **fields):
    parts = directory if isinstance(directory, dict) else {"tiny": directory}
    named = {
        name: part if isinstance(part, DatasetConfig) else DatasetConfig(part)
        for name, part in parts.items()
    }
    fields = {"streams": 4, "shuffle_window": 8} | fields
    config = InputConfig(named, PREPROCESS, **fields)
    data = open_training(config, batch, hosts)
    return TrainBatches(data, NumberReader(), seed, start, host, hosts)


def batches(directory, count, *args, **fields):
    drawn = open_batches(directory, *args, **fields)
    found = list(itertools.islice(drawn, count))
    drawn.close()
    return found


def numbers(drawn):
    return [int(n) for batch in drawn for n in batch["tokens"][:, 0]]


def assert_equal(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine["tokens"], theirs["tokens"])
        np.testing.assert_array_equal(mine["images"], theirs["images"])


@pytest.fixture(scope="module")
def whole(directory):
    """The batches of five epochs, read from the first step on."""
    return batches(directory, 60)


@pytest.mark.parametrize("start", [1, 5, 12, 13, 40])
def test_resuming_anywhere_gives_the_same_batches(directory, whole, start):
    assert_equal(batches(directory, 20, start), whole[start : start + 20])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(directory, whole, hosts):
    parts = [batches(directory, 10, 3, host=h, hosts=hosts) for h in range(hosts)]
    joined = [
        {name: np.concatenate([p[name] for p in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole[3:13])


@pytest.mark.parametrize("workers", [1, 5])
def test_workers_change_nothing(directory, whole, workers):
    assert_equal(batches(directory, 6, workers=workers), whole[:6])


@pytest.mark.parametrize("window", [1, 8, 1000])
@pytest.mark.parametrize("streams", [1, 8])
def test_an_epoch_holds_each_pair_once(directory, window, streams):
    total = sum(LENGTHS)  # 96 pairs, 12 batches
    drawn = numbers(batches(directory, 36, streams=streams, shuffle_window=window))
    epochs = [drawn[i * total : (i + 1) * total] for i in range(3)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_places_within_an_epoch_are_evenly_spread(tmp_path):
    folder = tiny.write_training(tmp_path / "train", [4, 3, 5])
    config = InputConfig({"t": DatasetConfig(folder)}, PREPROCESS, streams=2)
    data = open_training(config, 12, 1)
    records = read_records(data, 0, range(2), 0, NumberReader()).take(600)
    counts = np.zeros((12, 12))  # pair, position
    for batch in records.as_numpy_iterator():
        counts[batch["target"][:, 0], range(12)] += 1
    for pair in counts:
        chi_square = ((pair - 50) ** 2 / 50).sum()
        assert chi_square < 31.3  # 11 degrees of freedom: one in a thousand is above


def test_seeds_give_different_orders_and_different_crops(directory):
    mine, other = batches(directory, 3, seed=0), batches(directory, 3, seed=1)
    assert numbers(mine) != numbers(other)
    one = {"one": DatasetConfig(directory, max_pairs=1)}
    crops = [b["images"][0] for b in batches(one, 10, streams=1, batch=1)]
    assert not all(np.array_equal(crops[0], crop) for crop in crops[1:])


def test_a_step_of_a_million_is_reached_at_once(directory):
    found = batches(directory, 2, start=1_000_000)
    assert_equal(batches(directory, 1, start=1_000_001), found[1:])


def test_parts_of_a_dataset_are_nested(directory):
    def used(**fields):
        part = {"tiny": DatasetConfig(directory, **fields)}
        return set(numbers(batches(part, 36)))

    half, tenth = used(fraction=0.5), used(fraction=0.1)
    assert (len(half), len(tenth)) == (48, 10)
    assert tenth < half == set(range(48))
    assert used(max_pairs=33) == set(range(33))
    with pytest.raises(InputError, match="0.001 of the 96 records .* are none"):
        used(fraction=0.001)


@pytest.fixture(scope="module")
def two(directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "other"
    rows = [
        [{"image": tiny.picture(i), "text": tiny.text(f"other {1000 + i}")}]
        for i in range(12)
    ]
    other = tiny.write_dataset(folder, "train", rows, tiny.PAIR_FEATURES)
    return {"tiny": directory, "other": other}


def test_datasets_are_mixed_by_weights_that_change(two):
    weights = ((0, {"tiny": 3, "other": 1}), (100, {"other": 1}))
    found = batches(two, 130, batch=16, weights=weights)
    share = np.array([(np.array(numbers([b])) >= 1000).mean() for b in found])
    assert abs(share[:100].mean() - 0.25) < 0.03 and 0 < share[0] < 0.75
    assert (share[100:] == 1).all()
    assert_equal(batches(two, 12, 95, batch=16, weights=weights), found[95:107])
    parts = [
        batches(two, 12, 95, batch=16, weights=weights, host=h, hosts=2) for h in (0, 1)
    ]
    joined = [
        np.concatenate([p["tokens"] for p in s]) for s in zip(*parts, strict=True)
    ]
    np.testing.assert_array_equal(joined, [b["tokens"] for b in found[95:107]])
    counted = collections.Counter(numbers(found[:96]))
    mine = [counted[i] for i in range(96)]
    assert max(mine) - min(mine) <= 3  # 12 epochs; streams begin them apart


def test_without_weights_every_pair_is_as_frequent(two):
    counted = collections.Counter(numbers(batches(two, 270)))
    assert len(counted) == 108
    assert min(counted.values()) >= 17 and max(counted.values()) <= 23


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((0, {"tinny": 1}),), "names .'tinny'., but datasets has tiny, other"),
        (((0, {"tiny": -1}),), "are {'tiny': -1}; wanted 0 or more"),
        (((0, {"tiny": 0}),), "are {'tiny': 0}; wanted 0 or more"),
        (((5, {"tiny": 1}),), "begins phases at steps .5.; wanted 0 first"),
        (((0, {"tiny": 1}), (0, {"tiny": 1})), "at steps .0, 0.; wanted 0 first"),
        ((3,), "weights holds 3; wanted .step, {dataset: weight}"),
    ],
)
def test_weights_that_do_not_fit_are_refused(two, weights, message):
    with pytest.raises(ValueError, match=message):
        open_batches(two, weights=weights)


def test_one_of_several_captions_is_taken_each_time(tmp_path):
    rows = [
        {"image": tiny.picture(i), "captions/text": tiny.text(f"a {i}", f"b {i + 100}")}
        for i in range(6)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
    }
    folder = tiny.write_dataset(tmp_path / "captions", "train", [rows], features)
    part = {"coco": DatasetConfig(folder, text_feature="captions/text")}
    found = numbers(batches(part, 40, batch=6, streams=2))
    for epoch in range(40):
        epoch_numbers = found[epoch * 6 : epoch * 6 + 6]
        assert sorted(n % 100 for n in epoch_numbers) == list(range(6))
    counted = collections.Counter(found)
    assert len(counted) == 12 and min(counted.values()) > 8
    assert numbers(batches(part, 5, 10, batch=6, streams=2)) == found[60:90]


def encode(kind, mode, frames=1):
    """Makes a file of grey frames, each a little brighter than the one before."""
    first, *others = (
        Image.new("L", (20, 20), 40 * i).convert(mode) for i in range(frames)
    )
    file = io.BytesIO()
    options = {"save_all": True, "append_images": others} if others else {}
    first.save(file, kind, **options)
    return file.getvalue()


def test_broken_pairs_are_replaced_and_counted(tmp_path):
    bad = {3: b"", 4: tiny.draw(tiny.NAMES[4], 4)[:60], 9: b"no picture", 11: b"GIF89a"}
    odd = {20: encode("JPEG", "CMYK"), 21: encode("GIF", "RGB", frames=3)}  # but good
    files = bad | odd
    rows = [
        {
            "image": tiny.text(files[i]) if i in files else tiny.picture(i),
            "text": tiny.text(f"pair {i}"),
        }
        for i in range(48)
    ]
    shards = [rows[:24], rows[24:]]
    folder = tiny.write_dataset(tmp_path / "b", "train", shards, tiny.PAIR_FEATURES)
    drawn = open_batches(folder, batch=16, max_replaced=0.1)
    found = list(itertools.islice(drawn, 9))
    counts = collections.Counter(numbers(found))
    assert not {*bad} & {*counts} and sum(counts.values()) == 9 * 16
    assert counts[20] >= 3 <= counts[21]
    assert drawn.replaced == {"empty": 3, "cut short": 3, "not a picture": 6}
    assert drawn.replaced.total() == 3 * len(bad) and drawn.pairs == 9 * 16
    assert_equal(batches(folder, 4, 5, batch=16), found[5:])
    parts = [batches(folder, 9, batch=16, host=h, hosts=2) for h in (0, 1)]
    joined = [
        np.concatenate([p["tokens"] for p in s]) for s in zip(*parts, strict=True)
    ]
    np.testing.assert_array_equal(joined, [b["tokens"] for b in found])
    for batch in found:  # the text goes with its picture
        pictures = dict(zip(numbers([batch]), batch["images"], strict=True))
        assert len({p.tobytes() for p in pictures.values()}) == len(pictures)


def test_too_many_broken_pairs_end_the_run_with_the_shards_name(tmp_path):
    good = {"image": tiny.picture(1), "text": tiny.text("pair 1")}
    shards = [[good] * 16, [good | {"image": tiny.text(b"x")}] * 16]
    folder = tiny.write_dataset(tmp_path / "b", "train", shards, tiny.PAIR_FEATURES)
    with pytest.raises(
        InputError, match="more than input.max_replaced = 0.01; .*00001"
    ):
        batches(folder, 9)


def test_labels_take_the_place_of_texts(tmp_path):
    rows = [{"image": tiny.picture(i), "label": tiny.whole(i)} for i in range(12)]
    rows[5]["image"] = tiny.text(b"broken")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=12),
    }
    folder = tiny.write_dataset(tmp_path / "labels", "train", [rows], features)
    part = {"classes": DatasetConfig(folder, label_feature="label")}
    found = batches(part, 4, batch=12, max_replaced=0.1)
    for batch in found:
        assert set(batch) == {"images", "labels"} and batch["labels"].dtype == np.int32
        assert {*batch["labels"]} == {*range(12)} - {5}
        pictures = zip(batch["labels"], batch["images"], strict=True)
        assert len({image.tobytes() for _, image in pictures}) == 11
    later = batches(part, 2, 2, batch=12, max_replaced=0.1)
    np.testing.assert_array_equal(
        [b["labels"] for b in found[2:]], [b["labels"] for b in later]
    )
    with pytest.raises(InputError, match="feature 'label' of .*wanted a text or a"):
        open_batches({"t": DatasetConfig(folder, text_feature="label")})
    with pytest.raises(InputError, match="feature 'image' of .*wanted one whole num"):
        open_batches({"t": DatasetConfig(folder, label_feature="image")})
    with pytest.raises(
        ValueError, match="'classes'. have a label_feature, and the oth"
    ):
        open_batches(part | {"texts": DatasetConfig(folder)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 3}, "batch of 8 pairs does not divide over input.streams = 3"),
        ({"hosts": 3}, "input.streams is 4, not a multiple of the 3 hosts"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(directory, arguments, message):
    with pytest.raises(InputError, match=message):
        batches(directory, 1, **arguments)


def test_a_missing_dataset_split_feature_or_shard_is_named(directory, tmp_path):
    with pytest.raises(InputError, match="no TFDS dataset in .*nowhere"):
        open_shards(str(tmp_path / "nowhere"), "train")
    with pytest.raises(InputError, match="no split 'val'; it has .*train"):
        open_shards(directory, "val")
    with pytest.raises(InputError, match="no feature 'caption'; it has image, text"):
        open_batches({"t": DatasetConfig(directory, text_feature="caption")})
    with pytest.raises(InputError, match="no feature 'picture'; it has image, text"):
        open_batches({"t": DatasetConfig(directory, image_feature="picture")})
    broken = pathlib.Path(tiny.write_training(tmp_path / "broken", [3, 3]))
    (broken / "tiny-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(
        InputError, match="1 of 2 shards .* missing, the first is .*-00001"
    ):
        open_shards(str(broken), "train")


def test_a_shard_cut_short_is_named(tmp_path):
    folder = pathlib.Path(tiny.write_training(tmp_path / "cut", [3, 3]))
    path = folder / "dataset_info.json"
    paths = sorted(folder.glob("*.tfrecord-*"))
    info = json.loads(path.read_text())
    info["splits"][0]["numBytes"] = str(sum(p.stat().st_size for p in paths))
    path.write_text(json.dumps(info))
    assert len(open_shards(str(folder), "train")) == 2
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    with pytest.raises(InputError, match="00001-of-00002 is cut short: it has 2 whole"):
        open_shards(str(folder), "train")
    shards = [{"name": path.name, "bytes": 7} for path in paths]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    with pytest.raises(InputError, match="00000-of-00002 has .* bytes, but .* says 7;"):
        open_shards(str(folder), "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datasets": {}}, "config: datasets is empty"),
        ({"streams": 0}, "config: streams is 0; wanted 1 or more"),
        ({"max_replaced": 2.0}, "config: max_replaced is 2.0; wanted 0 to 1"),
        (
            {"datasets": {"a": {"directory": "x", "fraction": 0.0}}},
            "datasets.a: fracti",
        ),
        (
            {"datasets": {"a": {"folder": "x"}}},
            "config.datasets.a has no field 'folder'",
        ),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    whole = {"datasets": {"a": {"directory": "x"}}, "preprocess": {}}
    with pytest.raises(InputError, match=message):
        read_config(InputConfig, whole | fields)


def test_evaluation_records_keep_the_files_bytes(tmp_path):
    directory = tiny.write_evaluation(tmp_path / "test")
    records = evaluation_records(directory, "test")
    assert len(records) == len(tiny.NAMES)
    assert records[0]["image"] == tiny.draw(tiny.NAMES[0], 110)
    assert [r["texts"][0].decode() for r in records] == tiny.NAMES
