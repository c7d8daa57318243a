import argparse

from benchmarks import corpus, corpus_growth
from benchmarks.corpus_rows import generate
from benchmarks.corpus_rules import IMPLEMENTATIONS
from data.corpus import ngram_counts


def flags_of(pairs):
    return argparse.Namespace(
        threads=2, memory_limit="1GB", frequent_ngrams=pairs * 6 // 10
    )


def test_implementations_keep_the_same_rows(tmp_path):
    generate(tmp_path / "rows", 3000, 0)
    results = {}
    for name in ("ours", "sql", "oracle"):
        run = IMPLEMENTATIONS[name]
        rules = run(tmp_path / "rows", tmp_path / name, flags_of(3000))
        results[name] = {"rules": rules}
    corpus.check_same(results, tmp_path)


def test_growth_counts_every_stage(tmp_path, monkeypatch):
    runs = []
    for pairs in (500, 1000):
        rows, out = tmp_path / f"rows_{pairs}", tmp_path / f"out_{pairs}"
        generate(rows, pairs, 0)
        out.mkdir()
        run = corpus_growth.run_child(rows, out, flags_of(pairs))
        runs.append(run | {"pairs": pairs})
        monkeypatch.setattr(ngram_counts, "NGRAM_BYTES", 1e6)  # the next run has parts
    assert 0 < runs[0]["ngrams"] < runs[1]["ngrams"]
    stages = ["pictures", "distinct", "texts", "ngrams", "rare_texts", "flags", "kept"]
    for run in runs:
        assert [*run["stages"]] == stages
        assert all(taken["bytes"] > 0 for taken in run["stages"].values())
    lines = corpus_growth.format_runs(runs).splitlines()
    assert len(lines) == 2 + 2 * len(stages) + 1 + 2 + 2
    assert lines[-1].startswith("| 1,000 |")
