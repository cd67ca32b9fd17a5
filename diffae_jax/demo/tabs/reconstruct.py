"""Reconstruct: an image from z and its own x_T, from z alone, and the error of the first."""

from typing import Any

import gradio as gr
import numpy as np

from diffae_jax.data.pictures import difference_map, image_rows
from diffae_jax.data.transforms import to_float
from diffae_jax.demo.events import Page
from diffae_jax.demo.parts import add_code, add_downloads, add_tiles, ready
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.snippets import snippet
from diffae_jax.demo.tiles import tile_of, tiles
from diffae_jax.evaluation.metrics import mse
from diffae_jax.inference.diffae import DiffAE

TITLE = "Reconstruct"
NUM_VARIATIONS = 3

CODE = """
image = {image}
z = model.encode(image)
x_T = model.invert(image, z{steps})
reconstruction = model.decode(z, x_T{steps})
z_alone = model.variations(image, {variations}, num_steps={random_steps}).images[0]

difference = difference_map(image[None], reconstruction)
columns = ["image", "z and x_T", difference.name, *["z alone"] * {variations}]
row = [image, reconstruction[0], difference.images[0], *z_alone]
image_rows({{"": row}}, columns).save("reconstruction.png")
"""
CODE_WITHOUT_Z = """
image = {image}
x_T = model.invert(image{steps})
reconstruction = model.decode(None, x_T{steps})

difference = difference_map(image[None], reconstruction)
columns = ["image", "x_T", difference.name]
image_rows({{"": [image, reconstruction[0], difference.images[0]]}}, columns).save("reconstruction.png")
"""


def suits(model: DiffAE) -> bool:
    """Every model reconstructs."""
    return True


def add(page: Page) -> None:
    """Adds the pictures, the downloads and the code."""
    gr.Markdown(
        "z holds what the image shows, and x_T holds the details. From both, the model restores the image. From z "
        "with random x_T, it makes images that differ in details."
    )
    pictures = add_tiles("reconstruction")
    with gr.Row(elem_classes="files"):
        files = add_downloads("png", "npz")
    code = add_code()
    page.follow(TITLE, show, outputs=[pictures, *files, code])


def show(session: Session) -> tuple[Any, ...]:
    """Returns the pictures as HTML, the files and the code."""
    image = session.need_image()
    reconstruction = session.reconstruction(image)
    others = z_alone(session)
    difference = difference_map(image.image[None], reconstruction[None])
    error = mse(to_float(image.image[None]), reconstruction[None])[0]
    row = [image.image, reconstruction, difference.images[0], *others]
    columns = ["image", "z and x_T" if len(others) else "x_T", difference.name, *["z alone"] * len(others)]
    captions = [columns[0], f"{columns[1]}, MSE {error:.2g}", *columns[2:]]
    pictures = [
        tile_of(each, caption, slice=session.slice, size="large") for each, caption in zip(row, captions, strict=True)
    ]
    z, x_T = session.codes(image)
    arrays = dict(image=image.image, z=z, x_T=x_T, reconstruction=reconstruction, z_alone=others)
    png = session.downloads.png("reconstruction", image_rows({"": row}, columns))
    npz = session.downloads.npz("reconstruction", **arrays)
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


def code_for(session: Session) -> str:
    """Returns code that makes the same PNG."""
    origin = session.need_image().origin
    code = CODE if session.model.config.model.z_dim is not None else CODE_WITHOUT_Z
    body = code.format(
        image=origin.expression,
        steps=session.steps_in_code,
        random_steps=session.random_steps,
        variations=NUM_VARIATIONS,
    )
    return snippet(session.shared.location, [origin], body, ", difference_map, image_rows")
