"""The page of many runs: runs found, fields that differ, and numbers in tables."""

import json
import re
from pathlib import Path

import pytest

import main
from align_jax.config import as_json
from align_jax.errors import InputError
from align_jax.report import summary as report
from align_jax.report.found_runs import changed_fields, find_runs
from align_jax.report.run_kinds import RUN_KINDS, fill_defaults
from align_jax.runs.results import PUBLISHED, main_scores
from align_jax.training.training_runs import TRAINING
from configs import quickstart, vtab
from tests.report.run_page_test import Page, cells

COCO = ("coco/i2t_recall@1", "coco/t2i_recall@1", "neighbours/recall@1")


def write_run(folder, fields, scores, step=20, finished=True, **metrics):
    folder.mkdir(parents=True)
    named = {f"eval/{name}": value for name, value in scores.items()}
    rows = [
        {"step": step / 2, "train/loss": 3.0},
        {"step": step, "train/loss": 1.5}
        | {f"train/{k}": v for k, v in metrics.items()},
        {"step": step, **named},
    ]
    files = {"config.json": fields, "provenance.json": {"git revision": "0123abc"}}
    if finished:
        files["results.json"] = {"step": step, **named}
        (folder / "report.html").touch()
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)


@pytest.fixture
def root(tmp_path):
    """A sweep of two finished and two unfinished runs, three evaluations, a search."""
    fields = quickstart.get_config().to_dict()
    small = json.loads(json.dumps(fields))
    small["model"]["embedding_size"] = 320
    speed = {
        "pairs_per_second": 512.0,
        "pairs_per_second_per_device": 64.0,
        "tflops_per_second_per_device": 0.125,
        "productive_seconds": 1800.0,
        "device_hours": 5.0,
        "goodput": 0.875,
    }
    scores = {"shapes/mean_recall": 0.25, "shapes/i2t_recall@1": 0.125}
    sweep = tmp_path / "sweep"
    write_run(sweep / "baseline-0123abcd", fields, scores, **speed)
    more = {"shapes/mean_recall": 0.5} | dict(
        zip(COCO, (0.5, 0.25, 0.125), strict=True)
    )
    write_run(sweep / "embedding_320-4567cdef", small, more, step=40, **speed)
    write_run(sweep / "third-89abcdef", fields | {"seed": 1}, {}, finished=False)
    early = {"coco/i2t_recall@1": 0.9}
    write_run(sweep / "embedding_80-0", small, early, finished=False)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "config.json").write_text('{"name": "a corpus"}')
    evaluate = {"run": "evaluate", "evaluators": {}}
    baseline = str(sweep / "baseline-0123abcd")
    write_run(
        tmp_path / "scores",
        evaluate | {"checkpoint": baseline},
        {"flickr30k/i2t_recall@1": 0.75, "simlex/all_spearman": 0.375},
    )
    write_run(
        tmp_path / "earlier",
        evaluate | {"checkpoint": baseline},
        {"multi30k_de/mean_recall": 0.5},
        step=10,
    )
    clash = evaluate | {"checkpoint": baseline}
    write_run(tmp_path / "clash", clash, {"shapes/mean_recall": 0.0625})
    search = vtab.get_config("dtd").to_dict()
    write_run(tmp_path / "vtab", search, {"vtab_all/mean": 0.6875})
    trial = tmp_path / "vtab" / "vtab_dtd" / "trial_00"
    write_run(trial, fields, {"shapes/mean_recall": 0.9})
    return tmp_path


def test_reports_and_sweeps_know_every_kind_of_run_that_main_starts():
    assert {*main.kinds_of_runs()} == {*RUN_KINDS} > {*TRAINING}


def test_runs_are_found_and_evaluations_are_of_their_runs(root):
    runs = {run.name: run for run in find_runs([str(root)])}
    assert {*runs} == {
        "baseline-0123abcd",
        "embedding_320-4567cdef",
        "third-89abcdef",
        "clash",
        "earlier",
        "embedding_80-0",
        "vtab",
    }
    baseline = runs["baseline-0123abcd"]
    assert baseline.results["eval/flickr30k/i2t_recall@1"] == 0.75
    assert baseline.results["eval/shapes/mean_recall"] == 0.25
    assert baseline.title == "baseline"
    assert runs["vtab"].title == "vtab"
    assert "eval/multi30k_de/mean_recall" not in baseline.results  # of an earlier step
    third = runs["third-89abcdef"]
    assert not third.finished
    assert third.results == {"step": 20}
    assert not third.report
    alone = find_runs([str(root / "scores")])
    assert [run.name for run in alone] == ["scores"]


def test_measures_are_computed_by_hand(root):
    (run,) = find_runs([str(root / "sweep" / "baseline-0123abcd")])
    assert run.measures == {
        "parameters": sum(run.parameters.values()),
        "pairs_seen": 20 * 128,
        "flops": pytest.approx(0.125e12 / 64 * 20 * 128),
        "pairs_per_second": 512.0,
        "goodput": 0.875,
        "training_hours": 0.5,
        "device_hours": 5.0,
    }
    assert {*run.parameters} == {
        "image_tower",
        "text_tower",
        "text_projection",
        "temperature",
    }
    assert run.parameters["text_projection"] == 128 * 240 + 240


