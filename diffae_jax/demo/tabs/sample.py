"""Sample: new images, all or of one class."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np

from diffae_jax.data.pictures import image_grid
from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.parts import add_code, add_downloads, add_tiles, ready
from diffae_jax.demo.sessions import DECODE_BATCH, Session
from diffae_jax.demo.snippets import quoted, snippet
from diffae_jax.demo.tiles import tile_of, tiles
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.probes import Probe, directions
from diffae_jax.runtime.errors import UserError, shown

TITLE = "Sample"
COUNTS = (8, 16, 32)
ALL = ("all", "")  # text and value of the menu, instead of a class
MOST_TRIES = 100  # z that are drawn for each image of a class

CODE = """
images = model.sample({count}, seed={seed}, num_steps={steps})
image_grid(images).save("samples.png")
"""
CODE_OF_CLASS = """
{fits}images = model.sample_class({count}, {name}, seed={seed}, num_steps={steps}, max_tries={tries})
image_grid(images).save("samples.png")
"""


def suits(model: DiffAE) -> bool:
    """A model with a prior draws z. A DDIM baseline needs none."""
    return model.prior is not None or model.config.model.z_dim is None


def add(page: Page) -> None:
    """Adds the seed, the number of images, the class, the downloads and the code."""
    names = binary(directions(page.shared.model.probes))
    has_classes = page.shared.model.statistics is not None
    with gr.Row(elem_classes="settings"):
        seed = gr.Number(0, precision=None, label="Seed", min_width=120, elem_id="seed")
        count = gr.Radio(list(COUNTS), value=COUNTS[1], label="Images", elem_id="count")
        kind = gr.Dropdown(
            [ALL, *names], value=ALL[1], label="Class", visible=has_classes, elem_id="class", min_width=160
        )
        draw = gr.Button("Draw", variant="primary", min_width=120, scale=0, elem_id="draw")
    pictures = add_tiles("samples")
    with gr.Row(elem_classes="files"):
        files = add_downloads("png", "npz")
    code = add_code()

    def opened(session: Session, number: Any, of: Any, name: Any) -> tuple[Any, ...]:
        return gr.Dropdown(choices=[ALL, *binary(session.directions())]), *show(session, number, of, name)

    page.follow(TITLE, opened, [seed, count, kind], [kind, pictures, *files, code])
    page.listen(draw.click, show, [seed, count, kind], [pictures, *files, code])


def show(session: Session, seed: Any, count: Any, name: Any) -> tuple[Any, ...]:
    """Returns the pictures as HTML, the files and the code."""
    seed = checks.seed(seed)
    if count not in COUNTS:
        raise UserError(f"The number of images must be one of {', '.join(map(str, COUNTS))}, not {shown(count)}.")
    if name != ALL[1]:
        checks.names_of([name], binary(session.directions()), "class", 1)
    images = draw_all(session, seed, count) if name == ALL[1] else draw_class(session, seed, count, name)
    png, npz = session.downloads.png("samples", image_grid(images)), session.downloads.npz("samples", images=images)
    pictures = [tile_of(image, slice=session.slice) for image in images]
    return tiles(pictures), ready(png), ready(npz), code_for(session, seed, count, name)


def binary(probes: Mapping[str, Probe]) -> dict[str, Probe]:
    """Returns the directions of labels with two values, which samples may have."""
    return {name: probe for name, probe in probes.items() if probe.kind == "binary"}


def draw_all(session: Session, seed: int, count: int) -> np.ndarray:
    """Draws new images in batches of one size, so that one function is compiled."""
    draw = session.model.sample
    parts = [
        session.once(
            ("sample", seed, first), lambda first=first: draw(DECODE_BATCH, seed, session.random_steps, first=first)
        )
        for first in range(0, count, DECODE_BATCH)
    ]
    return np.concatenate(parts)


def draw_class(session: Session, seed: int, count: int, name: str) -> np.ndarray:
    """Draws new images that a probe accepts."""
    probe = session.directions()[name]
    key = "sample of class", seed, count, probe.weights.tobytes()
    return session.once(
        key,
        lambda: session.model.sample_class(
            count, probe, seed=seed, num_steps=session.random_steps, max_tries=MOST_TRIES
        ),
    )


def code_for(session: Session, seed: int, count: int, name: str) -> str:
    """Returns code that makes the same PNG."""
    settings = dict(count=count, seed=seed, steps=session.random_steps)
    if name == ALL[1]:
        return snippet(session.shared.location, [], CODE.format(**settings), ", image_grid")
    origins, fits = session.code_of_probes([name])
    body = CODE_OF_CLASS.format(fits=fits, name=quoted(name), tries=MOST_TRIES, **settings)
    return snippet(session.shared.location, origins, body, ", image_grid")
