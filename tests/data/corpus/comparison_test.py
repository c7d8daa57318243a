import collections
import html
import re
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import run_command
from data import compare
from data.corpus import comparison
from data.corpus.config import EngineConfig
from data.corpus.engines import DuckDB
from data.corpus.page import printable
from tests import tiny
from tests.data.curation import pools

# Pictures and texts of two corpora; they share two pairs and, beside these, a text.
FIRST = [(0, "a red thing"), (1, "a red <b>"), (1, "one more thing"), (2, "a dot")]
SECOND = [(0, "a red thing"), (1, "a red <b>"), (3, "a dot"), (4, "blue blue sky sky")]
PHASHES = [7, 8, 9, 9, 5]  # pictures 2 and 3 look alike


def write_corpus(folder, pairs, scores=None):
    stages = folder / "stages"
    (stages / "images").mkdir(parents=True)
    keys = [hash((image, len(text))) for image, text in pairs]
    kept = {"image_id": [f"i{n}" for n, _ in pairs], "text": [t for _, t in pairs]}
    pq.write_table(pa.table(kept | {"key": keys}), stages / "kept.parquet")
    names = [f"i{n}" for n in range(5)]
    pictures = {
        "image_id": names,
        "width": pa.array([12] * 5, pa.int32()),
        "height": pa.array([16] * 5, pa.int32()),
        "format": ["PNG"] * 5,
        "phash": pa.array(PHASHES, pa.int64()),
        "error": pa.nulls(5, pa.string()),
    }
    files = [tiny.draw(name, 3) for name in tiny.NAMES[:5]]
    pq.write_table(pa.table(pictures), stages / "pictures.parquet")
    images = pa.table({"image_id": names, "image": files})
    pq.write_table(images, stages / "images" / "00000.parquet")
    if scores:
        (stages / "scores").mkdir()
        table = {"image_id": names, "cosine": scores, "nsfw": pa.nulls(5, pa.float32())}
        pq.write_table(pa.table(table), stages / "scores" / "00000.parquet")


@pytest.fixture
def corpora(tmp_path):
    write_corpus(tmp_path / "one", FIRST, [0.1, 0.2, 0.3, 0.4, 0.5])
    write_corpus(tmp_path / "other", SECOND, [0.1, 0.2, 0.3, 0.4, 0.5])
    return tmp_path / "one", tmp_path / "other"


def test_overlaps_and_words_equal_plain_python(corpora, tmp_path):
    engine = DuckDB(EngineConfig(workers=1), tmp_path / "spill")
    tables = [comparison.open_corpus(engine, folder) for folder in corpora]
    report = comparison.compare_corpora(*tables, engine.execute)
    engine.close()

    rows = {
        "pairs": [set(FIRST), set(SECOND)],
        "pictures by file": [{n for n, _ in side} for side in (FIRST, SECOND)],
        "pictures by perceptual hash": [
            {PHASHES[n] for n, _ in side} for side in (FIRST, SECOND)
        ],
        "texts": [{t for _, t in side} for side in (FIRST, SECOND)],
    }
    assert report["overlaps"] == [
        {"rows": name, "first": len(a), "second": len(b), "both": len(a & b)}
        for name, (a, b) in rows.items()
    ]
    counts = [
        collections.Counter(word for _, text in side for word in text.split())
        for side in (FIRST, SECOND)
    ]
    totals = [count.total() for count in counts]
    both = counts[0].keys() & counts[1].keys()
    words = report["words"]
    assert [words[n] for n in ("first", "second", "both")] == [
        *map(len, counts),
        len(both),
    ]
    millions = {
        word: [1e6 * n[word] / total for n, total in zip(counts, totals, strict=True)]
        for word in counts[0] | counts[1]
    }
    change = {word: other - one for word, (one, other) in millions.items()}
    gained = sorted((-d, word) for word, d in change.items() if d > 0)
    lost = sorted((d, word) for word, d in change.items() if d < 0)
    assert [row["word"] for row in words["gained"]] == [word for _, word in gained]
    assert [row["word"] for row in words["lost"]] == [word for _, word in lost]
    for row in words["gained"] + words["lost"]:
        assert [row["first"], row["second"]] == pytest.approx(millions[row["word"]])


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return run_command("data.compare", compare.main)


