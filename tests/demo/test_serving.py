"""Which tabs a model has, and what stops the page before or while it is served."""

import asyncio
import dataclasses
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from diffae_jax.demo.guard import Guard
from diffae_jax.demo.images import images_at, no_images
from diffae_jax.demo.page import build
from diffae_jax.demo.serving import check_installed, check_port
from diffae_jax.demo.sessions import Session, Shared
from diffae_jax.runtime.errors import UserError
from tests.demo.models import model_with_probes, volumes
from tests.environment import ROOT, environment
from tests.runs import free_address


def shared_of(model, folder, images=None):
    return Shared(model, "tiny", images or no_images(model), folder)


def tabs_of(model, folder):
    """Returns the titles of the tabs of a page that a person sees."""
    components = build(shared_of(model, folder)).config["components"]
    return [each["props"]["label"] for each in components if each["type"] == "tabitem" and each["props"]["visible"]]


EVERY_TAB = ["Reconstruct", "Interpolate", "Edit", "Sample", "Explore", "Your folder"]


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({}, []),
        ({"prior": None}, ["Sample"]),
        ({"probes": {}}, ["Edit"]),
        ({"prior": None, "statistics": None, "probes": {}}, ["Edit", "Sample", "Explore", "Your folder"]),
    ],
    ids=["everything", "no prior", "no probes", "no statistics"],
)
def test_the_page_shows_what_the_model_has(one_device, tmp_path, settings, hidden):
    model = model_with_probes(one_device, **settings)
    assert tabs_of(model, tmp_path) == [tab for tab in EVERY_TAB if tab not in hidden]


def test_a_volume_has_a_slice(one_device, tmp_path):
    """The slider is there for volumes alone, and another slice is another picture."""
    from diffae_jax.demo.tabs import reconstruct

    model, images = volumes(one_device)
    page = build(shared_of(model, tmp_path, images))
    sliders = {each["props"].get("elem_id"): each["props"] for each in page.config["components"]}
    assert (sliders["slice"]["visible"], sliders["slice"]["maximum"], sliders["slice"]["value"]) == (True, 3, 2)

    session = Session(shared_of(model, tmp_path, images))
    session.num_steps = 2
    pictures, *_ = reconstruct.show(session)
    session.slice = 0
    assert reconstruct.show(session)[0] != pictures


def test_without_gradio_the_command_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r'which is missing: pip install "diffae_jax\[demo\]"'):
        check_installed()


@pytest.mark.parametrize(
    ("version", "is_refused"), [("5.49.1", True), ("6.9.0", True), ("6.16", False), ("7.0b1", False)]
)
def test_an_old_gradio_is_refused(monkeypatch, tmp_path, version, is_refused):
    folder = tmp_path / f"gradio-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: gradio\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    if is_refused:
        with pytest.raises(UserError, match=rf"needs Gradio 6\.16 or later, not {re.escape(version)}"):
            check_installed()
    else:
        check_installed()


def answer_of(app, **headers):
    """Returns the status and the text of an answer to a request with these headers."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(app({"type": "http", "headers": pairs}, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        ({"host": "127.0.0.1:7860"}, 200, "the page"),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200, "the page"),
        ({"host": "127.0.0.1:7860", "content_length": "1000"}, 200, "the page"),
        ({}, 403, "only served at 127.0.0.1 and localhost"),
        ({"host": "evil.example:7860"}, 403, "only served at 127.0.0.1 and localhost"),
        ({"host": "127.0.0.1.evil.example"}, 403, "only served at 127.0.0.1 and localhost"),
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, 403, "Another site"),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, 403, "Another site"),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403, "Another site"),
        ({"host": "127.0.0.1:7860", "content_length": str(2**30 + 1)}, 413, "At most 1 GiB can be uploaded at once"),
        ({"host": "127.0.0.1:7860", "transfer_encoding": "chunked"}, 411, "must state its length"),
    ],
)
def test_only_the_page_itself_sends_requests(headers, status, text):
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the page"})

    answer = answer_of(Guard(page), **headers)
    assert answer[0] == status
    assert text in answer[1]


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} \(Address already in use\). Choose another one with --port"):
            check_port(port)
    check_port(port)


def test_the_command_serves_until_it_is_stopped(one_device, tmp_path):
    """As a person starts it: it listens to this machine alone, and leaves no files."""
    model_with_probes(one_device).save(tmp_path / "bundle")
    port = free_address().rpartition(":")[2]
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffae_jax.cli", "demo", str(tmp_path / "bundle"), "--port", port],
        env=environment(TMPDIR=str(tmp_path / "temporary"), http_proxy="http://127.0.0.1:1", no_proxy=""),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[1] for line in lines if line.startswith("Open "))
        assert address == f"http://127.0.0.1:{port}/"
        assert "tiny - diffae" in urllib.request.urlopen(address).read().decode()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert errors.endswith("SIGTERM: the page is closed.\n")
    assert process.returncode == 128 + 15
    assert [path for path in (tmp_path / "temporary").iterdir() if path.name.startswith("diffae-demo")] == []


def test_a_set_is_at_most_as_large_as_the_page_can_show(one_device, capsys):
    images = images_at(model_with_probes(one_device), "digits")
    assert len(images) == len(images.names) == len(images.z) == 500
    assert "The page shows 500 of 1,797 images, chosen at random." in capsys.readouterr().out
    assert dataclasses.astuple(images.origins[3])[0].startswith("source[")
