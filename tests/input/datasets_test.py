import collections
import json
import math
import pathlib
import re

import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.evaluation_records import evaluation_records
from align_jax.input.shards import open_shards
from align_jax.input.training_data import InputConfig
from tests import tiny
from tests.input.batches import LENGTHS, assert_equal, batches, numbers, open_batches


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_training(tmp_path_factory.mktemp("data") / "train", LENGTHS)


def test_parts_of_a_dataset_are_nested(directory):
    def used(**fields):
        part = {"tiny": DatasetConfig(directory, **fields)}
        return set(numbers(batches(part, 36)))

    half, tenth = used(fraction=0.5), used(fraction=0.1)
    assert (len(half), len(tenth)) == (48, 10)
    assert tenth < half == set(range(48))
    assert used(max_pairs=33) == set(range(33))
    with pytest.raises(InputError, match=r"0\.001 of the 96 records .* are none"):
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
    assert abs(share[:100].mean() - 0.25) < 0.03
    assert 0 < share[0] < 0.75
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
    assert min(counted.values()) >= 17
    assert max(counted.values()) <= 23


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((0, {"tinny": 1}),), "names ['tinny'], but datasets has tiny, other"),
        (((0, {"tiny": -1}),), "config.weights[0][1].tiny is -1.0; wanted 0 or more"),
        (((0, {"tiny": "x"}),), "config.weights[0][1].tiny is 'x' (str); wanted float"),
        (((0, {"tiny": math.nan}),), "[1].tiny is nan; wanted 0 or more"),
        (((0, {"tiny": 0}),), "are {'tiny': 0.0}; wanted one or more above 0"),
        (((0, {}),), "are {}; wanted one or more above 0"),
        (((5, {"tiny": 1}),), "begins phases at steps [5]; wanted 0 first"),
        (((0, {"tiny": 1}), (0, {"tiny": 1})), "at steps [0, 0]; wanted 0 first"),
        ((3,), "config.weights[0] is 3 (int); wanted tuple"),
        (((0,),), "config.weights[0] is (0,); wanted 2 values, not 1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    datasets = {name: {"directory": name} for name in ("tiny", "other")}
    fields = {"datasets": datasets, "preprocess": {}, "weights": weights}
    with pytest.raises(InputError, match=re.escape(message)):
        read_config(InputConfig, fields)


@pytest.mark.parametrize(
    ("batch", "fields", "message"),
    [
        (
            128,
            {},
            "from step 0 on, 25% of a batch of 128 pairs are in the batch more than"
            " once: each of the 96 pairs of tiny is there 1.33 times, and 0.333 times"
            " its own negative",
        ),
        (96, {}, ""),
        (
            32,
            {"weights": ((0, {"tiny": 1}), (9, {"tiny": 1, "other": 1}))},
            "from step 9 on, 12% .* of the 12 pairs of other is there 1.33 times",
        ),
    ],
)
def test_a_batch_with_a_pair_several_times_is_warned_of(
    two, batch, fields, message, caplog
):
    directory = two if fields else two["tiny"]
    open_batches(directory, batch=batch, **fields).close()
    (text,) = [record.getMessage() for record in caplog.records] or [""]
    assert re.match(message, text)
    assert bool(text) == bool(message)


def test_a_batch_of_mostly_repeated_pairs_is_refused(two):
    text = "62% of a batch of 32 .* is there 2.67 times, and 1.67 times its own negat"
    with pytest.raises(InputError, match=rf"{text}.* smaller batch .*at most 50% may"):
        open_batches(two["other"], batch=32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 3}, "batch of 8 pairs does not divide over input.streams = 3"),
        ({"hosts": 3}, "input.streams is 2, not a multiple of the 3 hosts"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(directory, arguments, message):
    with pytest.raises(InputError, match=message):
        batches(directory, 1, **arguments)


def test_a_missing_dataset_split_feature_or_shard_is_named(directory, tmp_path):
    with pytest.raises(InputError, match=r"no TFDS dataset in .*nowhere"):
        open_shards(str(tmp_path / "nowhere"), "train")
    with pytest.raises(InputError, match=r"no split 'val'; it has .*train"):
        open_shards(directory, "val")
    with pytest.raises(InputError, match="no feature 'caption'; it has image, text"):
        open_batches({"t": DatasetConfig(directory, text_feature="caption")})
    with pytest.raises(InputError, match="no feature 'picture'; it has image, text"):
        open_batches({"t": DatasetConfig(directory, image_feature="picture")})
    broken = pathlib.Path(tiny.write_training(tmp_path / "broken", [3, 3]))
    (broken / "tiny-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(
        InputError, match=r"1 of 2 shards .* missing, the first is .*-00001"
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
    facts = {"bytes": 7, "records": 3, "sha256": ""}
    shards = [{"name": path.name, **facts} for path in paths]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    with pytest.raises(
        InputError, match=r"00000-of-00002 has .* bytes, but .* says 7;"
    ):
        open_shards(str(folder), "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datasets": {}}, "config: datasets is empty"),
        ({"streams": 0}, "config.streams is 0; wanted 1 or more"),
        ({"max_replaced": 2.0}, "config.max_replaced is 2.0; wanted 0 to 1"),
        (
            {"datasets": {"a": {"directory": "x", "fraction": 0.0}}},
            "datasets.a.fraction is 0.0; wanted above 0, up to 1",
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
