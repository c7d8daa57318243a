"""The page of many runs: numbers in tables, and files that are written."""

import re
from pathlib import Path

from align_jax.report import summary as report
from align_jax.report.found_runs import find_runs
from align_jax.runs.results import PUBLISHED, main_scores
from configs import quickstart
from tests.report.run_page_test import Page, cells
from tests.report.written_runs import write_run


def test_a_score_stands_for_each_evaluator():
    results = {
        "step": 3,
        "eval/coco/i2t_recall@1": 0.5,
        "eval/coco/mean_recall": 0.25,
        "eval/imagenet/top1": 0.125,
        "eval/imagenet/top5": 0.5,
        "eval/neighbours/recall@1": 0.75,
        "eval/simlex/all_spearman": 0.375,
        "eval/vtab_all/mean": 0.625,
        "eval/vtab_all/std": 0.1,
        "eval/new/queries": 9,
        "eval/new/margin": -0.5,
    }
    assert main_scores(results) == {
        "coco/mean_recall": 0.25,
        "imagenet/top1": 0.125,
        "neighbours/recall@1": 0.75,
        "simlex/all_spearman": 0.375,
        "vtab_all/mean": 0.625,
        "new/margin": -0.5,
    }


def test_our_numbers_stand_beside_the_paper_s(root):
    tables = {t.title[:8]: t for t in report.paper_tables(find_runs([str(root)]))}
    assert [*tables["Table 6:"].head] == ["measure", "ALIGN", "vtab"]
    assert tables["Table 6:"].rows[0] == ["vtab_all/mean", "79.99 [1]", "68.75"]
    assert tables["Table 6:"].rows[1] == ["vtab_natural/mean", "83.38 [1]", "–"]
    assert "Means of three seeds" in tables["Table 6:"].remarks[0]
    assert tables["Table 8:"].head[1] == "coco/i2t_recall@1, paper [1, 2]"
    assert len(tables["Table 8:"].remarks) == 2
    rows = {row[0]: row[1:] for row in tables["Table 8:"].rows}
    assert rows["embedding_320"] == ["50.3", "50.0", "34.1", "25.0", "64.0", "12.5"]
    assert rows["embedding_80"] == ["42.0", "–", "29.3", "–", "61.9", "–"]  # unfinished
    assert rows["baseline"] == ["51.7", "–", "37.5", "–", "64.6", "–"]
    appendix = tables["Appendix"]
    assert appendix.head == ["measure", "ALIGN", "baseline-0123abcd"]
    assert appendix.rows[0] == ["simlex/all_spearman", "39.8", "37.5"]
    assert tables["Table 5:"].head == ["measure", "ALIGN", "ours"]
    assert {row[-1] for row in tables["Table 5:"].rows} == {"–"}


def test_every_measure_of_a_table_is_published():
    measured = {
        m for t in PUBLISHED["tables"] if "runs" not in t for m in t["measures"]
    }
    assert measured <= {*PUBLISHED["measures"]}
    zero_shot = {
        "imagenet/single_prompt_top1",
        "food101/top1",
        "pets/top1",
        "cars/top1",
    }
    assert {*PUBLISHED["measures"]} - measured == zero_shot | {
        "flickr30k/mean_recall",
        "neighbours/recall@1",
    }
    for table in PUBLISHED["tables"]:
        for values in table.get("runs", {}).values():
            assert len(values) == len(table["measures"])


def test_the_summary_says_where_the_time_of_a_run_went(root):
    assert report.times_table(find_runs([str(root)])).rows == []
    metrics = {"productive_seconds": 750.0, "lost_away_seconds": 250.0}
    fields = quickstart.get_config().to_dict()
    for name in ("a", "b"):
        folder = root / "timed" / name
        write_run(folder, fields, {}, wall_seconds=1000.0, **metrics)
    table = report.times_table(find_runs([str(root)]))
    assert [row[:3] for row in table.rows] == [[n, "75.0", "0.0"] for n in "ab"]
    assert table.head[0:2] + table.head[-1:] == [
        "run",
        "steps that were kept",
        "no process, after the last metrics of a start",
    ]
    assert {row[-1] for row in table.rows} == {"25.0"}
    paths = report.write_summary(find_runs([str(root)]), str(root / "out"))
    page, markdown = (Path(path).read_text(encoding="utf-8") for path in paths)
    assert table.rows[0] in cells(Page(page))
    assert "| a | 75.0 | 0.0 |" in markdown


def test_the_page_and_the_markdown_hold_all_runs(root):
    paths = report.write_summary(find_runs([str(root)]), str(root / "out"))
    page, markdown = (Path(path).read_text(encoding="utf-8") for path in paths)
    found = Page(page)
    overview = {row[0]: row for row in cells(found)}
    names = ["baseline-0123abcd", "embedding_320-4567cdef", "third-89abcdef", "vtab"]
    for name in names:
        assert name in overview
        assert f"| {name} |" in markdown
    assert "model.embedding_size = 320" in overview["embedding_320-4567cdef"]
    assert overview["third-89abcdef"][1] == "step 20"
    remark = "[1] Means of three seeds"
    assert f"\n\n{remark}" in markdown
    assert any(e["text"].startswith(remark) for e in found.all("p"))
    links = [element["href"] for element in found.all("a")]
    assert links[0] == "../sweep/baseline-0123abcd/report.html"
    assert len(links) == 5
    assert ["git revision", "0123abc"] in cells(found)
    assert not found.all("script")
    assert not re.search(r"url\(|@import", page)
    plots = {element["alt"].partition(":")[0] for element in found.all("img")}
    assert plots == {
        "loss",
        "shapes/mean_recall",
        "coco/i2t_recall@1",
        "neighbours/recall@1",
        "quality by parameters",
        "quality by pairs seen",
        "quality by flops",
    }
    assert all(element["src"].startswith("data:image/") for element in found.all("img"))


def test_a_cell_of_markdown_keeps_its_bars():
    table = report.Table("t", ["run", "changed"], [["a", "('^x|y$',)"]])
    assert table.markdown().splitlines()[-1] == r"| a | ('^x\|y$',) |"
