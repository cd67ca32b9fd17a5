"""Serves the page on this machine, until it is stopped."""

import contextlib
import importlib.metadata
import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffae_jax.demo.checks import MOST_BYTES
from diffae_jax.demo.guard import HOSTS, Guard
from diffae_jax.demo.images import ChosenImage, ImageSet
from diffae_jax.demo.sessions import DECODE_BATCH, Session, Shared
from diffae_jax.demo.snippets import Origin
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import reason_of
from diffae_jax.runtime.interrupts import if_interrupted

HOST = "127.0.0.1"  # only this machine reaches the page
OLDEST_GRADIO = (6, 16)
STYLE = Path(__file__).with_name("style.css")


def check_installed() -> None:
    """Raises UserError if Gradio is missing or too old."""
    oldest = ".".join(map(str, OLDEST_GRADIO))
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError('The page needs Gradio, which is missing: pip install "diffae_jax[demo]".') from error
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_GRADIO:
        raise UserError(f'The page needs Gradio {oldest} or later, not {version}: pip install "gradio>={oldest}".')


def check_port(port: int) -> None:
    """Raises UserError if the page cannot be served at a port."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise _port_error(port, error) from error


def _port_error(port: int, error: OSError) -> UserError:
    return UserError(f"The page cannot be served at port {port} ({reason_of(error)}). Choose another one with --port.")


def serve(model: DiffAE, location: str, images: ImageSet, port: int) -> None:
    """Serves the page until SIGINT or SIGTERM, and prints its address.

    Args:
        model: the model.
        location: the model as `DiffAE.load` takes it, for the code on the page.
        images: the images that the page starts with.
        port: the port on this machine.

    Raises:
        UserError: if the port is in use, or if the page does not answer there.
    """
    with if_interrupted(lambda: "the page is closed."), served(model, location, images, port) as address:
        say(f"Open {address} in a browser on this machine. Ctrl-C closes the page.")
        threading.Event().wait()


@contextlib.contextmanager
def served(model: DiffAE, location: str, images: ImageSet, port: int) -> Iterator[str]:
    """Compiles the model, serves the page in threads, and yields its address; see `serve`."""
    import gradio as gr
    from starlette.middleware import Middleware

    from diffae_jax.demo.page import build

    with tempfile.TemporaryDirectory(prefix="diffae-demo-") as name, _gradio_settings(name):
        folder = Path(name)
        shared = Shared(model, location, images, folder)
        warm_up(shared)
        page = build(shared)
        # comes with Gradio; the file of weight 600, which is the default, lacks most letters
        font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                max_file_size=MOST_BYTES,
                app_kwargs={"middleware": [Middleware(Guard)]},
                theme=gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=font),
                css_paths=STYLE,
            )
        except OSError as error:  # something else took the port meanwhile
            raise _port_error(port, error) from error
        except Exception as error:  # Gradio raises errors of any type if its own requests to the page fail
            raise UserError(
                f"The page does not answer at {HOST}:{port} ({shown(str(error))}). Allow programs on this machine to "
                f"connect to it, or choose another port with --port."
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _gradio_settings(folder: str) -> Iterator[None]:
    """Sets what Gradio reads: the folder of uploads, and that the page needs no proxy."""
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    settings = {"GRADIO_TEMP_DIR": folder, "no_proxy": ",".join(filter(None, [no_proxy, *HOSTS]))}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def warm_up(shared: Shared) -> None:
    """Compiles what the page calls first, so that the first click is not slow."""
    from diffae_jax.demo.tabs import reconstruct, sample

    session = Session(shared)
    if session.chosen is None:
        session.chosen = ChosenImage(np.zeros(shared.model.image_shape, shared.model.transform.dtype), "", Origin(""))
    calls = {
        "encoding and inversion": lambda: session.codes(session.chosen),
        "decoding": lambda: session.reconstruction(session.chosen),
        "variations": lambda: reconstruct.z_alone(session),
        "films": lambda: session.decode(*session.repeated_codes(session.chosen, DECODE_BATCH)),
    }
    if sample.suits(shared.model):
        calls["samples"] = lambda: sample.draw_all(session, 0, DECODE_BATCH)
    for i, (what, call) in enumerate(calls.items(), 1):
        say(f"Compiling {i} of {len(calls)}: {what}.")
        call()
    session.close()
