import ibis
import numpy as np
import pyarrow as pa
import pytest

from data.corpus import ngrams, rules
from data.corpus.rules import RuleBounds
from tests.data.corpus import corpus_oracle

ENGINE = ibis.duckdb.connect()


def decide(pairs, sizes=None, evaluation=(), **bounds):
    """Returns the names of the rules that each (image, text[, language]) breaks."""
    rows = [(*pair, "en")[:3] for pair in pairs]
    names = ("image_id", "text", "language")
    table = ibis.memtable(
        pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    )
    images = {
        image: (*(sizes or {}).get(image, (300, 300, None)), None)[:3]
        for image, *_ in rows
    }
    image_rows = [
        {"image_id": i, "width": w, "height": h, "error": e}
        for i, (w, h, e) in images.items()
    ]
    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("error", pa.string()),
        ]
    )
    image_table = ibis.memtable(pa.Table.from_pylist(image_rows, schema))
    bounds = RuleBounds(**bounds)
    texts = ngrams.count_texts(table)
    counted = ibis.memtable(
        ENGINE.execute(ngrams.count_ngrams(ngrams.list_ngrams(texts, "pairs")))
    )
    cut = ENGINE.execute(ngrams.vocabulary_cut(counted, bounds.frequent_ngrams))
    rare = ngrams.find_rare_texts(texts, counted, int(cut))
    evaluated = pa.table({"image_id": pa.array(list(evaluation), pa.string())})
    flagged = rules.flag_pairs(
        pairs=table,
        pictures=image_table,
        texts=texts,
        rare_texts=rare,
        evaluation_images=ibis.memtable(evaluated),
        bounds=bounds,
    )
    found = ENGINE.execute(flagged)
    names = [n for n in found.columns if n not in ("image_id", "text", "language")]
    return {
        (row.image_id, row.text): {name for name in names if getattr(row, name)}
        for row in found.itertuples()
    }


@pytest.mark.parametrize(
    ("size", "broken"),
    [
        ((200, 250), {"shorter_side"}),
        ((201, 250), set()),
        ((250, 200), {"shorter_side"}),
        ((300, 900), {"aspect_ratio"}),
        ((300, 899), set()),
        ((903, 301), {"aspect_ratio"}),
        ((0, 0, "bad"), {"undecodable", "shorter_side", "aspect_ratio"}),
        ((None, None), {"no_image"}),
    ],
)
def test_sizes_at_their_bounds(size, broken):
    assert decide([("a", "one two three")], {"a": size}) == {
        ("a", "one two three"): broken
    }


@pytest.mark.parametrize(
    ("count", "broken"),
    [(2, {"too_short"}), (3, set()), (20, set()), (21, {"too_long"})],
)
def test_lengths_at_their_bounds(count, broken):
    text = " ".join(f"w{i}" for i in range(count))
    assert decide([("a", text)])[("a", text)] == broken


def test_an_empty_text_is_too_short_whatever_the_bound():
    assert decide([("a", "")], min_unigrams=0)[("a", "")] == {"too_short"}


@pytest.mark.parametrize(("count", "breaks"), [(10, False), (11, True)])
def test_a_text_shared_by_more_than_ten_images(count, breaks):
    pairs = [(f"i{n}", "one two three") for n in range(count)]
    assert all(
        ("images_per_text" in broken) == breaks for broken in decide(pairs).values()
    )


@pytest.mark.parametrize(("count", "breaks"), [(1000, False), (1001, True)])
def test_an_image_with_more_than_a_thousand_texts(count, breaks):
    pairs = [("a", f"one two w{n}") for n in range(count)]
    assert all(
        ("texts_per_image" in broken) == breaks for broken in decide(pairs).values()
    )


def test_languages_and_evaluation_images():
    pairs = [("a", "one two three"), ("b", "eins zwei drei", "de")]
    broken = decide(pairs, evaluation=["a", "a"])
    assert broken[("a", "one two three")] == {"evaluation_image"}
    assert broken[("b", "eins zwei drei")] == {"other_language"}
    assert decide(pairs, languages=())[("b", "eins zwei drei")] == set()


def test_the_vocabulary_cut_keeps_or_drops_ties_together():
    counts = {"a": 5, "b": 3, "c": 3, "d": 2, "e": 1}
    table = ibis.memtable(
        pa.table({"ngram": list(counts), "count": list(counts.values())})
    )
    cut = lambda k: ENGINE.execute(ngrams.vocabulary_cut(table, k))  # noqa: E731
    assert [int(cut(k)) for k in (1, 2, 3, 4, 5, 99)] == [5, 5, 3, 2, 1, 1]
    assert cut(0) is None


def test_rare_ngrams_equal_a_plain_python_oracle():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    pairs = list(
        {
            (f"i{n}", " ".join(rng.choice(words, rng.integers(1, 6), p=ZIPF)))
            for n in range(400)
        }
    )
    broken = decide(pairs, frequent_ngrams=60)
    found = {pair for pair, names in broken.items() if "rare_ngram" in names}
    expected = corpus_oracle.decide(
        [(*pair, "en") for pair in pairs], {}, RuleBounds(frequent_ngrams=60)
    )
    assert found == {k[:2] for k, names in expected.items() if "rare_ngram" in names}
    assert 0 < len(found) < len(pairs)


ZIPF = 1.0 / np.arange(1, 31)
ZIPF /= ZIPF.sum()
