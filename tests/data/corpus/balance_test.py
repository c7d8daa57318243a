"""The balance of concepts beside a scan of every entry in plain Python."""

import dataclasses
import json
import random

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from configs import corpus_coyo, corpus_metaclip, corpus_paper
from data.corpus import balance, concepts
from data.corpus.builder import Build, build
from data.corpus.config import (
    BalanceConfig,
    CorpusConfig,
    EngineConfig,
    PictureConfig,
)
from data.corpus.ingest import normalise, shuffle_key
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from tests import tiny
from tests.data.corpus import balance_oracle
from tests.data.spark import SPARK

ENTRIES = [
    *("a", "b", "ab", "a b", "b a", "a b a", "A", "A b", "b  b", "a  b"),
    *(",", "a , b", "a ,", "a,b", "a.", "é", "É", "e\u0301", "🐎 a", "🐎"),
    *("a a", "a a a", "a\tb", "ß", "never", "*", "a*", "(a)", "[b", "\\1", "\u2028x"),
]
HOSTILE = [
    *("", " ", "a", "A", "ab", "a b", "a  b", "a\tb", "a\nb", "a\r\nb", "a,b", "a ,b"),
    *(
        "a, b",
        ",,",
        "a.b.a",
        "aa",
        "a a",
        "a a a a",
        "xa",
        "ax",
        "a-b",
        "(a) [b",
        "`a`",
    ),
    *(
        "É é",
        "e\u0301 é",
        "🐎 a🐎",
        "a\u00a0b",
        "a\u2028b",
        "\\1 a*",
        "?a!",
        "b;a:b",
        "b  b \u2028x",
    ),
]


def texts(count: int) -> list[str]:
    """Returns HOSTILE and random texts of the same parts, in which "a" is frequent."""
    drawn = random.Random(0)
    parts = ["a"] * 8 + ["b", "A", "ab", ",", ".", "  ", "\t", "é", "🐎", "x", "ß"]
    joined = [
        "".join(
            drawn.choice(parts) + drawn.choice([" ", " ", ""])
            for _ in range(drawn.randint(1, 6))
        )
        for _ in range(count)
    ]
    return HOSTILE + joined


def test_the_matcher_finds_what_a_scan_of_every_entry_finds():
    searched = texts(2000)
    matched = concepts.EntryMatcher(ENTRIES).match(pa.array(searched)).to_pylist()
    scanned = [balance_oracle.contained(text, ENTRIES) for text in searched]
    assert [[ENTRIES[i] for i in some] for some in matched] == scanned
    found = {entry for some in scanned for entry in some}
    assert set(ENTRIES) - found == {"a,b", "a.", "a\tb", "never", "*"}
    assert [] in scanned


@pytest.mark.parametrize("share", [0.01, 0.06, 0.3, 0.5, 0.9, 0.999])
def test_the_threshold_of_a_share_equals_plain_python(share):
    counts = np.random.default_rng(0).zipf(1.5, 300).clip(0, 5000) - 1
    expected = balance_oracle.threshold(counts.tolist(), share)
    assert concepts.choose_threshold(counts, share) == expected > 0


def test_the_threshold_of_no_matches_is_one():
    assert concepts.choose_threshold(np.zeros(3, np.int64), 0.5) == 1


def test_draws_are_uniform_and_differ_between_pairs_and_entries():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63, 20_000, np.int64)
    hashes = concepts.hash_entries(["one", "two"])
    kept = []
    for entry in (0, 1):
        matched = pa.array([[entry]] * len(keys), pa.list_(pa.int32()))
        kept.append(concepts.draw_pairs(keys, matched, hashes, np.array([0.3, 0.3])))
    assert np.mean(kept, 1) == pytest.approx(0.3, abs=0.015)
    assert np.mean(kept[0] & kept[1]) == pytest.approx(0.09, abs=0.01)


