import collections
import io
import itertools
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.phases import Phase
from align_jax.input.streams import read_records
from align_jax.input.training_data import InputConfig, open_training
from tests import tiny
from tests.input.batches import (
    LENGTHS,
    PREPROCESS,
    NumberReader,
    assert_equal,
    batches,
    numbers,
    open_batches,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_training(tmp_path_factory.mktemp("data") / "train", LENGTHS)


@pytest.fixture(scope="module")
def whole(directory):
    """The batches of five epochs, read from the first step on."""
    return batches(directory, 60)


@pytest.mark.parametrize("start", [1, 5, 12, 13, 40])
def test_resuming_anywhere_gives_the_same_batches(directory, whole, start):
    assert_equal(batches(directory, 20, start), whole[start : start + 20])


@pytest.fixture(scope="module")
def of_four_streams(directory):
    return batches(directory, 10, 3, streams=4)


def test_the_first_batch_is_read_before_it_is_asked_for(directory, whole):
    drawn = open_batches(directory)
    deadline = time.monotonic() + 60
    while drawn.started is None or not drawn.started.done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert_equal([next(drawn)], whole[:1])
    drawn.close()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(directory, of_four_streams, hosts):
    parts = [
        batches(directory, 10, 3, host=h, hosts=hosts, streams=4) for h in range(hosts)
    ]
    joined = [
        {name: np.concatenate([p[name] for p in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, of_four_streams)


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
    data = open_training(config, (Phase(0, 12, PREPROCESS),), 1)
    records = read_records(data, 0, range(2), 0, NumberReader())
    counts = np.zeros((12, 12))  # pair, position
    for batch in itertools.islice(records, 600):
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
    assert len(counted) == 12
    assert min(counted.values()) > 8
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
    drawn = open_batches(folder, batch=16, max_replaced=0.1, streams=4)
    found = list(itertools.islice(drawn, 9))
    counts = collections.Counter(numbers(found))
    assert not {*bad} & {*counts}
    assert sum(counts.values()) == 9 * 16
    assert counts[20] >= 3 <= counts[21]
    assert drawn.replaced == {"empty": 3, "cut short": 3, "not a picture": 6}
    assert drawn.replaced.total() == 3 * len(bad)
    assert drawn.pairs == 9 * 16
    assert_equal(batches(folder, 4, 5, batch=16, streams=4), found[5:])
    parts = [batches(folder, 9, batch=16, host=h, hosts=2, streams=4) for h in (0, 1)]
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
        InputError, match=r"more than input\.max_replaced = 0\.01; .*00001"
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
        assert set(batch) == {"images", "labels"}
        assert batch["labels"].dtype == np.int32
        assert {*batch["labels"]} == {*range(12)} - {5}
        pictures = zip(batch["labels"], batch["images"], strict=True)
        assert len({image.tobytes() for _, image in pictures}) == 11
    later = batches(part, 2, 2, batch=12, max_replaced=0.1)
    np.testing.assert_array_equal(
        [b["labels"] for b in found[2:]], [b["labels"] for b in later]
    )
    with pytest.raises(InputError, match=r"feature 'label' of .*wanted a text or a"):
        open_batches({"t": DatasetConfig(folder, text_feature="label")})
    with pytest.raises(InputError, match=r"feature 'image' of .*wanted one whole num"):
        open_batches({"t": DatasetConfig(folder, label_feature="image")})
    with pytest.raises(
        ValueError, match=r"'classes'\] have a label_feature, and the oth"
    ):
        open_batches(part | {"texts": DatasetConfig(folder)})
