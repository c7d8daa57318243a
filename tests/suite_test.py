"""Tests of the suite of benchmarks: ratios, failures, one file a revision, the page."""

import dataclasses
import sys

import pytest

from benchmarks import revisions, suite
from benchmarks.comparisons import Comparison, read_comparisons, record
from benchmarks.revisions import Outcome, add_outcomes, read_revisions
from benchmarks.suite_page import PAGE, make_table, write_page

FASTER = Comparison("probe", "sklearn", "s", [2.0, 4.0, 1.0], [4.0, 4.0, 4.0])
SLOWER = Comparison("input", "decoding", "pairs/s", [80.0], [100.0])


def test_a_ratio_above_one_means_that_ours_is_better():
    assert FASTER.ratios == [2.0, 1.0, 4.0]
    assert SLOWER.ratios == [0.8]
    assert FASTER.row()[3:] == ["2", "4", "2.00", "1.00 to 4.00"]
    assert SLOWER.row()[3:] == ["80", "100", "0.80", ""]


@pytest.mark.parametrize(
    ("ours", "others"), [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0]), ([1.0], [-1.0])]
)
def test_rounds_that_do_not_compare_are_refused(ours, others):
    with pytest.raises(ValueError, match="probe"):
        Comparison("probe", "sklearn", "s", ours, others)


def test_comparisons_are_added_to_a_file_and_read_back(tmp_path):
    path = tmp_path / "found.jsonl"
    assert read_comparisons(path) == []
    record(None, [FASTER])
    record(path, [FASTER])
    record(path, [SLOWER, FASTER])
    assert read_comparisons(path) == [FASTER, SLOWER, FASTER]


RECORDS = f"""
import pathlib, sys
from benchmarks.comparisons import Comparison, record
path = pathlib.Path(sys.argv[-1].removeprefix("--record="))
record(path, [Comparison(**{dataclasses.asdict(SLOWER)!r})])
print("seen")
"""
SLEEPS = "import subprocess; subprocess.run(['sleep', '60'])"


@pytest.mark.parametrize(
    ("script", "kept", "failure"),
    [
        (RECORDS, [SLOWER], ""),
        (RECORDS + "sys.exit(3)", [SLOWER], "ended with 3"),
        ("print('seen')", [], "recorded no comparison"),
        ("print('seen', flush=True)\n" + SLEEPS, [], "killed after 0.05 minutes"),
    ],
    ids=["whole", "fails later", "records nothing", "too slow"],
)
def test_a_benchmark_that_fails_says_so_and_keeps_its_log(
    tmp_path, script, kept, failure
):
    log = tmp_path / "log.txt"
    outcome = suite.run_benchmark([sys.executable, "-c", script], log, 0.05)
    assert outcome.comparisons == kept
    assert outcome.failure.startswith(failure) if failure else outcome.failure == ""
    assert failure == "" or str(log) in outcome.failure
    assert log.read_text() == "seen\n"


def test_each_revision_has_a_file_and_the_page_plots_all(tmp_path, monkeypatch):
    def measure(revision, **outcomes):
        about = {"git revision": revision, "devices": "2 x cpu"}
        monkeypatch.setattr(revisions, "provenance", lambda: about)
        return add_outcomes(tmp_path, outcomes)

    first = measure("a" * 40, probe=Outcome([FASTER], 3.0))
    assert measure("a" * 40, input=Outcome([SLOWER], 3.0)) == first
    measure("b" * 40 + "-dirty", probe=Outcome([], 5.0, "ended with 1, see log"))
    found = read_revisions(tmp_path)
    assert [revision.name for revision in found] == ["aaaaaaaa", "bbbbbbbb+"]
    assert found[0].outcomes == {
        "probe": Outcome([FASTER], 3.0),
        "input": Outcome([SLOWER], 3.0),
    }
    assert make_table(found[1].outcomes).rows[0][0] == "probe: ended with 1, see log"
    write_page(tmp_path / PAGE, found)
    page = (tmp_path / PAGE).read_text()
    assert "probe, sklearn: 2.00 at aaaaaaaa" in page
    assert "ended with 1, see log" in page


def test_the_commands_name_benchmarks_and_flags_that_exist(tmp_path):
    from tests.documented import check_module

    for name in suite.BENCHMARKS:
        _, _, module, *arguments = suite.make_command(name, tmp_path)
        check_module(module, [*arguments, "--record=x"], whole=True)
