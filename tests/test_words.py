"""The words of the project: no retired ones, short sentences, and lines that fit a window."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment import ROOT

RULES = ROOT / "CONTRIBUTING.md"  # whose paragraph "Words" has the table of retired words
MAX_COLUMNS = 99  # of a line of prose
MAX_WORDS = 25  # of a sentence
PROSE = (
    "README.md",
    "CONTRIBUTING.md",
    "docs",
    "launch",
    "benchmarks",
    "notebooks",
    "diffae_jax",
    "configs",
    "setup.py",
)
CARDS = ROOT / "diffae_jax" / "pretrained"  # model cards, which are generated
LISTS_WORDS = {RULES}  # which names the words that it retires


def files(suffix: str) -> list[Path]:
    paths = [path for name in PROSE for path in (ROOT / name, *sorted((ROOT / name).rglob("*")))]
    paths = [path for path in paths if path.suffix == suffix and path.is_file()]
    return [path for path in paths if not (suffix == ".md" and CARDS in path.parents)]


PAGES, MODULES = files(".md"), files(".py")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def retired() -> re.Pattern:
    """Returns a pattern of the words in the first column of the table of retired words."""
    table = RULES.read_text().partition("| retired |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    words = sorted(word.strip().replace(" ", r"\s+") for row in rows for word in row.split(","))
    return re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)


RETIRED = retired()


def prose_of_page(text: str) -> Iterator[str]:
    """Yields paragraphs, list items, quotes and headings, without code, tables and pictures."""
    text = re.sub(r"^(```|~~~).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |#|\||!\[))", text):
        if block.strip() and not re.match(r"(    |\t|\s*\||\s*!\[|\s*<)", block.lstrip("\n")):
            yield block.strip()


def prose_of_module(source: str) -> Iterator[str]:
    """Yields the paragraphs of docstrings, without examples."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for block in re.split(r"\n\s*\n|\n(?=\s*[-*] )", ast.get_docstring(node) or ""):
                if not re.search(
                    r"^(    |\S+   )|:\n    ", block, re.MULTILINE
                ):  # code, a table, a section of arguments
                    yield block


def sentences(block: str) -> Iterator[str]:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)  # links
    plain = re.sub(r"`[^`]*`", "CODE", plain)
    yield from re.split(r"(?<=[.!?:;])[*_\")]*\s+(?=[^a-z])|(?<=[:;])\s", plain)


def too_long(blocks: Iterator[str]) -> list[str]:
    return [text for block in blocks for text in sentences(block) if len(re.findall(r"\w[\w'-]*", text)) > MAX_WORDS]


@pytest.mark.parametrize(
    "path", [*PAGES, *MODULES, *files(".jinja"), *files(".sh")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_word_is_retired(path):
    if path not in LISTS_WORDS:
        assert [match[0] for match in RETIRED.finditer(path.read_text())] == []


@every_page
def test_sentences_of_pages_are_short(page):
    assert too_long(prose_of_page(page.read_text())) == []


@every_module
def test_sentences_of_docstrings_are_short(module):
    assert too_long(prose_of_module(module.read_text())) == []


@every_page
def test_lines_of_prose_fit_a_window(page):
    text = re.sub(r"^(```|~~~).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"    |\||\[[^\]]+\]: |\s*!\[", line)]
    assert [line for line in lines if len(line) > MAX_COLUMNS and " " in line[:MAX_COLUMNS]] == []


def test_comments_are_short():
    """Ruff holds the width of comments and docstrings; this holds that it is asked to."""
    assert f"max-doc-length = {MAX_COLUMNS}" in (ROOT / "pyproject.toml").read_text()


def test_checks_see_what_they_look_for():
    assert RETIRED.search("It is Told here.")
    assert RETIRED.search("raises UserError\n    where it is damaged")
    assert not RETIRED.search("It is toldable.")
    page = "Some *words* of [a link](x.md).\n\n- an item\n\n    code\n\n| a | table |\n\n```python\nx = 1\n```\n"
    assert list(prose_of_page(page)) == ["Some *words* of [a link](x.md).", "- an item"]
    words = " ".join(["Word"] * MAX_WORDS)
    assert too_long(iter([f"One. {words}.\n\nTwo."])) == []
    assert too_long(iter([f"One. {words} word. Two."])) == [f"{words} word."]
    docstring = f'def f():\n    """{words} word."""\n'
    assert too_long(prose_of_module(docstring)) == [f"{words} word."]
