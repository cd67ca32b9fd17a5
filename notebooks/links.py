"""Writes the address of the repository into the notebooks, for Colab.

    python -m notebooks.links

The address is that of `repository-code` in CITATION.cff. Without one, the badges open Colab, and
the notebooks ask for the address before they install anything.
"""

import re
from pathlib import Path

import nbformat
import yaml

from notebooks.run import CODE, FOLDER, code_cells, code_hash, names, read, write

CITATION = FOLDER.parent / "CITATION.cff"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
COLAB = "https://colab.research.google.com"
GITHUB = "https://github.com/"


def address(citation: Path = CITATION) -> str:
    """Returns the address of the repository, or "" if CITATION.cff does not have it."""
    return yaml.safe_load(citation.read_text()).get("repository-code", "").rstrip("/")


def badge(name: str, repository: str) -> str:
    """Returns the first cell of a notebook. Colab opens notebooks of GitHub by their address."""
    if repository.startswith(GITHUB):
        path = f"{repository.removeprefix(GITHUB)}/blob/main/notebooks/{name}.ipynb"
        return f"{BADGE}({COLAB}/github/{path})"
    return f"{BADGE}({COLAB}) In Colab, choose *File > Upload notebook* and select this file."


def link(name: str, notebook: nbformat.NotebookNode, repository: str) -> None:
    """Writes the badge of a notebook, and the address that its first code cell installs from."""
    is_current = notebook.metadata.get(CODE) == code_hash(notebook)
    notebook.cells[0].source = badge(name, repository)
    install = code_cells(notebook)[0]
    install.source = re.sub(r'^REPOSITORY = ".*?"', f'REPOSITORY = "{repository}"', install.source, flags=re.MULTILINE)
    if is_current:  # the address changes no output
        notebook.metadata[CODE] = code_hash(notebook)


def main() -> None:
    """Writes the address into all notebooks."""
    for name in names():
        notebook = read(name)
        link(name, notebook, address())
        write(name, notebook)


if __name__ == "__main__":
    main()
