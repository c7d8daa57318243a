"""The runs that are found, what is known of them, and fields that differ."""

import json

import pytest

import main
from align_jax.config import as_json
from align_jax.errors import InputError
from align_jax.report.found_runs import changed_fields, find_runs
from align_jax.report.run_kinds import RUN_KINDS, fill_defaults
from align_jax.training.training_runs import TRAINING
from configs import quickstart
from tests.report.written_runs import write_run


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
