"""The Python blocks and the shell lines of README.md and docs/ run as printed."""

import shutil

import pytest

from tests.environment import ROOT
from tests.pages import blocks, commands, prepare
from tests.processes import Forked

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page.read_text()))], ids=lambda page: page.name
)


@pytest.fixture(scope="session")
def prepared(made_once, whole):
    """A folder with the files that pages name."""
    return made_once("pages", lambda folder: prepare(folder, whole[0]))


def run(page, prepared, folder, *arguments):
    shutil.copytree(prepared, folder)
    if (folder / f"of {page.stem}").exists():
        shutil.copytree(folder / f"of {page.stem}", folder, dirs_exist_ok=True)
    process = Forked("tests.pages:run", [str(page), *arguments], folder=folder)
    assert process.wait() == 0, process.output


@every_page
def test_blocks_run(page, prepared, tmp_path):
    run(page, prepared, tmp_path / "folder")


@pytest.mark.long
@every_page
def test_training_commands_of_all_pages_train(page, prepared, tmp_path):
    run(page, prepared, tmp_path / "folder", "train")


def test_lines_are_commands():
    """Continued lines are joined, and comments are removed."""
    page = "Text:\n\n    diffae a \\\n        --b 1   # why\n    pip install -e .\n\n```python\nx = 1\n```\n"
    (shell, lines), (python, code) = blocks(page)
    assert (shell, commands(lines)) == ("shell", [["diffae", "a", "--b", "1"], ["pip", "install", "-e", "."]])
    assert (python, code) == ("python", "x = 1\n")
    assert commands("runs/NAME/\n  config.json, it's text") == []
