"""Which tabs a model has, and what stops the page before or while it is served."""

import dataclasses
import importlib.util
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from diffae_jax.demo.images import ImageSet, images_at, no_images
from diffae_jax.demo.page import build
from diffae_jax.demo.serving import check_installed, check_port
from diffae_jax.demo.sessions import Session, Shared
from diffae_jax.demo.snippets import Origin
from diffae_jax.runtime.errors import UserError
from tests.demo.models import model_with_probes
from tests.environment import ROOT, environment
from tests.random_models import random_model
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

    model = random_model(one_device, image_shape=(4, 4, 4, 1))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 4, 4, 1), np.uint8)
    volumes = ImageSet(images, ["a", "b"], [Origin("a"), Origin("b")], {}, model.encode(images), Origin("[a, b]"))
    page = build(shared_of(model, tmp_path, volumes))
    sliders = {each["props"].get("elem_id"): each["props"] for each in page.config["components"]}
    assert (sliders["slice"]["visible"], sliders["slice"]["maximum"], sliders["slice"]["value"]) == (True, 3, 2)

    session = Session(shared_of(model, tmp_path, volumes))
    session.num_steps = 2
    pictures, *_ = reconstruct.show(session)
    session.slice = 0
    assert reconstruct.show(session)[0] != pictures


def test_without_gradio_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "diffae_jax\[demo\]"'):
        check_installed()


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
        env=environment(TMPDIR=str(tmp_path / "temporary")),
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
