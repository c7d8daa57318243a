"""Follows every recipe of docs/recipes on a copy of the packages.

A page's blocks name their file in the first line. Python blocks are new files, diff
blocks change a file, and sh blocks say which tests to run.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest

from tests.english_test import (
    comments,
    docstrings,
    faults_of_arguments,
    faults_of_text,
)

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ("align_jax", "configs", "data", "tests")
PAGES = ("dataset", "evaluator", "optimizer", "rule", "source", "tower")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Must pass on the copy, beside the recipes' own tests.
ORDER_OF_ROOMS = (
    "tests/imports_test.py"
    "::test_a_room_imports_only_the_ground_floor_and_rooms_before_it"
)


def blocks(page: str, language: str) -> Iterator[str]:
    """Yields the fenced blocks of one language."""
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text()
    return (body for found, body in BLOCK.findall(text) if found == language)


def named_blocks(page: str, language: str) -> Iterator[tuple[str, str]]:
    """Yields the file that a block names and the rest of the block."""
    for block in blocks(page, language):
        first, _, rest = block.partition("\n")
        assert first.startswith("# "), f"{page}.md: a block names no file: {first}"
        yield first.removeprefix("# "), rest


def listed_tests(page: str) -> list[str]:
    """The arguments of the page's pytest commands."""
    joined = (block.replace("\\\n", " ") for block in blocks(page, "sh"))
    commands = [shlex.split(command) for command in joined]
    start = [".venv/bin/python", "-m", "pytest"]
    assert commands
    assert all(command[:3] == start for command in commands), commands
    return [argument for command in commands for argument in command[3:]]


def follow(page: str, house: pathlib.Path) -> None:
    """Adds a page's files to a copy of the packages and makes its changes."""
    for name, source in named_blocks(page, "python"):
        assert not (house / name).exists(), f"{page}.md: there is a {name} already"
        (house / name).write_text(source)
    for name, change in named_blocks(page, "diff"):
        text = (house / name).read_text()
        for hunk in change.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(old) == 1, f"{page}.md: {name} has not once:\n{old}"
            text = text.replace(old, new)
        (house / name).write_text(text)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> pathlib.Path:
    """A copy of the packages with all recipes, none of which needs another."""
    house = tmp_path_factory.mktemp("recipes") / "house"
    for name in COPIED:
        shutil.copytree(ROOT / name, house / name)  # with Python's compiled files
    shutil.copy(ROOT / "pyproject.toml", house)
    for page in PAGES:
        follow(page, house)
    return house


@pytest.fixture(scope="module")
def outcomes(house) -> tuple[list[ElementTree.Element], str]:
    """The cases of all recipes' tests, run by one process, and what that printed."""
    tests = [ORDER_OF_ROOMS, *(test for page in PAGES for test in listed_tests(page))]
    report, temporary = (house.parent / name for name in ("cases.xml", "temporary"))
    options = [f"--junitxml={report}", f"--basetemp={temporary}", "-pno:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=house,
        env={name: v for name, v in os.environ.items() if "PYTEST" not in name},
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stderr
    return [*ElementTree.parse(report).iter("testcase")], done.stdout[-4000:]


def assert_passed(test: str, outcomes: tuple[list[ElementTree.Element], str]) -> None:
    cases, printed = outcomes
    module = test.partition("::")[0].removesuffix(".py").replace("/", ".")
    own = [case for case in cases if case.get("classname") == module]
    assert own, f"{test} did not run:\n{printed}"
    failed = [f"{c.get('name')}\n{what.text}" for c in own for what in c]
    assert not failed, "\n".join(failed)


def test_every_page_is_followed():
    pages = {path.stem for path in (ROOT / "docs" / "recipes").glob("*.md")}
    assert pages - {"index"} == {*PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_a_recipe_s_own_tests_pass(page, outcomes):
    for test in listed_tests(page):
        assert_passed(test, outcomes)


def test_recipes_keep_the_order_of_rooms(outcomes):
    assert_passed(ORDER_OF_ROOMS, outcomes)


@pytest.mark.parametrize("page", PAGES)
def test_a_recipe_s_code_passes_the_lint(page, house):
    kinds = ("python", "diff")
    files = {name for kind in kinds for name, _ in named_blocks(page, kind)}
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *sorted(files)],
            cwd=house,
            capture_output=True,
            text=True,
        )
        assert not done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_a_recipe_s_code_is_in_plain_english(page):
    for name, source in named_blocks(page, "python"):
        described = [text for _, text in docstrings(source)]
        found = [fault for text in described for _, fault in faults_of_arguments(text)]
        texts = [*described, *(text for _, text in comments(source))]
        found += [fault for text in texts for fault in faults_of_text(text)]
        assert not found, f"{page}.md: {name}: {found}"
