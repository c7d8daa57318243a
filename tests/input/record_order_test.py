import itertools

import numpy as np
import pytest

from align_jax.input.record_order import (
    CYCLE,
    Mixture,
    epoch_order,
    pieces,
    stream_span,
)


def take(lengths, streams, stream, count, taken=0, key=(0,)):
    """Lists (epoch, shard, index) of a stream's records after its first `taken`."""
    rows = (
        (piece.epoch, piece.shard, piece.first + i)
        for piece in pieces(lengths, key, streams, stream, taken)
        for i in range(piece.records)
    )
    return list(itertools.islice(rows, count))


def sequence(lengths, streams, count, key=(0,)):
    """Lists the records at the first `count` positions; stream g mod S reads g."""
    each = -(-count // streams)
    columns = [take(lengths, streams, s, each, key=key) for s in range(streams)]
    return [columns[g % streams][g // streams] for g in range(count)]


@pytest.mark.parametrize("lengths", [[30, 20, 25, 21], [7], [1, 1, 1], [5, 40, 2]])
@pytest.mark.parametrize("streams", [1, 2, 4, 8, 16])
def test_every_epoch_of_places_holds_each_record_once(lengths, streams):
    everything = sorted(
        (shard, place) for shard, n in enumerate(lengths) for place in range(n)
    )
    total = sum(lengths)
    found = sequence(lengths, streams, 5 * total)
    for epoch in range(5):
        rows = found[epoch * total : (epoch + 1) * total]
        assert {row[0] for row in rows} == {epoch}
        assert sorted(row[1:] for row in rows) == everything


@pytest.mark.parametrize("taken", [1, 13, 24, 25, 100, 1_000_003])
def test_a_stream_goes_on_wherever_it_was_left(taken):
    lengths = [30, 20, 25, 21]
    for stream in range(4):
        whole = take(lengths, 4, stream, 40, taken)
        assert take(lengths, 4, stream, 30, taken + 10) == whole[10:]
    near = take(lengths, 4, 2, 150)
    assert take(lengths, 4, 2, 50, 100) == near[100:]


def test_spans_by_hand():
    # 7 records over 3 streams: positions 0 to 6 go to streams 0 1 2 0 1 2 0.
    spans = [stream_span(7, 3, stream, 0) for stream in range(3)]
    assert [*map(list, spans)] == [[0, 1, 2], [3, 4], [5, 6]]
    # The next epoch begins with stream 1.
    spans = [stream_span(7, 3, stream, 1) for stream in range(3)]
    assert [*map(list, spans)] == [[0, 1], [2, 3, 4], [5, 6]]


def test_seeds_datasets_and_epochs_have_orders_of_their_own():
    orders = [
        tuple(epoch_order([2] * 20, key, epoch)[0])
        for key in ((0, 5), (1, 5), (0, 6))
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("lengths", [[4, 3, 5], [12], [1, 11]])
def test_every_record_is_as_likely_at_every_place(lengths):
    firsts, counts = np.cumsum([0, *lengths]), np.zeros((12, 12))
    for i, (_, shard, place) in enumerate(sequence(lengths, 2, 12 * 600)):
        counts[firsts[shard] + place, i % 12] += 1
    for record in counts:
        chi_square = ((record - 50) ** 2 / 50).sum()
        assert chi_square < 31.3  # 11 degrees of freedom: one in a thousand is above


@pytest.fixture
def mixture():
    return Mixture.of_weights([(0, (3, 1, 0)), (2080, (1, 0, 1)), (3200, (0, 0, 1))])


def test_shares_are_exact_in_every_cycle(mixture):
    assert [shares for _, shares in mixture.phases] == [
        (750, 250, 0),
        (500, 0, 500),
        (0, 0, CYCLE),
    ]
    thirds = Mixture.of_weights([(0, (1, 1, 1))]).phases[0][1]
    assert sorted(thirds) == [333, 333, 334]
    assert list(mixture.drawn(0, 3, 2000)) == [1500, 500, 0]


@pytest.mark.parametrize("start", [0, 1, 999, 1000, 2079, 2080, 2081, 3200, 5000])
def test_counts_are_those_of_the_draws(mixture, start):
    whole = list(itertools.islice(mixture.draws(7, 2, 0), start + 300))
    rest = list(itertools.islice(mixture.draws(7, 2, start), 300))
    assert rest == whole[start:]
    counted = np.bincount(np.array(whole[:start], int), minlength=3)
    assert list(mixture.drawn(7, 2, start)) == list(counted)


def test_streams_and_seeds_draw_in_orders_of_their_own(mixture):
    draws = [
        tuple(itertools.islice(mixture.draws(*key, 0), 50))
        for key in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(draws)) == 3
