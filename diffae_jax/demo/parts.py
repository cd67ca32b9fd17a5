"""Components that several tabs have: pictures, buttons to download files, and code."""

from pathlib import Path

import gradio as gr

from diffae_jax.demo.tiles import ON_LOAD

NAMES = {"png": "PNG", "gif": "GIF", "npz": "npz"}


def add_tiles(name: str) -> gr.HTML:
    """Adds a place for pictures as HTML. Its event `select` has the index of a clicked tile."""
    return gr.HTML(js_on_load=ON_LOAD, apply_default_css=False, elem_id=name, elem_classes="pictures")


def add_button(label: str, name: str) -> gr.Button:
    """Adds a small button."""
    return gr.Button(label, size="sm", scale=0, min_width=130, elem_id=name)


def add_downloads(*kinds: str) -> list[gr.DownloadButton]:
    """Adds a button for each kind of file. It cannot be pressed until it has a file."""
    settings = dict(size="sm", scale=0, min_width=130, interactive=False)
    return [gr.DownloadButton(f"Download {NAMES[kind]}", elem_classes=f"get-{kind}", **settings) for kind in kinds]


def ready(path: Path | None) -> gr.DownloadButton:
    """Returns a button with a file, or without one if the path is None."""
    return gr.DownloadButton(value=path, interactive=path is not None)


def add_code() -> gr.Code:
    """Adds the code that does what the tab does, folded."""
    with gr.Accordion("Code", open=False):
        return gr.Code(language="python", interactive=False, show_label=False, lines=3)
