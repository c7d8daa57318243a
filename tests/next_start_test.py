"""Tests of runs that start again on machines that have compiled nothing before."""

import time

import pytest

from tests.faults_test import start, start_several, steps_saved
from tests.run_tiny import rows

# Functions that a run compiles and keeps, and the names of their files.
KEPT = {"jit(_draw)": "first_state", "jit(train_step)": "step_with_norms"}
# Functions that run after the next step: those of the tiny run's evaluators, and the
# barrier of several processes with which Orbax begins to save.
EVALUATED = {"jit(of_images)", "jit(apply)", "jit(compare)", "jit(<lambda>)"}
LATER = EVALUATED | {"jit(_identity_fn)"}


@pytest.mark.faults
@pytest.mark.parametrize("count", [1, 4])
def test_a_run_on_new_machines_loads_its_programs_and_ends_in_the_same_metrics(
    count, tmp_path
):
    def begin(workdir, number, *flags):
        """Starts all processes, with an empty cache."""
        fresh = {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"cache_{number}"),
            "COMPILED": str(tmp_path / f"names_{number}"),
        }
        if count > 1:
            return start_several(count, data, workdir, *flags, **fresh)
        return [start(data, workdir, *flags, **fresh)]

    def end(processes):
        for process in processes:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors
            assert "warning" not in errors

    def names(number):
        return (tmp_path / f"names_{number}").read_text().split()

    def compiled(number):
        found = names(number)
        return {name: found.count(name) for name in KEPT if name in found}

    data, workdir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    end(begin(workdir, 0, "--compile"))
    assert {path.name for path in (workdir / "compiled").iterdir()} == {*KEPT.values()}
    assert compiled(0) == dict.fromkeys(KEPT, count)
    processes = begin(workdir, 1)
    while all(p.poll() is None for p in processes) and not steps_saved(workdir):
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()
    end(begin(workdir, 2))
    assert compiled(1) == {}
    assert {*names(2)} <= LATER
    end(begin(tmp_path / "whole", 3))
    assert compiled(3) == dict.fromkeys(KEPT, count)
    assert rows(workdir) == rows(tmp_path / "whole")
