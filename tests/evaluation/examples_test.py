import numpy as np

from align_jax.evaluation import examples
from align_jax.evaluation.examples import (
    Item,
    Side,
    choose_queries,
    make_examples,
    show_each,
    spread,
)


def numbered(embeddings):
    return Side(np.float32(embeddings), show_each(lambda row: Item(f"item {row}")))


def test_a_right_answer_below_the_shown_ones_is_named_with_its_rank():
    queries, candidates = numbered([[1]]), numbered(np.arange(9)[:, None])
    (example,) = make_examples(queries, candidates, np.array([[0, 2]]), np.array([6]))
    texts = [answer.item.text for answer in example.answers]
    assert texts == [f"item {i}" for i in (8, 7, 6, 5, 4)]
    assert not any(answer.right for answer in example.answers)
    assert (example.rank, example.right.text) == (7, "item 2")


def test_a_wrong_answer_comes_before_a_right_one_of_its_score():
    queries, candidates = numbered([[1]]), numbered([[3], [3], [0]])
    pairs = np.array([[0, 0], [0, 2]])
    (example,) = make_examples(queries, candidates, pairs, np.array([1]))
    assert [a.item.text for a in example.answers] == ["item 1", "item 0", "item 2"]
    assert [a.right for a in example.answers] == [False, True, True]


def test_the_query_itself_is_no_answer_where_it_is_excluded():
    side = numbered([[1, 0], [0, 1], [0.8, 0.6]])
    pairs, ranks = np.array([[0, 2], [2, 0]]), np.array([0, -1, 0])
    found = [*make_examples(side, side, pairs, ranks, exclude_itself=True)]
    assert [example.query.text for example in found] == ["item 0", "item 2"]
    assert [example.answers[0].item.text for example in found] == ["item 2", "item 0"]


def test_shown_queries_are_spread_over_the_flagged_ones():
    assert spread(np.arange(9) % 2 == 0, 3) == [0, 4, 8]
    assert spread(np.array([False, True, True]), 9) == [1, 2]


def test_of_the_other_queries_the_worst_and_the_best_are_shown(monkeypatch):
    monkeypatch.setattr(examples, "EVENLY", 4)
    monkeypatch.setattr(examples, "ENDS", 2)
    flags = np.arange(12) != 3
    ranks = np.array([0, 9, 4, 99, 0, 3, 2, 8, 1, 7, 6, 5])
    chosen = choose_queries(flags, ranks)
    assert [query for kind, query in chosen if "evenly" in kind] == [0, 4, 8, 11]
    assert [query for kind, query in chosen if "worst" in kind] == [1, 7]
    assert [query for kind, query in chosen if "best" in kind] == [6, 5]