def test_entry_lists_are_lines_or_json(tmp_path):
    lines, listed = tmp_path / "entries.txt", tmp_path / "entries.json"
    lines.write_bytes("\ufeffred dog\r\n\r\n Dog\n\u2028x\nred dog\n".encode())
    assert concepts.read_entries(str(lines)) == ["red dog", "Dog", "\u2028x"]
    listed.write_text(json.dumps(["red dog", "a\nb", "red dog"]))
    assert concepts.read_entries(str(listed)) == ["red dog", "a\nb"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", r"a.txt \(config.balance.entries\) has no entries"),
        ("a.json", "[]", r"a.json \(config.balance.entries\) has no entries"),
        ("a.json", '{"a": 1}', r"a.json holds a dict; wanted a list of strings"),
        ("a.json", '["a", 7]', r"entry 1 of .*a.json is 7; wanted a text"),
        ("a.json", '["a", " "]', r"entry 1 of .*a.json is ' '; wanted a text"),
        ("a.json", '["\\ud800"]', r"entry 0 of .*a.json is '\\ud800'; wanted a text"),
        ("a.txt", None, r"a.txt"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        balance.check_balance(BalanceConfig(entries=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_refused():
    with pytest.raises(InputError, match=r"config.balance.column.*alt_text.*text"):
        read_config(BalanceConfig, {"column": "caption"})


T = 25


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw pairs, in which some pairs have two spellings, and an entry list."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "entries.json").write_text(json.dumps(ENTRIES + ENTRIES[:3]))
    rows = []
    for number, text in enumerate(texts(600)):
        for spelling in (text, text.upper())[: 1 + number % 2]:
            low = normalise(spelling, 1000)
            image = f"i{number % 350}"
            rows.append((image, spelling, low, shuffle_key(5, image, low)))
    names = ("image_id", "alt_text", "text", "key")
    columns = [list(c) for c in zip(*rows, strict=True)]
    return folder, pa.table(dict(zip(names, columns, strict=True)))


def stages_of(raw, folder, engine: EngineConfig, column: str = "alt_text") -> Build:
    """Opens a build whose raw pairs are already on disk, in three shards."""
    source, table = raw
    stages = folder / "stages"
    (stages / "pairs").mkdir(parents=True)
    for n in range(3):
        pq.write_table(
            table[n * 300 : (n + 1) * 300 if n < 2 else None],
            stages / "pairs" / f"{n}.parquet",
        )
    distinct = table.select(["image_id", "text", "key"]).group_by(
        ["image_id", "text", "key"]
    )
    pq.write_table(distinct.aggregate([]), stages / "distinct.parquet")
    config = CorpusConfig(
        name="toy",
        seed=5,
        ingest=SourceConfig("parquet", "none"),
        rules=RuleBounds(),
        vocabulary_size=100,
        balance=BalanceConfig(str(source / "entries.json"), T, column=column),
        engine=engine,
    )
    return Build(config, folder)


def balanced(build: Build) -> tuple[dict, dict]:
    """Balances all pairs but those of i0; returns the result as the oracle does."""
    pairs = build.table("distinct").filter(ibis._.image_id != "i0")
    kept = build.engine.execute(balance.balance_pairs(build, pairs))
    rows = pq.read_table(build.folder / "balance").to_pylist()
    results = {
        (row["image_id"], row["text"]): None
        if row["no_entry"]
        else not row["not_drawn"]
        for row in rows
    }
    assert len(results) == len(rows)
    names = sorted(zip(kept["image_id"], kept["text"], strict=True))
    assert names == sorted(name for name, stays in results.items() if stays)
    counts = pq.read_table(build.stage("entry_counts")).to_pylist()
    build.close()
    return results, {row["entry"]: (row["pairs"], row["kept"]) for row in counts}


def expected(raw, column: str = "alt_text") -> tuple[dict, dict]:
    pairs: dict[tuple, tuple[str, int]] = {}
    for row in raw[1].to_pylist():
        name, found = (row["image_id"], row["text"]), (row[column], row["key"])
        if row["image_id"] != "i0":
            pairs[name] = min(
                found, pairs.get(name, found), key=lambda f: f[0].encode()
            )
    return balance_oracle.balance(pairs, ENTRIES, T)


@pytest.mark.parametrize("column", ["alt_text", "text"])
def test_counts_and_rows_equal_plain_python(raw, tmp_path, column):
    stages = stages_of(raw, tmp_path, EngineConfig(workers=1), column)
    found, counts = balanced(stages)
    assert (found, counts) == expected(raw, column)
    assert {True, False, None} == set(found.values())
    above = [entry for entry, (before, _) in counts.items() if before > T]
    assert len(above) > 3
    assert all(0 < counts[e][1] < counts[e][0] for e in above if e != "a b")


@pytest.mark.parametrize(("parts", "workers"), [(1, 2), (2, 1), (7, 2)])
def test_parts_and_threads_do_not_change_the_rows(
    raw, tmp_path, monkeypatch, parts, workers
):
    stages = stages_of(raw, tmp_path, EngineConfig(workers=workers))
    total = pq.read_metadata(stages.stage("distinct")).num_rows
    monkeypatch.setattr(balance, "PART_PAIRS", -(-total // parts))
    assert balanced(stages) == expected(raw)
    assert len(list((stages.folder / "balance").iterdir())) == parts


@pytest.mark.spark
def test_spark_keeps_the_same_rows(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(balance, "PART_PAIRS", 200)
    assert balanced(stages_of(raw, tmp_path, SPARK)) == expected(raw)


@pytest.fixture
def config(tmp_path):
    """A corpus of sixteen pairs; 12 of them contain "side", two contain no entry."""
    names = [*tiny.NAMES[:12], *tiny.NAMES[:4]]
    words = ["side <b>"] * 12 + ["Side one", "back side two", "nothing", "else"]
    rows = [
        {"image": tiny.draw(name, 3), "alt_text": f"{name} {word} three {n}"}
        for n, (name, word) in enumerate(zip(names, words, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    (tmp_path / "entries.txt").write_text("side\nback side\n<b>\nnowhere\n")
    return CorpusConfig(
        name="tiny",
        seed=0,
        ingest=SourceConfig("parquet", str(tmp_path / "raw.parquet")),
        rules=RuleBounds(languages=(), min_shorter_side=8),
        vocabulary_size=300,
        engine=EngineConfig(workers=1),
        balance=BalanceConfig(str(tmp_path / "entries.txt"), pairs_per_entry=6),
        shards=1,
    )


def test_a_build_reports_its_balance_and_goes_on_after_a_kill(
    config, tmp_path, monkeypatch, capsys
):
    def killed(*args):
        raise KeyboardInterrupt

    folder = tmp_path / "corpus"
    with monkeypatch.context() as patched:
        patched.setattr(balance, "draw_pairs", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config, folder)
    matched = folder / "stages" / "matches" / "00000.parquet"
    assert pq.read_metadata(matched).num_rows == 16
    assert not (folder / "stages" / "balance" / "00000.parquet").exists()
    # The list is read once, so a build that goes on does not mix two lists.
    (tmp_path / "entries.txt").write_text("other\n")
    build(config, folder)
    assert not matched.exists()
    rows = pq.read_table(folder / "stages" / "balance").to_pylist()
    kept = [r for r in rows if not r["no_entry"] and not r["not_drawn"]]
    report = json.loads((folder / "report.json").read_text())
    (none, drawn) = report["rules"][-2:]
    assert none == {"rule": "no_entry", "breaks": 3, "first": 3}
    assert drawn["rule"] == "not_drawn"
    assert drawn["breaks"] == drawn["first"] == 13 - len(kept) > 0
    assert report["pairs_kept"] == len(kept)
    found = report["balance"]
    assert [(row["entry"], row["pairs"]) for row in found["top"]] == [
        ("side", 13),
        ("<b>", 12),
        ("back side", 1),
        ("nowhere", 0),
    ]
    kept_texts = [row["text"] for row in kept]
    assert found["top"][0]["kept"] == len(kept)
    assert any("back side" in text for text in kept_texts)
    assert (found["entries"], found["unmatched"], found["sampled"]) == (4, 1, 2)
    assert found["pairs_per_entry"] == 6
    line = "balance: 2 of 4 entries have more than 6 pairs, 1 none"
    assert line in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;</th>" in page
    assert "Pairs per concept" in page
    assert "the text contains no entry" in page
    assert "2 of 4 entries of the concept list" in page
    manifest = json.loads((folder / "records" / "manifest.json").read_text())
    assert manifest["config"]["balance"]["pairs_per_entry"] == 6


def test_a_share_of_the_tail_chooses_the_pairs_per_entry(config, tmp_path):
    shared = dataclasses.replace(config.balance, tail_share=0.4)
    build(dataclasses.replace(config, balance=shared), tmp_path / "corpus")
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    # The counts 1, 12 and 13 have the shares 1/26, 13/26 and 1.
    assert report["balance"]["pairs_per_entry"] == 12


def test_a_list_that_matches_nothing_ends_in_one_line(config, tmp_path):
    (tmp_path / "entries.txt").write_text("nowhere\n")
    with pytest.raises(InputError, match=r"no pair of 16 is left.*no_entry 16"):
        build(config, tmp_path / "corpus")


def test_the_published_configs_are_read():
    metaclip, coyo, paper = (
        read_config(CorpusConfig, module.get_config().to_dict())
        for module in (corpus_metaclip, corpus_coyo, corpus_paper)
    )
    assert paper.rules == RuleBounds()  # the defaults are the paper's
    pictures = PictureConfig(
        nsfw_model="open_nsfw", embedding_model="runs/quickstart", max_hash_distance=-1
    )
    assert paper.pictures == pictures
    assert paper.vocabulary_size == 100_000
    assert metaclip.balance.pairs_per_entry == 20_000
    assert metaclip.balance.entries.endswith("metadata.json")
    assert coyo.rules.max_images_per_text == 10
    assert not coyo.balance.entries
