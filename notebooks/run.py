"""Executes notebooks from a clean kernel, and stores their outputs.

    python -m notebooks.run                      # all
    python -m notebooks.run quickstart sample    # some, by name

Needs the extra `notebooks`. Each notebook runs in an empty folder, which is removed.
"""

import argparse
import ast
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
PARAMETERS = "parameters"  # the tag of the cell that sets them
WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without a running kernel
CODE = "diffae_jax_code"  # in the metadata of a notebook: the hash of the code that made the outputs
SECONDS = 900  # for a cell


def names() -> list[str]:
    """Returns the names of the notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    """Reads a notebook by its name."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def write(name: str, notebook: nbformat.NotebookNode) -> None:
    """Writes a notebook, by its name."""
    nbformat.validate(notebook)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Returns the cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Returns a hash of the code, which shows whether stored outputs belong to it."""
    return hashlib.sha256("\n".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def set_parameters(notebook: nbformat.NotebookNode, values: Mapping[str, Any]) -> None:
    """Changes values in the cell with the tag `parameters`. Raises KeyError for other names."""
    (cell,) = (cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ()))
    statements = ast.parse(cell.source).body
    defined = {target.id for statement in statements for target in statement.targets}
    if unknown := values.keys() - defined:
        raise KeyError(f"The notebook has no parameters {', '.join(sorted(unknown))}.")
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())


def execute(notebook: nbformat.NotebookNode, folder: Path, environment: Mapping[str, str]) -> None:
    """Executes a notebook in a folder, from a clean kernel. Outputs replace those it has.

    Raises CellExecutionError if a cell does.
    """
    settings = dict(timeout=SECONDS, kernel_name="python3", record_timing=False)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **settings)
    client.execute(env=dict(environment))
    clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Removes widgets and second copies of pictures, and adds the hash of the code."""
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", ())]
        for output in cell.outputs:
            if "image/png" in output.get("data", ()):
                output.data.pop("image/jpeg", None)  # of a PIL image, IPython makes both
    notebook.metadata.pop("widgets", None)
    notebook.metadata[CODE] = code_hash(notebook)


def main() -> None:
    """Executes the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description="Executes notebooks and stores their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all, which are {', '.join(names())}")
    for name in parser.parse_args().names or names():
        notebook = read(name)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder), os.environ)
        write(name, notebook)
        print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