def test_names_are_as_long_as_it_takes_to_tell_runs_apart(root):
    fields = quickstart.get_config().to_dict()
    write_run(root / "again" / "baseline-0123abcd", fields, {})
    names = {run.name for run in find_runs([str(root / "again"), str(root / "sweep")])}
    assert names == {
        "again/baseline-0123abcd",
        "sweep/baseline-0123abcd",
        "sweep/embedding_320-4567cdef",
        "sweep/embedding_80-0",
        "sweep/third-89abcdef",
    }


def test_what_sets_a_run_apart_is_what_most_do_not_have(root):
    runs = find_runs([str(root)])
    changes = dict(zip([r.name for r in runs], changed_fields(runs), strict=True))
    assert changes["baseline-0123abcd"] == {}
    assert changes["embedding_320-4567cdef"] == {"model.embedding_size": 320}
    assert changes["third-89abcdef"] == {"seed": 1}


def test_a_default_that_one_config_holds_and_another_leaves_out_is_no_change(root):
    path = root / "sweep" / "third-89abcdef" / "config.json"
    path.write_text(json.dumps(as_json(fill_defaults(json.loads(path.read_text())))))
    runs = find_runs([str(root / "sweep")])
    assert {*runs[3].fields["optimizer"]} > {*runs[0].fields["optimizer"]}
    embedding = {"model.embedding_size": 320}
    assert changed_fields(runs) == [{}, embedding, embedding, {"seed": 1}]


def test_the_last_start_is_shown_and_all_are_counted(root):
    baseline = root / "sweep" / "baseline-0123abcd"
    start = {"git revision": "0123abc", "devices": "8 x cpu (cpu)"}
    later = start | {"git revision": "89abcde"}
    (baseline / "provenance.json").write_text(json.dumps([start, start, later]))
    (run,) = find_runs([str(baseline)])
    assert run.provenance == later | {
        "starts": "3: 2 on 8 x cpu (cpu) at 0123abc, 1 on 8 x cpu (cpu) at 89abcde"
    }
    (old,) = find_runs([str(root / "sweep" / "third-89abcdef")])
    assert old.provenance == {"git revision": "0123abc"}


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


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no run: no config\.json in it or below"
    ):
        find_runs([str(tmp_path)])


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", b"[1]", "holds a list"),
        ("config.json", b'{"run": "\xe9"}', "can't decode"),
        ("config.json", b'{"run": "pretrain"}', "virtual_cores is None"),
        ("results.json", b'{"step": 1, "eval/a/top1": "x"}', "top1 is 'x'; wanted a n"),
        ("provenance.json", b"[3]", "holds no list of objects"),
    ],
)
def test_a_run_with_a_damaged_file_is_named_and_left_out(
    tmp_path, capsys, file, content, reason
):
    fields = quickstart.get_config().to_dict()
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, fields, {"shapes/mean_recall": 0.25})
    (tmp_path / "b" / file).write_bytes(content)
    assert [run.name for run in find_runs([str(tmp_path)])] == ["a", "c"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'b'} is left out: ")
    assert reason in line
    with pytest.raises(InputError, match=r"the files of all runs of .* are damaged"):
        find_runs([str(tmp_path / "b")])


@pytest.mark.parametrize(
    "line", [b'{"step": 1, "tra\n', b'{"step": 1, "eval/a/top1": []}\n', b"3\n"]
)
def test_a_damaged_metric_line_is_named_and_its_run_is_shown(tmp_path, capsys, line):
    fields = quickstart.get_config().to_dict()
    for name in ("a", "b"):
        write_run(tmp_path / name, fields, {"shapes/mean_recall": 0.25})
    (tmp_path / "b" / "metrics.jsonl").write_bytes(line)
    assert [run.name for run in find_runs([str(tmp_path)])] == ["a", "b"]
    path = tmp_path / "b" / "metrics.jsonl"
    told = f"warning: line 1 of {path} is no metric line and was skipped\n"
    assert capsys.readouterr().err == told


def test_a_part_that_some_runs_lack_is_listed_once(root):
    """As None where most runs have it, and by its fields where most lack it."""
    folder = root / "parts"
    hard = {"filter_ratio": 0.5, "scoring": "hard"}
    for name, part in (("a", hard), ("b", None), ("c", hard)):
        fields = quickstart.get_config().to_dict() | {"hard_pairs": part}
        write_run(folder / name, fields, {})
    runs = find_runs([str(folder)])
    assert changed_fields(runs) == [{}, {"hard_pairs": None}, {}]
    lone = changed_fields([runs[1], runs[1], runs[0]])
    assert lone[:2] == [{}, {}]
    assert lone[2].items() >= {f"hard_pairs.{n}": x for n, x in hard.items()}.items()
    assert "absent" not in lone[2].values()
