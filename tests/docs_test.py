"""The pages are true: commands, flags, config fields, files and links that exist."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests import documented

ROOT = documented.ROOT
DOCS = ROOT / "docs"
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md")})

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def files_made(page: str) -> set[str]:
    """The files that a page's blocks are, by a comment in the first line."""
    blocks = [block for _, block in FENCED.findall(page)]
    return {m[1] for block in blocks if (m := re.match(r"# (\S+/\S+\.\w+)\n", block))}


def anchors(page: str) -> set[str]:
    """The anchors of a page's titles, as the site makes them."""
    titles = re.findall(r"^#+ (.*)", FENCED.sub("", page), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in words}


def check_link(path: pathlib.Path, target: str) -> None:
    if re.match("https?://", target):
        return
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path
    inside = DOCS if path.is_relative_to(DOCS) else ROOT
    assert found.exists(), "no such page"
    assert found.is_relative_to(inside), "no such page"
    if anchor:
        assert anchor in anchors(found.read_text()), f"no such title in {found.name}"


def checks(path: pathlib.Path, page: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields each statement of a page, and a call that fails if it is wrong."""
    made = files_made(page)
    for language, block in FENCED.findall(page):
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield line, functools.partial(documented.check_command, words, made)
        elif language == "python":
            yield block, functools.partial(documented.check_python, block, made)
    prose = FENCED.sub("", page)
    for target in LINK.findall(CODE.sub("code", prose)):
        yield target, functools.partial(check_link, path, target)
    if path == DOCS / "log.md":
        return  # its files and flags are those of its days
    for code in CODE.findall(prose):
        if re.match(r"make \w|python -m ", code):
            words = shlex.split(code)
            yield (
                code,
                functools.partial(documented.check_command, words, made, whole=False),
            )
        elif field := re.match(r"(?:--)?config\.([\w.]*\w)", code):
            yield code, functools.partial(documented.check_field, field[1])
        elif not re.search(r"[\s*<]", code):
            yield code, functools.partial(documented.check_file, code, made)


def faults(path: pathlib.Path, page: str) -> list[str]:
    found = []
    for text, check in checks(path, page):
        try:
            check()
        except (Exception, SystemExit) as error:
            found.append(f"{path.name}: {' '.join(text.split())}: {error!r}")
    return found


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "path", PAGES, ids=lambda path: str(path.relative_to(ROOT).with_suffix(""))
)
def test_a_page_names_what_exists(path):
    assert not (found := faults(path, path.read_text())), "\n".join(found)


@pytest.mark.parametrize(
    "wrong",
    """
    make quickstarts
    mkae quickstart
    python -m align_jax.serch query runs/index
    python -m align_jax.search query runs/index --txt=shoes
    python -m align_jax.search ask runs/index
    python -m align_jax.convert --to runs/x
    python -m align_jax.sweep --sweep=configs/sweeps/towers.py:b9_base --workdir=x
    python -m benchmarks.ahead compile x --imag=l2
    python -m data.build --config=configs/corpus_quickstart.py --workdir=x --config.a=1
    python main.py --config=configs/quickstart.py --workdir=x --config.seeds=1
    python main.py --config=configs/quickstart.py --workdir=x --config.seed=one
    python main.py --config=configs/quickstart.py
    python main.py --config=configs/zero_shot.py:mnist --workdir=x
    python main.py --config=configs/quickstart.py --workdir=x --config.loss.kind=hinge
    pip install -e '.[tpus]'
    sbatch launch/slurm.sh
    CONFIG=configs/mine.py launch/gcloud_tpu.sh
    """.strip().splitlines(),
)
def test_a_wrong_command_is_a_fault(wrong, capsys):
    page = f"# A page\n\n```sh\n{wrong.strip()}\n```\n"
    assert len(faults(DOCS / "page.md", page)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        "[a](no_page.md)",
        "[a](corpus.md#no-title)",
        "[a](#no-title)",
        "![a](no_picture.png)",
        "[a](../README.md)",
        "`align_jax/no_room/no_file.py`",
        "`make no-target`",
        "`config.loss.negative = 0.5`",
        "`--config.input.datasets.coco.folder`",
        "`python -m align_jax.search --no_flag`",
        "```python\nfrom align_jax.errors import NoError\n```",
        "```python\nif:\n```",
    ],
)
def test_a_wrong_link_or_name_is_a_fault(wrong):
    assert len(faults(DOCS / "page.md", f"# A page\n\n{wrong}\n")) == 1


def entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        yield from entries([*nav.values()])
    else:
        for entry in nav:
            yield from entries(entry)


def test_the_site_has_every_page_once():
    nav = [*entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    notebooks = {path.with_suffix(".md") for path in DOCS.rglob("*.ipynb")}
    pages = {*DOCS.rglob("*.md"), *notebooks}
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in pages)
    assert nav[0] == "index.md"


def file_map(page: pathlib.Path) -> str:
    """The block of a page that maps the files."""
    (block,) = (b for _, b in FENCED.findall(page.read_text()) if "main.py " in b[:8])
    return block


def test_the_file_maps_are_one_and_name_every_room_and_command():
    shown = file_map(ROOT / "README.md")
    assert file_map(DOCS / "design.md") == shown
    parts = re.split(r"^(?=\w+/)", shown, flags=re.MULTILINE)
    for package in ("align_jax", "data"):
        (part,) = (part for part in parts if part.startswith(f"{package}/"))
        rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        files = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert {*re.findall(r"^  (\w+)/", part, re.MULTILINE)} == rooms
        assert files <= {*re.findall(r"\w+", part)}


@pytest.mark.parametrize("table", ["README.md", "docs/index.md"])
def test_every_page_is_named_where_a_reader_begins(table):
    page = (ROOT / table).read_text()
    targets = {link.partition("#")[0].rpartition("/")[2] for link in LINK.findall(page)}
    assert {path.name for path in DOCS.glob("*.md")} - {"index.md", "log.md"} <= targets


@pytest.mark.parametrize("path", [page for page in PAGES if DOCS in page.parents])
def test_a_page_has_one_title(path):
    page = path.read_text()
    assert page.startswith("# ")
    assert len(re.findall("^# ", FENCED.sub("", page), re.MULTILINE)) == 1


@pytest.mark.parametrize("program", ["main.py", "-m data.build", "-m align_jax.search"])
def test_help_is_printed(program):
    command = [sys.executable, *program.split(), "--help"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "--" in printed
