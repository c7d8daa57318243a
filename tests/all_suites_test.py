import pathlib
import subprocess
import tomllib

import pytest

from tests import all_suites
from tests.all_suites import SUITES, Outcome, format_table, read_outcome

ROOT = pathlib.Path(__file__).parents[1]


def write_report(path, children):
    cases = "".join(f"<testcase>{child}</testcase>" for child in children)
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    return path


def test_every_marker_is_a_suite_with_its_targets():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.partition(":")[0] for line in options["ini_options"]["markers"]}
    assert {"fast", *markers} == SUITES.keys()
    assert all(f"not {name}" in options["ini_options"]["addopts"] for name in markers)
    targets = [f"{step}-{name}" for name in SUITES for step in ("ready", "test")]
    told = subprocess.run(
        ["make", "--dry-run", "PYTHON=python3", "NEWEST=python3", *targets],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr


def test_outcomes_are_counted(tmp_path):
    skipped = '<skipped message="no such card"/>'
    children = ["", "", "<failure/>", "<error/>", skipped]
    path = write_report(tmp_path / "a", children)
    outcome = read_outcome(path, 2, 7.0)
    assert outcome == Outcome(2, 2, 7.0, missing="no such card")
    assert outcome.fails
    assert not read_outcome(write_report(tmp_path / "b", ["", skipped]), 0, 1.0).fails


def test_a_suite_without_tests_or_report_fails(tmp_path):
    assert (
        read_outcome(write_report(tmp_path / "a", []), 0, 1.0).broken == "no test ran"
    )
    assert read_outcome(tmp_path / "none", 0, 1.0).broken == "no test ran"
    assert read_outcome(tmp_path / "none", 2, 1.0).broken == "make ended with 2"
    passing = write_report(tmp_path / "b", [""])
    assert read_outcome(passing, 2, 1.0).broken == "make ended with 2"


def test_the_table_names_what_failed_and_what_is_missing():
    table = format_table(
        {
            "fast": Outcome(1200, 0, 412.3),
            "spark": Outcome(missing="this machine has no java"),
            "tpu": Outcome(3, 1, 61.0),
            "pods": Outcome(5, 0, 9.0, missing="no such card"),
            "nsfw": Outcome(seconds=2.0, broken="no test ran"),
        }
    )
    assert table.splitlines() == [
        "suite       run  passed  failed  seconds",
        "fast       1200    1200       0      412",
        "spark    skipped: this machine has no java",
        "tpu           4       3       1       61",
        "pods          5       5       0        9  skipped: no such card",
        "nsfw          0       0       0        2  no test ran",
        "failed: tpu, nsfw",
    ]


@pytest.mark.parametrize("broken", ["", "ready", "test", "program"])
def test_a_missing_package_skips_and_a_failing_suite_fails(monkeypatch, capsys, broken):
    """A function replaces `make`; `broken` is the failing part of the suite `spark`."""
    ran = []

    def make(command, **options):
        target = command[1]
        ran.append(target)
        fails = broken and target == f"{broken}-spark"
        if target.startswith("test-") and not fails:
            write_report(pathlib.Path(command[2].rpartition("=")[2]), [""])
        message = "ERROR: no matching version\nmake: *** [x] Error 1\n"
        return subprocess.CompletedProcess(command, 2 * bool(fails), stderr=message)

    monkeypatch.setattr(subprocess, "run", make)
    java = None if broken == "program" else "/bin/java"
    known = {"java": java}
    monkeypatch.setattr(all_suites.shutil, "which", lambda name: known.get(name, name))
    assert all_suites.main([]) == (broken == "test")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "spark  " in x]
    assert {
        "": "1       1       0" in line,
        "ready": line.endswith("cannot be prepared: ERROR: no matching version"),
        "test": line.endswith("make ended with 2"),
        "program": line.endswith("skipped: this machine has no java"),
    }[broken]
    assert ("test-spark" in ran) == (broken in ("", "test"))
    assert [f"test-{name}" for name in SUITES if name != "spark"] == [
        target
        for target in ran
        if target.startswith("test-") and target != "test-spark"
    ]
