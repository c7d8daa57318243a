"""The habits of hard English that a program can see; the rest is the reader's."""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
CODE = ("align_jax", "data", "configs", "benchmarks", "tests")

# An argument's line starts with a noun: not with one of these, nor with a verb.
NO_NOUNS = """
after also although and as at because before below both but by called either else for
from given had has have how if in is it its left less like likewise longer more most
neither nor not of off on only or out see shorter since smaller so such than that their
them then there these they this those through to told too under unless until upon used
wanted was were what when where which while who whose why will with within without
accepts activates adds answers applies asks average averages begins builds calls changes
checks chooses compares computes converts copies counts cuts decides decodes defines
depends describes does draws embeds ends evaluates expects finds gathers gets gives
goes holds ignores includes joins keeps leaves lists loads looks makes means measures
names needs normalises opens picks prepares prints puts raises reads receives removes
replaces reports returns runs saves says selects sends sets shows skips starts stores
takes tells tests trains treats turns uses waits wants works wraps writes yields
activate add apply build call choose compare compute convert decide decode draw embed
evaluate find gather give hold join keep lay make normalise open pick print put raise
read receive remove replace report return run save say select send set show skip start
store take tell train treat turn use wait want widen work wrap write yield
""".split()

# Nowhere in docstrings, comments and pages.
PHRASES = re.compile(
    r"\b(likewise|anew|at hand|whole or absent|told|mend(s|ed|ing)?|so many|its own"
    r"|such (?!as\b)|(of|for|by|to|in|from|with|than|on|as) what)\b",
    re.IGNORECASE,
)
# A sentence does not start with its object or with a clause that stands for a noun.
OPENINGS = re.compile(r"(?:^|[.!?:]\s+)(Of|That|Which|What|Whose|Whom|Such)\b(?! as)")

ARGUMENT = re.compile(r" {2}\*{0,2}\w+(?: \([^)]*\))?: (.+)")
SHAPE = re.compile(r"\((?:[^()]|\([^()]*\))*\)[\s,;:.]*")


def python_files() -> Iterator[pathlib.Path]:
    yield ROOT / "main.py"
    for folder in CODE:
        yield from sorted((ROOT / folder).rglob("*.py"))


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line number and the text of every docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if text := ast.get_docstring(node):
                yield node.body[0].lineno, text


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line number and the text of every block of comments."""
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield last, " ".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    if block:
        yield last, " ".join(block)


def argument_lines(docstring: str) -> Iterator[tuple[int, str]]:
    """Yields the offset and the description of every argument, attribute and error."""
    inside = False
    for offset, line in enumerate(docstring.splitlines()):
        if re.fullmatch(r"(Args|Attributes|Raises|Yields|Returns):", line):
            inside = line not in ("Yields:", "Returns:")
        elif line and not line.startswith(" "):
            inside = False
        elif inside and (match := ARGUMENT.match(line)):
            yield offset, match[1]


def faults_of_arguments(docstring: str) -> Iterator[tuple[int, str]]:
    for offset, text in argument_lines(docstring):
        shape = SHAPE.match(text)
        words = re.findall(r"[\w'-]+", text[shape.end() :] if shape else text)
        if words and words[0].lower() in NO_NOUNS:
            yield offset, f"starts with {words[0]!r}: {text}"
        if re.match(r"at (least|most)\b", text, re.IGNORECASE):
            yield offset, text


def faults_of_text(text: str) -> Iterator[str]:
    text = " ".join(text.split())
    for pattern in (PHRASES, OPENINGS):
        for match in pattern.finditer(text):
            yield "..." + text[max(match.start() - 20, 0) : match.end() + 30]


def without_code(page: str) -> str:
    """A Markdown page without its code and its quotations of output."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "CODE", page)


def test_argument_lines_start_with_nouns():
    found = [
        f"{path.relative_to(ROOT)}:{line + offset}: {fault}"
        for path in python_files()
        for line, docstring in docstrings(path.read_text())
        for offset, fault in faults_of_arguments(docstring)
    ]
    assert not found, "\n".join(found)


def test_docstrings_and_comments_have_none_of_the_listed_phrases():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in python_files()
        for source in [path.read_text()]
        for line, text in [*docstrings(source), *comments(source)]
        for fault in faults_of_text(text)
    ]
    assert not found, "\n".join(found)


def test_pages_have_none_of_the_listed_phrases():
    pages = {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")}
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in sorted(pages - {ROOT / "docs/log.md"})
        for paragraph in without_code(path.read_text()).split("\n\n")
        for fault in faults_of_text(paragraph)
    ]
    assert not found, "\n".join(found)
