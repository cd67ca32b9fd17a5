"""Reconstruct: an image from z and its own x_T, from z alone, and the error of the first."""

from typing import Any

import gradio as gr
import numpy as np

from diffae_jax.data.transforms import to_float
from diffae_jax.demo.events import Page
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.snippets import snippet
from diffae_jax.demo.tabs.parts import SAVE_GRID, add_code, add_downloads, ready
from diffae_jax.demo.tiles import tile_of, tiles
from diffae_jax.evaluation.metrics import mse
from diffae_jax.inference.diffae import DiffAE

TITLE = "Reconstruct"
NUM_VARIATIONS = 3
BRIGHTER = 5  # how much the error map is amplified

CODE = """
z = model.encode(image)
x_T = model.invert(image, z{steps})
reconstruction = model.decode(z, x_T{steps})
z_alone = model.variations(image, {variations}, num_steps={random_steps}).images[0]
save_grid(Path("reconstruction.png"), np.concatenate([reconstruction, z_alone]))
"""
CODE_WITHOUT_Z = """
x_T = model.invert(image{steps})
reconstruction = model.decode(None, x_T{steps})
save_grid(Path("reconstruction.png"), reconstruction)
"""


def suits(model: DiffAE) -> bool:
    """Every model reconstructs."""
    return True


def add(page: Page) -> None:
    """Adds the pictures, the downloads and the code."""
    gr.Markdown(
        "z holds what the image shows, and x_T holds the details. With both, the model restores the image. With z "
        "and random x_T, only the details change."
    )
    pictures = gr.HTML(elem_id="reconstruction", apply_default_css=False)
    files = add_downloads("png", "npz")
    code = add_code()
    page.follow(TITLE, show, outputs=[pictures, *files, code])


def show(session: Session) -> tuple[Any, ...]:
    """Returns the pictures as HTML, the files and the code."""
    image = session.need_image()
    original = to_float(image.image)
    own = session.reconstruction(image)
    error = mse(original[None], own[None])[0]
    others = z_alone(session)
    pictures = [
        tile_of(original, "image", slice=session.slice, size="large"),
        tile_of(own, f"z and x_T, MSE {error:.2g}", slice=session.slice, size="large"),
        tile_of(error_map(original, own), f"error, {BRIGHTER} times", slice=session.slice, size="large"),
        *(tile_of(other, f"z alone, {i}", slice=session.slice, size="large") for i, other in enumerate(others, 1)),
    ]
    z, x_T = session.codes(image)
    png = session.downloads.png("reconstruction", np.concatenate([own[None], others]))
    npz = session.downloads.npz("reconstruction", image=original, z=z, x_T=x_T, reconstruction=own, z_alone=others)
    return tiles(pictures, "large"), ready(png), ready(npz), code_for(session)


def z_alone(session: Session) -> np.ndarray:
    """Returns decodings of z with several random x_T, or none if the model has no z."""
    model, image = session.model, session.need_image()
    if model.config.model.z_dim is None:
        return np.zeros((0, *model.image_shape), np.float32)
    return session.once(
        ("variations", image.digest),
        lambda: model.variations(image.image[None], NUM_VARIATIONS, session.random_steps).images[0],
    )


def error_map(image: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Returns the absolute error, amplified, as an image in [-1, 1]. Black is no error."""
    return np.minimum(BRIGHTER * np.abs(image - reconstruction), 2) - 1


def code_for(session: Session) -> str:
    """Returns code that makes the same PNG."""
    has_z = session.model.config.model.z_dim is not None
    body = (CODE if has_z else CODE_WITHOUT_Z).format(
        steps=session.steps_in_code, random_steps=session.random_steps, variations=NUM_VARIATIONS
    )
    origin = session.need_image().origin
    body = f"image = {origin.expression}\n{body.strip()}"
    return snippet(session.shared.location, [origin], body, *SAVE_GRID, *["import numpy as np"] * has_z)
