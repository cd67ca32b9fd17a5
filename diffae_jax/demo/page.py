"""Puts the page together: the model, the image that all tabs use, and the tabs."""

import gradio as gr

from diffae_jax.data.transforms import format_size
from diffae_jax.demo.events import Page
from diffae_jax.demo.picker import add_picker, row_of_images
from diffae_jax.demo.sessions import Session, Shared
from diffae_jax.demo.tabs import edit, explore, folder, interpolate, reconstruct, sample
from diffae_jax.demo.tiles import escaped
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.probes import directions
from diffae_jax.runtime.errors import counted, shown

TABS = (reconstruct, interpolate, edit, sample, explore, folder)  # folder needs the tab edit
MOST_WAITING = 64  # events in the queue
MOST_AT_ONCE = 4  # events of a kind that are answered at a time
REMOVE_EVERY, REMOVE_AFTER = 3600, 7 * 24 * 3600  # seconds, of files that no session removed


def build(shared: Shared) -> gr.Blocks:
    """Returns the page for a model. It has the tabs that suit the model."""
    model = shared.model
    title = f"{shown(model.config.name)} - diffae"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(REMOVE_EVERY, REMOVE_AFTER)) as blocks:
        page = Page(shared)
        gr.HTML(head(model), elem_classes="head", padding=False)
        page.picker = add_picker(page)
        with gr.Tabs():
            for tab in TABS:
                if tab.suits(model):
                    is_visible = tab is not edit or bool(directions(model.probes))
                    with gr.Tab(tab.TITLE, id=tab.TITLE, visible=is_visible) as page.tabs[tab.TITLE]:
                        tab.add(page)

        def start(session: Session) -> tuple[str, int]:
            session.tab = reconstruct.TITLE
            session.version += 1
            return row_of_images(session, session.chosen), session.version

        def leave(request: gr.Request) -> None:
            page.sessions.close(request.session_hash)

        page.listen(blocks.load, start, outputs=[page.picker, page.changed])
        blocks.unload(leave)
    return blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=MOST_AT_ONCE, api_open=False)


def head(model: DiffAE) -> str:
    """Returns the name of a model and its description as HTML."""
    return f"<h1>{escaped(shown(model.config.name))}</h1><p>{describe(model)}</p>"


def describe(model: DiffAE) -> str:
    """Describes a model in one line."""
    *size, channels = model.image_shape
    z_dim = model.config.model.z_dim
    z = "It has no z." if z_dim is None else f"z has {counted(z_dim, 'number')}."
    return f"A diffusion autoencoder for images of {format_size(size)} in {counted(channels, 'channel')}. {z}"
