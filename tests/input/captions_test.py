import collections
import itertools
import json
import re

import pytest
import tensorflow as tf

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.captions import cut_sentence
from align_jax.input.datasets import DatasetConfig
from align_jax.input.phases import Phase
from align_jax.input.streams import read_records
from align_jax.input.training_data import InputConfig, open_training
from data.index import index_dataset
from tests import tiny
from tests.input.written import write_tar

STREAMS = 2
WEIGHTS = ((0, {"json/alt": 3, "txt": 1}), (50, {"txt": 1}), (60, {"json/alt": 1}))


class Same:
    """Replaces the tokenizer: its tokens are the texts."""

    def __call__(self, texts):
        return texts


def texts(folder, start, count, hosts=1, **fields):
    """The texts of each step, over all hosts."""
    part = {"directory": str(folder), "format": "webdataset"} | fields
    config = read_config(
        InputConfig,
        {
            "datasets": {"t": part},
            "streams": STREAMS,
            "preprocess": {"image_size": 8, "resize": 8},
        },
    )
    data = open_training(config, (Phase(0, 16, config.preprocess),), hosts)
    each = STREAMS // hosts
    found = [
        read_records(data, 0, range(h * each, (h + 1) * each), start, Same())
        for h in range(hosts)
    ]
    steps = itertools.islice(zip(*found, strict=True), count)
    return [[t for batch in step for t in batch["target"]] for step in steps]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples with two captions; each fourth one has no "alt"."""
    folder = tmp_path_factory.mktemp("captions")
    samples = []
    for number in range(40):
        fields = {} if number % 4 == 0 else {"alt": f"alt {number}"}
        samples.append(
            {
                "png": tiny.draw(tiny.NAMES[number % 12], number),
                "txt": f"txt {number}. And more of {number}.".encode(),
                "json": json.dumps(fields).encode(),
            }
        )
    write_tar(folder / "0.tar", samples)
    index_dataset(str(folder), workers=1)
    return folder


@pytest.mark.pods
def test_captions_are_drawn_by_weights_that_change_with_the_step(folder):
    found = texts(folder, 0, 70, captions=WEIGHTS)
    kinds = [
        collections.Counter((t.split() or [b""])[0] for t in step) for step in found
    ]
    first = sum(kinds[:50], collections.Counter())
    # Three of four samples have both, and the others only a txt.
    assert first[b"alt"] / first.total() == pytest.approx(0.75 * 0.75, abs=0.05)
    assert all(step == {b"txt": 16} for step in kinds[50:60])
    last = sum(kinds[60:], collections.Counter())
    assert last[b"txt"] == 0
    assert last[b"alt"] / last.total() == pytest.approx(0.75, abs=0.01)
    assert texts(folder, 45, 20, captions=WEIGHTS) == found[45:65]
    assert texts(folder, 45, 20, hosts=2, captions=WEIGHTS) == found[45:65]


def test_equal_weights_may_be_one_dict_and_zeros_are_never_drawn(folder):
    found = texts(folder, 0, 20, captions={"txt": 1, "json/alt": 0})
    assert {t.split()[0] for step in found for t in step} == {b"txt"}


def test_a_share_of_the_texts_is_cut_to_the_first_sentence(folder):
    found = texts(folder, 0, 60, text_feature="txt", first_sentence=0.3)
    flat = [t.decode() for step in found for t in step]
    short = sum(re.fullmatch(r"txt \d+\.", text) is not None for text in flat)
    assert short / len(flat) == pytest.approx(0.3, abs=0.05)
    assert all("more" in text for text in flat if not re.fullmatch(r"txt \d+\.", text))
    assert texts(folder, 20, 5, text_feature="txt", first_sentence=0.3) == found[20:25]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A dog. A cat.", "A dog."),
        ('He says "stop!" Then\nhe goes.', 'He says "stop!"'),
        ("version 1.5 of it", "version 1.5 of it"),
        ("two\nlines. And more", "two\nlines."),
        ("\u72ac\u3002\u732b\u3002", "\u72ac\u3002"),
        ("", ""),
    ],
)
def test_a_sentence_ends_with_its_mark(text, first):
    assert cut_sentence(tf.constant(text)).numpy().decode() == first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"captions": {"a": 0.0}}, "captions from step 0 are {'a': 0.0}; wanted one"),
        ({"captions": ((5, {"a": 1}),)}, "captions begins phases at steps [5]; wanted"),
        ({"captions": {"a": -1}}, "captions[0][1].a is -1.0; wanted 0 or more"),
        ({"captions": {"a": 1}, "text_feature": "b"}, "captions names a and text_feat"),
        ({"captions": {"a": 1}, "label_feature": "b"}, "'b', so no texts are used"),
        ({"first_sentence": 1.5}, "first_sentence is 1.5; wanted 0 to 1"),
        ({"format": "tar"}, "format is 'tar'; "),
        ({"index": "x"}, "index is 'x'; the format 'tfds' needs none"),
        ({"format": "parquet", "split": "a"}, "split is 'a'; the format 'parquet' has"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_config(DatasetConfig, {"directory": "x"} | fields)


def test_several_features_of_a_dataset_in_tfds_layout(tmp_path):
    rows = [
        {
            "image": tiny.picture(i),
            "text": tiny.text(f"txt {i}"),
            "captions": tiny.text(*[f"alt {i}"] * (i % 3)),
        }
        for i in range(24)
    ]
    features = tiny.PAIR_FEATURES | {"captions": tiny.TEXTS}
    directory = tiny.write_dataset(tmp_path / "a", "train", [rows], features)
    found = texts(directory, 0, 30, format="tfds", captions={"text": 1, "captions": 1})
    counts = collections.Counter(t.split()[0] for step in found for t in step)
    assert counts[b"alt"] / counts.total() == pytest.approx(1 / 3, abs=0.05)
