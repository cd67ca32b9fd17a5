"""The notebooks run from a clean kernel, and their stored outputs belong to their code."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from notebooks import links, run
from tests.environment import ROOT, environment
from tests.test_words import RETIRED, prose_of_page, too_long

MAX_BYTES = 600_000
SHORT = {  # parameters for few steps of few images
    "quickstart": {"STEPS": 2},
    "reconstruct_and_interpolate": {"STEPS": 2, "STEP_COUNTS": (2,), "NUM_VARIATIONS": 6, "NUM_FRAMES": 4},
    "edit_attributes": {"STEPS": 2, "STRENGTHS": (0, 1.0)},
    "sample": {
        "STEPS": 2,
        "STEP_COUNTS": (2,),
        "MANY_STEPS": 2,
        "NUM_IMAGES": 9,
        "PROBES": ("digit=0",),
        "PER_LABEL": 2,
    },
    "train_on_your_images": {
        "CONFIG": str(ROOT / "tests" / "tiny.py"),
        "STEPS": 2,
        "NUM_IMAGES": 192,
        "NUM_LATENTS": 2560,
    },
    "official_weights": {"STEPS": 2},
    "build_on_it": {"STEPS": 2, "NUM_UPDATES": 2, "NUM_TRAINING_STEPS": 3, "SEARCH_STEPS": 2},
}
NAMES = run.names()
every_notebook = pytest.mark.parametrize("name", NAMES)


def executed(name, folder, parameters):
    """Executes a notebook in an empty folder, as a person would who has installed the package."""
    notebook = run.read(name)
    run.set_parameters(notebook, parameters)
    run.execute(notebook, folder, environment(PYTHONPATH=str(ROOT)))
    return notebook


def kinds(notebook):
    """The kinds of outputs of each cell."""
    return [[output.get("name") or sorted(output.data) for output in cell.outputs] for cell in run.code_cells(notebook)]


def text_of(notebook):
    """The text that the cells print."""
    outputs = [output for cell in run.code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_all_are_here():
    assert set(NAMES) == set(SHORT)
    table = (run.FOLDER / "README.md").read_text()
    assert [name for name in NAMES if f"[{name}]({name}.ipynb)" not in table] == []


# pages of the docs have the same calls
SIMILAR = ("reconstruct_and_interpolate", "sample", "train_on_your_images", "build_on_it")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in SIMILAR else ()) for n in NAMES])
def test_it_runs_in_short(name, tmp_path):
    notebook = executed(name, tmp_path, SHORT[name])
    assert any(
        "image/png" in output.get("data", ()) for cell in notebook.cells for output in cell.get("outputs", ())
    ) or (name == "official_weights")


@pytest.mark.long
@every_notebook
def test_it_runs_with_its_own_parameters_and_has_outputs_of_the_same_kinds(name, tmp_path):
    assert kinds(executed(name, tmp_path, {})) == kinds(run.read(name))


def test_official_weights_are_imported_if_they_are_there(tmp_path):
    for name, source in (("latent", "autoenc_latent"), ("cls", "classifier")):
        folder = tmp_path / "checkpoints" / f"ffhq128_autoenc_{name}"
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "parity" / "mini16" / f"{source}.ckpt", folder / "last.ckpt")
    notebook = executed("official_weights", tmp_path, {"STEPS": 2})
    assert "ffhq128_autoenc_latent: found." in text_of(notebook)
    assert kinds(notebook)[-2:] == [[["image/png", "text/plain"]]] * 2
    assert (tmp_path / "bundles" / "ffhq128_autoenc_latent" / "manifest.json").exists()


@every_notebook
def test_stored_outputs_belong_to_the_code(name):
    """They come from one run, from the first cell to the last, of the code that is stored."""
    notebook, path = run.read(name), run.FOLDER / f"{name}.ipynb"
    cells = run.code_cells(notebook)
    assert notebook.metadata[run.CODE] == run.code_hash(notebook), f"python -m notebooks.run {name} stores new outputs"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert path.stat().st_size <= MAX_BYTES
    outputs = json.dumps([cell.outputs for cell in cells])
    assert re.findall(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|Users|private|var|opt)/[\w./-]*", outputs) == []


def test_a_changed_cell_makes_outputs_stale():
    notebook = run.read("quickstart")
    run.code_cells(notebook)[-1].source += "\nprint(1)"
    assert notebook.metadata[run.CODE] != run.code_hash(notebook)


@every_notebook
def test_its_words_are_those_of_the_docs(name):
    text = "\n\n".join(cell.source for cell in run.read(name).cells if cell.cell_type == "markdown")
    assert [match[0] for match in RETIRED.finditer(text)] == []
    assert too_long(prose_of_page(text)) == []


# --- the first cell ------------------------------------------------------------------------------


def test_the_first_cell_is_the_same_in_all():
    assert len({run.code_cells(run.read(name))[0].source for name in NAMES}) == 1


MACHINES = {  # what nvidia-smi answers (None: there is none), and the extras that pip is asked for
    "CPU": (None, "notebooks"),
    "T4": ("echo 7.5", "notebooks,cuda12"),
    "V100": ("echo 7.0", "notebooks,v100"),
    "driver without GPU": ("echo NVIDIA-SMI has failed; exit 9", "notebooks"),
}


def first_cell(folder, address):
    """Runs the first cell without the package, and with a pip that prints what it is asked for."""
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text("import sys; print(*sys.argv[1:])")
    source = run.code_cells(run.read("quickstart"))[0].source
    source = re.sub(r'^REPOSITORY = ".*"', f'REPOSITORY = "{address}"', source, flags=re.MULTILINE)
    settings = {"PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, "-S", "-c", source]  # -S: without installed packages
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_first_cell_installs_what_suits_the_machine(machine, tmp_path):
    answer, extras = MACHINES[machine]
    if answer:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    done = first_cell(tmp_path, "https://example.org/x/y")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"install --quiet diffae_jax[{extras}] @ git+https://example.org/x/y"


def test_the_first_cell_asks_for_an_address_that_is_missing(tmp_path):
    done = first_cell(tmp_path, "")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Write the address of the git repository" in done.stderr


# --- links ---------------------------------------------------------------------------------------


@every_notebook
def test_links_are_those_of_the_repository(name):
    """If this fails, CITATION.cff has a new address: run python -m notebooks.links."""
    notebook = run.read(name)
    links.link(name, notebook, links.address())
    assert notebook == run.read(name)


def test_links_follow_the_address():
    name, notebook = "quickstart", run.read("quickstart")
    links.link(name, notebook, "https://github.com/x/y")
    assert notebook.cells[0].source.endswith(
        "(https://colab.research.google.com/github/x/y/blob/main/notebooks/quickstart.ipynb)"
    )
    assert '\nREPOSITORY = "https://github.com/x/y"  #' in run.code_cells(notebook)[0].source
    assert notebook.metadata[run.CODE] == run.code_hash(notebook), "the address makes outputs stale"
    links.link(name, notebook, "https://example.org/x/y")
    assert "Upload notebook" in notebook.cells[0].source, "Colab cannot open it by its address"
    links.link(name, notebook, "")
    assert 'REPOSITORY = ""' in run.code_cells(notebook)[0].source


def test_the_address_is_read_from_the_citation(tmp_path):
    citation = tmp_path / "CITATION.cff"
    citation.write_text((ROOT / "CITATION.cff").read_text() + 'repository-code: "https://github.com/x/y/"\n')
    assert links.address(citation) == "https://github.com/x/y"
