"""Tests that the citation and the workflows agree with the project."""

import pathlib
import re

import pytest
import yaml

import align_jax

ROOT = pathlib.Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def make_targets() -> set[str]:
    """Reads the targets of the Makefile, with the `test-NAME` of every suite."""
    text = (ROOT / "Makefile").read_text()
    lines = re.findall(r"^([a-z][a-z -]*):(?!=)", text, re.MULTILINE)
    return {target for line in lines for target in line.split()}


def test_the_citation_has_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == align_jax.__version__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_targets_that_exist(path):
    workflow = yaml.safe_load(path.read_text())
    targets = make_targets()
    ran = 0
    for job in workflow["jobs"].values():
        suites = job.get("strategy", {}).get("matrix", {}).get("suite", [""])
        for step in job["steps"]:
            for suite in suites:
                command = step.get("run", "").replace("${{ matrix.suite }}", suite)
                if command.startswith("make "):
                    assert command.split()[1] in targets
                ran += bool(command)
    assert ran
