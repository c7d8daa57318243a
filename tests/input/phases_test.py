"""Batches whose sizes change with the step hold the same pairs in the same order."""

import itertools

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.phases import Phase, count_pairs, find_phase
from align_jax.input.pipeline import TrainBatches
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.training_data import InputConfig, open_training
from align_jax.input.wordpiece import WordPiece
from tests import tiny
from tests.input.batches import LENGTHS, NumberReader, assert_equal, batches, numbers

SMALL, LARGE = PreprocessConfig(9, 8), PreprocessConfig(18, 16, random_background=True)
# 3 batches of 8 pairs, 2 of 24, then batches of 12. The dataset has 96 pairs, so its
# first epoch is batches 0 to 6, and each later one is 8 batches.
PHASES = (Phase(0, 8, SMALL), Phase(3, 24, LARGE), Phase(5, 12, LARGE))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_training(tmp_path_factory.mktemp("data") / "train", LENGTHS)


def read(directory, count, start=0, phases=PHASES, tokenizer=None, **place):
    config = InputConfig(
        {"tiny": DatasetConfig(directory)}, LARGE, streams=2, shuffle_window=8
    )
    host, hosts = place.get("host", 0), place.get("hosts", 1)
    data = open_training(config, phases, hosts)
    drawn = TrainBatches(
        data,
        tokenizer or NumberReader(),
        0,
        start_step=start,
        process_index=host,
        process_count=hosts,
    )
    found = list(itertools.islice(drawn, count))
    drawn.close()
    return found


@pytest.fixture(scope="module")
def whole(directory):
    return read(directory, 23)


def test_pairs_and_phases_of_a_step_are_those_counted_by_hand():
    found = [find_phase(PHASES, step) for step in (0, 2, 3, 4, 5, 99)]
    assert found == [0, 0, 1, 1, 2, 2]
    counted = [count_pairs(PHASES, steps) for steps in (0, 1, 3, 4, 7, 9)]
    assert counted == [0, 8, 24, 48, 96, 120]


def test_each_phase_has_its_sizes(whole):
    sizes = [batch["images"].shape for batch in whole]
    assert sizes[:3] == [(8, 8, 8, 3)] * 3
    assert sizes[3:5] == [(24, 16, 16, 3)] * 2
    assert sizes[5:] == [(12, 16, 16, 3)] * 18


def test_an_epoch_holds_each_pair_once_whatever_the_batches(whole):
    epochs = [numbers(whole[first : first + 8]) for first in (7, 15)]
    for epoch in [numbers(whole[:7]), *epochs]:
        assert sorted(epoch) == list(range(sum(LENGTHS)))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("start", [1, 2, 3, 4, 5, 6, 19])
def test_resuming_around_the_starts_gives_the_same_batches(directory, whole, start):
    assert_equal(read(directory, 4, start), whole[start : start + 4])


def test_hosts_share_the_batches_of_every_phase(directory, whole):
    parts = [read(directory, 9, host=host, hosts=2) for host in (0, 1)]
    joined = [
        {name: np.concatenate([p[name] for p in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole[:9])


def test_a_phase_of_the_same_sizes_changes_no_bit(directory):
    same = (Phase(0, 8, LARGE), Phase(2, 8, LARGE), Phase(5, 8, LARGE))
    alone = (Phase(0, 8, LARGE),)
    found = read(directory, 8, phases=same)
    assert_equal(found, read(directory, 8, phases=alone))
    assert numbers(found) == numbers(batches(directory, 8))


def test_texts_are_cut_to_the_length_of_the_phase(directory):
    tokenizer = WordPiece(tiny.WORDS, 6)
    phases = (Phase(0, 8, SMALL, 3), Phase(1, 8, SMALL, 6))
    short, long = read(directory, 2, phases=phases, tokenizer=tokenizer)
    assert (short["tokens"].shape, long["tokens"].shape) == ((8, 3), (8, 6))
    usual = read(directory, 1, phases=(Phase(0, 8, SMALL),), tokenizer=tokenizer)[0]
    first, end = tiny.WORDS.index("[CLS]"), tiny.WORDS.index("[SEP]")
    np.testing.assert_array_equal(short["tokens"][:, 1], usual["tokens"][:, 1])
    assert {*short["tokens"][:, 0]} == {first}
    assert {*short["tokens"][:, 2]} == {end}
    assert tokenizer.max_tokens == 6


def test_mixtures_and_repeats_count_pairs_and_not_steps(tmp_path):
    parts = {
        name: DatasetConfig(tiny.write_training(tmp_path / name, [48]))
        for name in ("a", "b")
    }
    weights = ((0, {"a": 1}), (4, {"b": 1}))  # from the second phase's second batch on
    config = InputConfig(parts, SMALL, weights=weights, streams=2, shuffle_window=8)
    phases = (Phase(0, 4, SMALL), Phase(3, 8, SMALL))
    data = open_training(config, phases, 1)
    drawn = TrainBatches(data, NumberReader(), 0)
    for step, name in ((3, "a"), (4, "b")):
        assert {pair["dataset"] for pair in drawn.describe(step)} == {name}
    drawn.close()
    large = (Phase(0, 4, SMALL), Phase(3, 128, SMALL))
    with pytest.raises(InputError, match="from step 3 on, 62% of a batch of 128 pairs"):
        open_training(config, large, 1)
    with pytest.raises(InputError, match="batch of 7 pairs from step 3 on does not"):
        open_training(config, (Phase(0, 4, SMALL), Phase(3, 7, SMALL)), 1)
