"""What several tabs have: the buttons to download files, and the code."""

from pathlib import Path

import gradio as gr

NAMES = {"png": "PNG", "gif": "GIF", "npz": "npz"}


def add_downloads(*kinds: str) -> list[gr.DownloadButton]:
    """Adds a button for each kind of file. It cannot be pressed until it has a file."""
    with gr.Row(elem_classes="downloads"):
        return [
            gr.DownloadButton(
                f"Download {NAMES[kind]}",
                size="sm",
                scale=0,
                min_width=130,
                interactive=False,
                elem_classes=f"get-{kind}",
            )
            for kind in kinds
        ]


def ready(path: Path | None) -> gr.DownloadButton:
    """Returns a button with a file, or without one if the path is None."""
    return gr.DownloadButton(value=path, interactive=path is not None)


def add_code() -> gr.Code:
    """Adds the code that does what the tab does, folded."""
    with gr.Accordion("Code", open=False):
        return gr.Code(language="python", interactive=False, show_label=False, lines=3)
