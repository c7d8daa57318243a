"""Runs every suite that this machine can run and prints a table: `make test-all`.

`python -m tests.all_suites NAME...` runs the named suites only.
"""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from xml.etree import ElementTree

# Suites by name, each with alternative programs, one of which it needs. `make
# ready-NAME` installs the packages of a suite and `make test-NAME` runs it. All but
# `fast` consist of the tests with the marker NAME.
SUITES: dict[str, tuple[str, ...]] = {
    "fast": (),
    "convert": (),
    "languages": (),
    "nsfw": (),
    "onnx": (),
    "launch": (),
    "docker": ("docker",),
    "formats": (),
    "buckets": ("openssl",),
    "spark": ("java",),
    "tpu": (),
    "pods": (),
    "trackers": (),
    "wheel": (),
    "faults": ("unshare",),
    "browser": ("chromium", "chromium-browser", "google-chrome"),
}


@dataclasses.dataclass
class Outcome:
    """The outcome of a suite.

    Attributes:
      passed: number of tests that passed.
      failed: number of tests that failed or could not be set up.
      seconds: duration of the suite.
      missing: reason why the suite, or one of its tests, was skipped; "" for none.
      broken: reason why the suite fails although no test failed; "" for none.
    """

    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    missing: str = ""
    broken: str = ""

    @property
    def fails(self) -> bool:
        return bool(self.failed or self.broken)


def read_outcome(report: pathlib.Path, code: int, seconds: float) -> Outcome:
    """Reads the outcome of a suite from its JUnit report and the exit code of make."""
    outcome = Outcome(seconds=seconds)
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            found = {child.tag: child for child in case}
            if "skipped" in found:
                outcome.missing = found["skipped"].get("message", "skipped")
            elif found.keys() & {"failure", "error"}:
                outcome.failed += 1
            else:
                outcome.passed += 1
    if code and not outcome.failed:
        outcome.broken = f"make ended with {code}"
    elif not outcome.passed + outcome.failed and not outcome.missing:
        outcome.broken = "no test ran"
    return outcome


def run_suite(name: str, folder: pathlib.Path) -> Outcome:
    """Prepares and runs a suite; its output goes to our standard output."""
    programs = SUITES[name]
    if programs and not any(map(shutil.which, programs)):
        return Outcome(missing=f"this machine has no {' or '.join(programs)}")
    begun = time.perf_counter()
    ready = subprocess.run(
        ["make", f"ready-{name}"], stderr=subprocess.PIPE, text=True, check=False
    )
    if ready.returncode:
        errors = [line for line in ready.stderr.splitlines() if "ERROR" in line]
        last = (errors or ready.stderr.splitlines() or ["no message"])[-1]
        return Outcome(missing=f"it cannot be prepared: {last.strip()}")
    report = folder / f"{name}.xml"
    done = subprocess.run(["make", f"test-{name}", f"REPORT=--junitxml={report}"])
    return read_outcome(report, done.returncode, time.perf_counter() - begun)


def format_table(outcomes: dict[str, Outcome]) -> str:
    """Formats one line a suite: tests run, passed and failed, seconds, the problem."""
    lines = [f"{'suite':<9}{'run':>6}{'passed':>8}{'failed':>8}{'seconds':>9}"]
    for name, outcome in outcomes.items():
        skipped = f"skipped: {outcome.missing}" if outcome.missing else ""
        note = "; ".join(filter(None, (outcome.broken, skipped)))
        run = outcome.passed + outcome.failed
        if not run and not outcome.broken:
            lines.append(f"{name:<9}{note}")
            continue
        counts = f"{run:>6}{outcome.passed:>8}{outcome.failed:>8}"
        lines.append(f"{name:<9}{counts}{outcome.seconds:>9.0f}  {note}".rstrip())
    failed = [name for name, outcome in outcomes.items() if outcome.fails]
    lines.append(f"failed: {', '.join(failed)}" if failed else "no suite failed")
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Runs the named suites or all; returns 1 if one failed, not if one was skipped."""
    if unknown := set(names) - set(SUITES):
        print(f"unknown suites {sorted(unknown)}; known are {', '.join(SUITES)}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {
            name: run_suite(name, pathlib.Path(folder)) for name in names or SUITES
        }
    print(format_table(outcomes))
    return int(any(outcome.fails for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