def test_the_command_prints_the_counts_and_writes_a_page(
    corpora, tmp_path, monkeypatch, capsys
):
    page_path = tmp_path / "page.html"
    assert run(monkeypatch, *corpora, "--out", page_path) == 0
    printed = capsys.readouterr().out
    assert re.search(r"pairs +4 +4 +2\n", printed)
    assert "words gained: blue, sky" in printed
    page = page_path.read_text()
    assert "<b>" not in page
    assert "a red &lt;b&gt;" in page
    only_first, only_second, both = page.split('id="samples"')[1].split("<h3>")[1:]
    assert "one more thing" in only_first
    assert "blue blue sky sky" in only_second
    assert (only_first + only_second).count("data:image/jpeg") == 4
    assert both.count("data:image/jpeg") == 2
    assert "Score cosine" in page
    assert "Score nsfw" not in page
    assert page.count("<svg") == 3


def test_corpora_without_shared_pairs_or_scores_have_a_page(
    tmp_path, monkeypatch, capsys
):
    write_corpus(tmp_path / "a" / "corpus", FIRST[:1])
    write_corpus(tmp_path / "b" / "corpus", SECOND[3:], [0.5] * 5)
    folders = (tmp_path / "a" / "corpus", tmp_path / "b" / "corpus")
    assert run(monkeypatch, *folders, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert f"Only in {folders[1]}" in page
    assert "<h3>In both</h3>\n<p" in page
    assert page.count("<svg") == 2


def test_a_folder_that_is_no_corpus_is_refused(corpora, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, corpora[0], tmp_path, "--out", tmp_path / "p.html") != 0
    assert f"{tmp_path} lacks stages/kept.parquet; wanted" in capsys.readouterr().err
    assert run(monkeypatch, corpora[0], corpora[0], "--out", tmp_path / "p") != 0
    assert "is compared with itself" in capsys.readouterr().err
    for damaged in ("kept.parquet", "images/00000.parquet"):
        shutil.copytree(corpora[1], tmp_path / "cut", dirs_exist_ok=True)
        path = tmp_path / "cut" / "stages" / damaged
        path.write_bytes(path.read_bytes()[:10])
        assert run(monkeypatch, corpora[0], tmp_path / "cut") != 0
        printed = capsys.readouterr().err
        assert re.search(r"compare: .*cut/stages/.* cannot be read: .*\n", printed)
        assert "LINE" not in printed
    renamed = corpora[1].rename(tmp_path / "b\\c")
    assert run(monkeypatch, corpora[0], renamed, "--out", tmp_path / "p.html") != 0
    assert "it takes a backslash for a slash" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def in_both(first, second, *columns):
    """Returns the numbers of distinct rows of each and of both, in plain Python."""
    one, other = (
        {tuple(row[column] for column in columns) for row in rows}
        for rows in (first, second)
    )
    return rf"{len(one)} +{len(other)} +{len(one & other)}\n"


def test_a_pool_is_compared_with_a_subset_of_it(tmp_path, monkeypatch, capsys):
    made = pools.make_pool(tmp_path, 200)
    kept = [row for n, row in enumerate(made.rows) if n % 3 == 0 and row["text"]]
    (tmp_path / "kept").mkdir()
    columns = [{k: v for k, v in row.items() if k != "l14_img"} for row in kept]
    pq.write_table(pa.Table.from_pylist(columns), tmp_path / "kept" / "a.parquet")
    page_path = tmp_path / "page.html"
    paths = (made.folder, tmp_path / "kept")
    assert run(monkeypatch, *paths, "--out", page_path) == 0
    printed = capsys.readouterr().out
    for name, columns in (
        ("rows by uid", ["uid"]),
        ("rows by address and text", ["url", "text"]),
        ("texts", ["text"]),
    ):
        assert re.search(f"{name} +{in_both(made.rows, kept, *columns)}", printed)
    page = page_path.read_text()
    for column in (pools.L14, pools.B32):
        assert f"Score {column}" in page
    only_pool, only_kept, both = page.split('id="samples"')[1].split("<h3>")[1:]
    assert "None." in only_kept
    assert only_pool.count("<li>") == both.count("<li>") == comparison.SHOWN_PAIRS
    lowest = min(row["uid"] for row in kept)
    text = next(row["text"] for row in kept if row["uid"] == lowest)
    assert html.escape(printable(text)) in both


def test_a_corpus_is_compared_with_a_pool_by_addresses_and_texts(
    tmp_path, monkeypatch, capsys
):
    made = pools.make_pool(tmp_path, 60, tables=1)
    rows = [row for row in made.rows if row["text"].strip()][:10]
    write_corpus(tmp_path / "one", FIRST)
    stages = tmp_path / "one" / "stages"
    normal = [{"image_id": f"i{n % 5}", "text": f"text {n}"} for n in range(10)]
    keyed = [row | {"key": n} for n, row in enumerate(normal)]
    pq.write_table(pa.Table.from_pylist(keyed), stages / "kept.parquet")
    raw = [
        pair | {"url": row["url"] if n < 7 else "else", "alt_text": row["text"]}
        for n, (pair, row) in enumerate(zip(normal, rows, strict=True))
    ]
    (stages / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(raw * 2), stages / "pairs" / "0.parquet")
    source = [{"url": row["url"], "text": row["alt_text"]} for row in raw]
    paths = (tmp_path / "one", made.folder / "*.parquet")
    assert run(monkeypatch, *paths, "--out", tmp_path / "page.html") == 0
    printed = capsys.readouterr().out
    for name, columns in (
        ("rows by address and text", ["url", "text"]),
        ("texts", ["text"]),
    ):
        assert re.search(f"{name} +{in_both(source, made.rows, *columns)}", printed)
    assert "by uid" not in printed
    page = (tmp_path / "page.html").read_text()
    both = page.split('id="samples"')[1].split("<h3>")[3]
    assert both.count("data:image/jpeg") == 7


def test_pools_without_a_column_or_files_are_refused(tmp_path, monkeypatch, capsys):
    made = pools.make_pool(tmp_path, 9, tables=1)
    pq.write_table(pa.table({"uid": ["x"]}), tmp_path / "bad.parquet")
    assert run(monkeypatch, made.folder, tmp_path / "bad.parquet") == 2
    assert "bad.parquet lacks the columns ['url', 'text'," in capsys.readouterr().err
    assert run(monkeypatch, made.folder, tmp_path / "none") == 2
    assert "no files at" in capsys.readouterr().err


def write_pool(path, **columns):
    rows = range(4)
    plain = {
        "uid": [f"u{n}" for n in rows],
        "url": [f"http://x/{n}" for n in rows],
        "text": [f"a red thing {n}" for n in rows],
        "original_width": [12] * 4,
        "original_height": [16] * 4,
        "score": [0.1 * n for n in rows],
    }
    path.parent.mkdir(exist_ok=True)
    kept = {n: v for n, v in (plain | columns).items() if v is not None}
    pq.write_table(pa.table(kept), path)
    return path


def test_odd_columns_of_pools_are_compared(tmp_path, monkeypatch, capsys):
    """Nulls, dictionaries, NaN, and scores that not all files of a pool have."""
    texts = pa.array([f"a red thing {n}" for n in range(3)] + [None])
    nan = float("nan")
    odd = tmp_path / "a=1 %[b]"
    write_pool(
        odd / "0.parquet",
        text=texts.dictionary_encode(),
        uid=pa.array(["u0", "u1", None, "u1"], pa.large_string()),
        original_width=[12.0, nan, float("inf"), None],
        score=[0.1, nan, float("inf"), None],
        image_id=[0.5] * 4,
    )
    write_pool(
        odd / "1.parquet", text=pa.nulls(4), original_width=[1.0] * 4, score=None
    )
    plain = write_pool(tmp_path / "plain.parquet")
    out = tmp_path / "page.html"
    for paths in ((odd, plain), (plain, odd)):
        assert run(monkeypatch, *paths, "--out", out) == 0
        printed = capsys.readouterr().out
        assert re.search(r"rows by uid +4 +4 +4\n", printed)
        assert re.search(r"\ntexts +4 +4 +3\n", printed)
    assert "Score" not in out.read_text()  # no score is in all files of both


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [["a"]] * 4}, "column 'text' of .* is list.*; wanted texts"),
        ({"url": [b"a"] * 4}, "column 'url' of .* is binary; wanted texts"),
        ({"uid": [[1]] * 4}, "column 'uid' of .*; wanted texts or whole numbers"),
        ({"original_width": ["a"] * 4}, "'original_width' of .*; wanted numbers"),
        (
            {"original_height": pa.array([2**64 - 1] * 4, pa.uint64())},
            "a table cannot be read: Conversion Error: ",
        ),
    ],
)
def test_columns_of_other_types_are_refused_in_one_line(
    tmp_path, monkeypatch, capsys, columns, message
):
    plain = write_pool(tmp_path / "plain.parquet")
    odd = write_pool(tmp_path / "odd.parquet", **columns)
    assert run(monkeypatch, plain, odd, "--out", tmp_path / "page.html") == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed)
    assert printed.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_damage_inside_a_pool_is_one_line(tmp_path, monkeypatch, capsys):
    plain = write_pool(tmp_path / "plain.parquet")
    cut = tmp_path / "cut.parquet"
    content = plain.read_bytes()
    cut.write_bytes(content[:4] + bytes(200) + content[204:])
    assert run(monkeypatch, plain, cut, "--out", tmp_path / "page.html") == 2
    printed = capsys.readouterr().err
    assert "a table cannot be read: " in printed
    assert printed.count("\n") == 1
