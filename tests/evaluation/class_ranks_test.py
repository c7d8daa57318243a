"""Ranks of classes, some of which are equal."""

import numpy as np
import pytest

from align_jax.evaluation.class_ranks import class_ranks, first_equals
from align_jax.evaluation.evaluators.prompts import read_prompts
from align_jax.evaluation.examples import Item, Side, make_examples, show_each
from align_jax.evaluation.scores import mean_per_class, recall_at

LABELS = np.repeat(np.arange(1000), 10)  # those of ImageNet-V2


def name_embeddings():
    """Returns (1000, 64) unit embeddings of ImageNet's names, equal for equal names."""
    names = read_prompts("imagenet", None).classes
    rows = [names.index(name) for name in names]
    assert sorted(set(np.arange(1000)) - set(rows)) == [744, 837]
    vectors = np.random.default_rng(0).normal(size=(1000, 64))[rows]
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_perfect_model_loses_what_argmax_loses(mesh_of, devices):
    classes = name_embeddings()
    images = classes[LABELS]
    ranks = class_ranks(images, classes, LABELS, mesh_of(devices))
    by_argmax = (images.astype(np.float64) @ classes.T).argmax(1) == LABELS
    assert recall_at(ranks, 1) == by_argmax.mean() == 0.998
    assert mean_per_class(ranks == 0, LABELS) == pytest.approx(0.998)
    assert recall_at(ranks, 2) == 1.0
    assert {*LABELS[ranks > 0].tolist()} == {744, 837}


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_constant_model_scores_as_chance(mesh_of, rounding):
    random = np.random.default_rng(0)
    vector = random.normal(size=64)
    rows = vector / np.linalg.norm(vector) + rounding * random.normal(size=(1000, 64))
    classes = np.float32(rows)
    images = name_embeddings()[LABELS]
    for pictures in (images, np.repeat(classes[:1], len(LABELS), 0)):
        ranks = class_ranks(pictures, classes, LABELS, mesh_of(3))
        assert (ranks == LABELS).all()
        assert recall_at(ranks, 1) == 1 / 1000
        assert recall_at(ranks, 5) == 5 / 1000
        assert mean_per_class(ranks == 0, LABELS) == pytest.approx(1 / 1000)
    # Constant pictures, but classes that differ: one class gets all.
    ranks = class_ranks(
        np.repeat(classes[:1], 10**4, 0), name_embeddings(), LABELS, mesh_of(3)
    )
    assert recall_at(ranks, 1) <= 1 / 1000


def test_ties_of_other_classes_count_against_the_model(mesh_of):
    classes = np.float32([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    images = np.float32([[1, 0]] * 5 + [[0.6, 0.8]] * 5 + [[0.5**0.5] * 2] * 5)
    ranks = class_ranks(images, classes, np.tile(np.arange(5), 3), mesh_of(2))
    assert ranks[:5].tolist() == [0, 3, 1, 4, 2]
    assert ranks[5:10].tolist() == [2, 0, 3, 1, 4]
    assert ranks[10:].tolist() == [2, 3, 3, 4, 4]


def test_equal_rows_are_those_whose_cosines_are_always_ties(monkeypatch):
    monkeypatch.setattr("align_jax.evaluation.class_ranks.ROWS", 2)
    rows = np.float32([[1, 0], [1, 1e-4], [1, 1e-6], [0, 1], [1e-6, 1]])
    assert first_equals(rows).tolist() == [0, 1, 0, 3, 3]


def test_examples_list_equal_classes_in_their_order():
    classes = np.float32([[1, 0], [0, 1], [1, 0]])
    first, truth = first_equals(classes), np.array([0, 2, 1])
    images = classes[truth]
    shown = make_examples(
        Side(images, show_each(lambda row: Item(f"picture {row}"))),
        Side(classes, show_each(lambda k: Item(f"class {k}"))),
        np.stack([np.arange(3), truth], 1),
        np.array([0, 1, 0]),
        first=first,
    )
    for example, right in zip(shown, (0, 1, 0), strict=True):
        assert [answer.right for answer in example.answers].index(True) == right
        assert example.rank == right + 1
