"""The documentation site: faults that fail the build, and pages on screens of both sizes."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading

import pytest

from tests import browser
from tests.environment import ROOT

COPIED = (
    "docs",
    "launch",
    "benchmarks",
    "notebooks",
    "diffae_jax",
    "configs",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
COPIED += ("CITATION.cff", "LICENSE", "mkdocs.yml", "tests")
PHONE, DESKTOP = {"width": 400, "height": 800}, {"width": 1280, "height": 800}


def build(folder, *arguments):
    """Builds the site of a checkout; returns the code and what was printed."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    return done.returncode, done.stdout


@pytest.fixture(scope="session")
def site(made_once):
    def fill(folder):
        code, output = build(ROOT, "--site-dir", str(folder))
        assert code == 0, output

    return made_once("site", fill)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return folder


def test_pages_have_what_the_code_declares(site):
    """The reference is made from docstrings, parsers and keys."""
    from diffae_jax.cli import COMMANDS
    from diffae_jax.config.keys import FLAT_KEYS

    model = (site / "reference" / "diffae" / "index.html").read_text()
    for name in ("encode", "invert", "decode", "edit", "sample_class", "principal_components"):
        assert f'id="diffae_jax.inference.diffae.DiffAE.{name}"' in model
    commands = (site / "reference" / "command_line" / "index.html").read_text()
    assert all(f'id="diffae-{name}"' in commands for name in COMMANDS)
    assert "<code>--strength S</code>" in commands
    keys = (site / "config" / "index.html").read_text()
    assert [name for name in FLAT_KEYS if name not in keys] == []


FAULTS = {  # what is added to a page, and what the build then reports
    "a link": ("[a](missing.md)", "missing.md"),
    "an anchor": ("[a](edit.md#missing)", "does not contain an anchor '#missing'"),
    "a picture": ("![a](missing.png)", "missing.png"),
    "a file": ("[a](../diffae_jax/missing.py)", "diffae_jax/missing.py, which does not exist"),
    "a page": ("", "lonely.md"),
    "a docstring": ("", "diffae_jax.diffusion.interpolation.undocumented has no docstring"),
}


def test_build_refuses_every_fault(checkout):
    """Each fault of a page or docstring is a warning with its name. The build ends with code 1."""
    with (checkout / "docs" / "sample.md").open("a") as page:
        page.write("\n" + "\n\n".join(added for added, _ in FAULTS.values()) + "\n")
    with (checkout / "diffae_jax" / "diffusion" / "interpolation.py").open("a") as code:
        code.write("\n\ndef undocumented(a):\n    return a\n")
    (checkout / "docs" / "lonely.md").write_text("# Lonely\n")
    status, output = build(checkout)
    assert status == 1
    warnings = [text for text in re.split(r"^(?=[A-Z]+ +- )", output, flags=re.MULTILINE) if text.startswith("WARNING")]
    for fault, (_, message) in FAULTS.items():
        assert sum(message in text for text in warnings) == 1, f"{fault}:\n{output}"
    assert len(warnings) == len(FAULTS), output


def test_pages_fit_screens_and_ask_no_other_server(site, address):
    with browser.launched() as chromium:
        for size in (PHONE, DESKTOP):
            page = chromium.new_page(viewport=size)
            asked = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            for name in ("", "quickstart/", "edit/", "reference/diffae/", "reference/command_line/", "config/"):
                page.goto(f"{address}/{name}")
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], (name, size)
                pictures = "Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
                page.wait_for_load_state("networkidle")
                assert page.evaluate(pictures) == []
            assert [url for url in asked if not url.startswith((address, "data:"))] == []
            page.close()


@pytest.fixture
def address(site):
    """Serves the site on loopback; returns its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
