"""The Python blocks and the shell lines of README.md and docs/ run as printed."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.environment import ROOT
from tests.hub_server import TOKEN, serve
from tests.pages import blocks, commands, prepare
from tests.processes import Forked

EVERY = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in EVERY if any(blocks(page.read_text()))]
GALLERY = ROOT / "docs" / "gallery.md"
ALONE = ("README", "extend")  # the largest, and one that registers what is its own
OTHERS = [page for page in PAGES if page.stem not in ALONE and page != GALLERY]  # the gallery repeats their calls
GROUPS = [*([page] for page in PAGES if page.stem in ALONE), OTHERS[::2], OTHERS[1::2]]  # each runs in one process


@pytest.fixture(scope="session")
def prepared(made_once, whole):
    """A folder with the files that pages name."""
    return made_once("pages", lambda folder: prepare(folder, whole[0]))


@pytest.fixture(scope="module")
def hub():
    """The settings of a process that uses an empty Hub on this machine."""
    with serve() as (_, address):
        settings = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        yield settings


def pictures(page):
    """Returns the pictures of the gallery that a page shows, as paths relative to it."""
    return re.findall(r"!\[[^\]]*\]\((gallery/[^)]+)\)", page)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size, getattr(picture, "n_frames", 1)


def run(pages, prepared, folder, hub, *arguments):
    for page in pages:
        own = folder / page.stem
        shutil.copytree(prepared, own)
        if (own / f"of {page.stem}").exists():
            shutil.copytree(own / f"of {page.stem}", own, dirs_exist_ok=True)
    settings = hub | {"HF_HOME": str(folder / "hub")}
    process = Forked("tests.pages:run", [*arguments, *pages], folder=folder, settings=settings)
    assert process.wait(600) == 0, process.output


@pytest.mark.parametrize("pages", GROUPS, ids=lambda pages: pages[0].stem)
def test_blocks_run(pages, prepared, tmp_path, hub):
    run(pages, prepared, tmp_path, hub)


def test_each_picture_of_the_gallery_stands_below_the_lines_that_make_it():
    text = GALLERY.read_text()
    assert len(pictures(text)) >= 8
    for picture in pictures(text):
        above = text[: text.index(f"({picture})")]
        assert picture in "".join(block for _, block in blocks(above)), picture
    assert {path.name for path in (GALLERY.parent / "gallery").iterdir()} == {
        Path(name).name for name in pictures(text)
    }


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_training_commands_of_all_pages_train(page, prepared, tmp_path, hub):
    run([page], prepared, tmp_path, hub, "train")
    if page == GALLERY:
        for picture in pictures(page.read_text()):
            assert size_of(tmp_path / "gallery" / picture) == size_of(page.parent / picture), picture


def test_lines_are_commands():
    """Continued lines are joined, and comments are removed."""
    page = "Text:\n\n    diffae a \\\n        --b 1   # why\n    pip install -e .\n\n```python\nx = 1\n```\n"
    (shell, lines), (python, code) = blocks(page)
    assert (shell, commands(lines)) == ("shell", [["diffae", "a", "--b", "1"], ["pip", "install", "-e", "."]])
    assert (python, code) == ("python", "x = 1\n")
    assert commands("runs/NAME/\n  config.json, it's text") == []
