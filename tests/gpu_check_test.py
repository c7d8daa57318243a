"""Tests of the check of a GPU: budget, order, failures, results, what is compiled."""

import dataclasses
import itertools
import json
import sys

import jax
import pytest

from align_jax.devices.mesh import make_mesh
from align_jax.errors import run_command
from benchmarks import gpu_check, gpu_schedule, loss_ahead
from benchmarks.gpu_parts import PARTS, Entry, Machine, Part
from benchmarks.gpu_schedule import Budget
from benchmarks.step_flags import read_flags
from benchmarks.step_towers import make_model
from benchmarks.turns import Failure, TimedProcess

H200 = Machine("NVIDIA H200", torch=True)


def ours(name, seconds, **options):
    return Entry(name, "ahead", (), seconds, file=f"{name}.step", **options)


def peer(name, seconds, **options):
    return Entry(name, "step", (), seconds, **options)


class Clock:
    """Seconds that pass only while somebody waits."""

    def __init__(self):
        self.now = 0.0

    def read(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@dataclasses.dataclass
class Fake:
    """A process that is ready at a time and then needs some seconds for its turn."""

    clock: Clock
    ready: float = 0
    takes: float = 1
    dies: bool = False
    begun: float | None = None
    killed: float | None = None

    def has_ended(self):
        if self.killed is not None:
            return True
        if self.dies:
            return self.clock.now >= self.ready
        return self.begun is not None and self.clock.now >= self.begun + self.takes

    def is_ready(self):
        return not self.dies and self.clock.now >= self.ready

    def begin(self):
        assert self.is_ready()
        self.begun = self.clock.now

    def result(self):
        if self.dies:
            raise Failure("ended with 1: out of memory")
        return {"begun": self.begun}

    def kill(self):
        if self.killed is None:
            self.killed = self.clock.now


def check(seconds, parts, **fakes):
    """Runs fake processes; returns the order of parts, rows by entry and the fakes."""
    clock = Clock()
    entries = [entry for part in parts for entry in part.entries]
    found = {
        entry.name: Fake(clock, **fakes.get(entry.name, {}))
        for entry in entries
        if not entry.lacking
    }
    budget = Budget(seconds, clock.read, clock.wait)
    schedule = gpu_schedule.start(
        parts, lambda _, entry: entry.lacking or found[entry.name], budget
    )
    order, rows = [], {}
    for part, each in schedule.run():
        order.append(part.name)
        assert [row["implementation"] for row in each] == [e.name for e in part.entries]
        rows |= {row["implementation"]: row for row in each}
    assert clock.now < seconds + 1
    assert all(fake.killed is not None for fake in found.values())
    return order, rows, found


STEP = Part("step", "", 8, (ours("step", 10), peer("timm", 10)))
LOSS = Part("loss", "", 8, (ours("loss", 5), peer("torch", 5)))
LAST = Part("last", "", 8, (ours("last", 40),))
ALL = (STEP, LOSS, LAST)


def test_parts_are_timed_by_importance_and_one_at_a_time_when_all_are_ready():
    order, rows, _ = check(360, ALL, loss={"ready": 20}, timm={"ready": 200})
    assert order == ["step", "loss", "last"]
    begun = [rows[name]["begun"] for name in ("step", "timm", "loss", "torch", "last")]
    assert begun[0] >= 200
    assert all(b >= a + 1 for a, b in itertools.pairwise(begun))
    assert all(row.keys() == {"implementation", "begun"} for row in rows.values())


def test_what_does_not_fit_says_so_and_what_fits_later_is_timed():
    parts = (STEP, LAST, LOSS)
    takes = {name: {"takes": 9} for name in ("step", "timm")}
    order, rows, found = check(50, parts, **takes)
    assert order == ["step", "last", "loss"]
    assert rows["last"]["reason"] == (
        "does not fit: its turn takes about 40 s, and 32 s are left"
    )
    assert found["last"].begun is None
    assert "begun" in rows["loss"]
    assert "begun" in rows["torch"]


def test_an_entry_that_fails_has_a_reason_and_the_rest_goes_on():
    entries = (ours("loss", 5), peer("torch", 5, lacking="no memory"))
    lacking = dataclasses.replace(LOSS, entries=entries)
    order, rows, _ = check(360, (STEP, lacking, LAST), step={"dies": True, "ready": 30})
    assert order == ["step", "loss", "last"]
    assert rows["step"]["reason"] == "ended with 1: out of memory"
    assert rows["torch"]["reason"] == "no memory"
    assert {"timm", "loss", "last"} == {n for n, r in rows.items() if "begun" in r}


def test_a_peer_that_compiles_for_long_delays_its_part_alone():
    """Its part keeps its time, so `last` has none; others say that timm compiled."""
    order, rows, _ = check(100, ALL, timm={"ready": 75})
    assert order == ["loss", "step", "last"]
    assert rows["loss"]["begun"] == pytest.approx(68, abs=0.5)
    assert rows["loss"]["beside"] == rows["torch"]["beside"] == ["timm"]
    assert rows["timm"]["begun"] >= 75
    assert "beside" not in rows["step"]
    assert "does not fit" in rows["last"]["reason"]


def test_a_peer_that_is_never_ready_does_not_cost_its_part():
    order, rows, _ = check(100, ALL, timm={"ready": 1000})
    assert order == ["loss", "step", "last"]
    assert rows["step"]["beside"] == ["timm"]
    assert rows["timm"]["reason"].startswith("was not ready after 8")


def test_a_turn_that_does_not_end_is_killed():
    _, rows, found = check(360, ALL, step={"takes": 1000})
    assert rows["step"]["reason"] == "was killed after 30 s of its turn"
    assert found["step"].killed == pytest.approx(30, abs=0.5)
    assert rows["timm"]["begun"] >= found["step"].killed


class Script(Entry):
    """An entry whose commands are scripts."""

    def run_command(self, folder):
        return [sys.executable, "-c", *self.arguments]

    def compile_command(self, path):
        return [sys.executable, "-c", *self.arguments, f"{path}"]


TURN = """
import json, sys
from benchmarks.turns import wait_for_turn
wait_for_turn()
seen = [*json.load(open(sys.argv[1]))["parts"]] if sys.argv[1:] else []
print(json.dumps({"all_milliseconds": [2.0, 4.0, 3.0], "peak_bytes": 2**31,
                  "flops": 98.9e9, "parts_before": seen}))
"""
FAILS = "import sys; print('line', file=sys.stderr); sys.exit('no such kernel')"


def test_results_are_written_after_each_part(tmp_path, capfd):
    path = tmp_path / "found.json"
    absent = "no_such_package"
    parts = (
        Part(
            "first",
            "First",
            6,
            (
                Script("fails", "", (FAILS,), 5),
                Script("absent", "", ("",), 5, packages=(absent,)),
                Script("unbuilt", "", ("",), 5, file="x.step"),
                Script("wordy", "", ("print('Done.')",), 5),
                Script("number", "", ("print(3)",), 5),
            ),
        ),
        Part("second", "Second", 6, (Script("works", "", (TURN, f"{path}"), 5),)),
    )
    found = gpu_check.run_parts(tmp_path, path, H200, Budget(60), parts)
    assert json.loads(path.read_text()) == found
    assert [row["reason"] for row in found["parts"]["first"]["rows"]] == [
        "ended with 1: no such kernel",
        "no_such_package is not installed",
        f"{tmp_path / 'x.step'} is missing: `compile` writes it",
        f"printed no result, see {tmp_path / 'logs' / 'first_wordy.out'}",
        f"printed no result, see {tmp_path / 'logs' / 'first_number.out'}",
    ]
    (row,) = found["parts"]["second"]["rows"]
    assert row["parts_before"] == ["first"]
    assert "First, 0 of 5 timed" in capfd.readouterr().out
    second = gpu_check.make_table(found, parts).splitlines()[-1]
    # 98.9e9 operations in 3 ms are 33 of 989 TFLOP/s; the only peer is the base.
    assert second == (
        "| Second | works | 2,000 | 1,500 to 3,000 | 3.0 | 1.00 | 3.3% | 2.0 |  |"
    )


def test_the_table_compares_with_the_first_peer_that_was_timed():
    rows = [
        {"implementation": "mine", "all_milliseconds": [2.0], "peak_bytes": 2**30},
        {"implementation": "slow", "reason": "a | b " + 300 * "x"},
        {"implementation": "fast", "all_milliseconds": [3.0], "peak_bytes": 2**30},
    ]
    rows[0] |= {"beside": ["slow"], "loss_is_finite": False}
    part = Part("p", "P", 4, (ours("mine", 1), peer("slow", 1), peer("fast", 1)))
    results = {
        "device": "a GPU that nobody knows",
        "parts": {"p": {"title": "P", "pairs": 4, "rows": rows}},
    }
    lines = gpu_check.make_table(results, (part,)).splitlines()[2:]
    assert lines[0] == (
        "| P | mine | 2,000 |  | 2.0 | 1.50 |  | 1.0 | while these compiled: slow, the"
        " loss is not finite |"
    )
    assert lines[1].startswith("| P | slow |  |  |  |  |  |  | a / b xxx")
    assert len(lines[1]) < 240
    assert lines[2] == "| P | fast | 1,333 |  | 3.0 | 1.00 |  | 1.0 |  |"


WRITES = "import sys; open(sys.argv[1], 'w').write('new'); print('compiled')"
HALF = "import sys; open(sys.argv[1], 'w').write('half'); sys.exit('no ptxas')"


def test_compiling_resumes_and_a_failure_loses_nothing_else(tmp_path, capfd):
    def parts(second):
        entries = (
            Script("a", "", (WRITES,), 1, file="a.step"),
            Script("b", "", (second,), 1, file="b.step"),
            Script("c", "", (WRITES,), 1, file="c.step"),
            Script("peer", "", (FAILS,), 1),
        )
        return [Part("p", "", 1, entries)]

    (tmp_path / "a.step").write_text("old")
    assert gpu_check.compile_parts(tmp_path, parts(HALF)) == 1
    assert "ended with 1: no ptxas" in capfd.readouterr().out
    assert not (tmp_path / "b.step").exists()
    assert (tmp_path / "c.step").read_text() == "new"
    assert gpu_check.compile_parts(tmp_path, parts(WRITES)) == 0
    assert [p.read_text() for p in sorted(tmp_path.glob("*.step"))] == [
        *("old", "new", "new")
    ]
    assert not [*tmp_path.glob("*.tmp")]


def test_a_machine_without_a_gpu_ends_the_run_with_one_line(tmp_path, capfd):
    run = lambda: gpu_check.main(["run", f"{tmp_path}"])  # noqa: E731
    assert run_command("gpu_check", run) == 2
    error = capfd.readouterr().err
    assert error.startswith("gpu_check: found no GPU, only CPUs; wanted a machine with")
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_process_ends_if_the_one_that_started_it_has_ended(tmp_path):
    process = TimedProcess([sys.executable, "-c", TURN], tmp_path / "x.out", {})
    process._stdin.close()
    with pytest.raises(Failure, match="ended with 1: the program that started"):
        process.result()


def test_the_parts_have_flags_that_their_modules_read():
    files = [e.file for part in PARTS for e in part.entries if e.file]
    assert len(files) == len({*files})
    for entry in (entry for part in PARTS for entry in part.entries):
        if entry.module == "loss_ahead":
            loss_ahead.read_flags(["compile", "x", *entry.arguments])
        elif entry.module in ("step", "ahead"):
            flags = read_flags("", [*entry.arguments])
            make_model(flags)
            if entry.instead:
                again = read_flags("", [*entry.instead])
                assert vars(again) == vars(flags) | {"only": "align_jax"}


def test_a_compiled_loss_is_read_and_timed_in_its_turn(tmp_path):
    """On a CPU; its operations are three products of 64 x 64 x 8."""
    path, size = tmp_path / "ring.loss", ["--size=64", "--width=8", "--repeats=3"]
    flags = loss_ahead.read_flags(["compile", f"{path}", *size, "--exchange=ring"])
    loss_ahead.compile_for(make_mesh(devices=jax.devices()[:1]), flags)
    command = [sys.executable, "-m", "benchmarks.loss_ahead", "run", f"{path}"]
    process = TimedProcess(
        [*command, "--in_turn"], tmp_path / "x.out", {"XLA_FLAGS": ""}
    )
    process.begin()
    found = process.result()
    process.kill()
    assert found["flops"] == 3 * 2 * 64 * 64 * 8
    assert found["loss_is_finite"]
    assert len(found["all_milliseconds"]) == 2
    assert process.is_ready()
