"""Interpolate: the images between two images, one by one and as a film."""

from typing import Any

import gradio as gr
import numpy as np

from diffae_jax.data.pictures import image_grid, image_rows
from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.images import ChosenImage
from diffae_jax.demo.parts import add_button, add_code, add_downloads, add_tiles, ready
from diffae_jax.demo.picker import row_of_images, shown_images
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.snippets import snippet
from diffae_jax.demo.tiles import film_tile, tile_of, tiles
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.errors import UserError

TITLE = "Interpolate"
NUM_FRAMES = 17

CODE = """
frames = model.interpolate({first}, {second}, num_frames={frames}{steps})
row = frames[[0, {position}, -1]]
image_rows({{"": row}}, ["first", "{position} of {last}", "second"]).save("between.png")
Path("between.gif").write_bytes(film([image_grid(frame[None]) for frame in frames]))
"""


def suits(model: DiffAE) -> bool:
    """Every model interpolates."""
    return True


def add(page: Page) -> None:
    """Adds the second image, the slider, the film, the downloads and the code."""
    gr.Markdown("From the image above to a second one: z moves on a straight line, and x_T on an arc.")
    second = add_tiles("second")
    position = gr.Slider(0, NUM_FRAMES - 1, NUM_FRAMES // 2, step=1, label="Position", elem_id="position")
    pictures = add_tiles("between")
    with gr.Row(elem_classes="files"):
        make_film = add_button("Make a film", "film")
        png, gif, npz = add_downloads("png", "gif", "npz")
    code = add_code()
    shown = [pictures, png, gif, npz, code]

    def choose_second(session: Session, index: Any, frame: Any) -> tuple[Any, ...]:
        choices = shown_images(session)
        session.second = choices[checks.index_below(index, len(choices))]
        return show(session, frame)

    page.follow(TITLE, show, [position], [second, *shown])
    page.listen_click(second, choose_second, [position], [second, *shown])
    page.listen(position.input, show_frame, [position], shown, is_live=True)
    page.listen(make_film.click, show_film, [position], shown)


def show(session: Session, position: Any) -> tuple[Any, ...]:
    """Returns the second images to choose from, and what `show_frame` returns."""
    return row_of_images(session, _pair(session)[1]), *show_frame(session, position)


def show_frame(session: Session, position: Any, gif: Any = None) -> tuple[Any, ...]:
    """Returns the pictures as HTML, the files, of which the film may be missing, and the code."""
    pair = _pair(session)
    position = checks.index_below(position, NUM_FRAMES, "position")
    z, x_T = path(session)
    frame = session.once(
        ("frame", position, *(image.digest for image in pair)),
        lambda: session.decode(None if z is None else z[[position]], x_T[[position]]),
    )[0]
    row = [session.reconstruction(pair[0]), frame, session.reconstruction(pair[1])]
    columns = ["first", f"{position} of {NUM_FRAMES - 1}", "second"]
    pictures = [
        tile_of(image, caption, slice=session.slice, size="largest")
        for image, caption in zip(row, columns, strict=True)
    ]
    pictures += [] if gif is None else [film_tile(gif, "film")]
    png = session.downloads.png("between", image_rows({"": row}, columns))
    arrays = dict(x_T=x_T[position], frame=frame) | ({} if z is None else {"z": z[position]})
    npz = session.downloads.npz("between", **arrays)
    return tiles(pictures, "largest"), ready(png), ready(gif), ready(npz), code_for(session, position)


def show_film(session: Session, position: Any) -> tuple[Any, ...]:
    """Returns what `show_frame` returns, with the film."""
    digests = [image.digest for image in _pair(session)]
    frames = session.once(("film", *digests), lambda: session.decode(*path(session)))
    gif = session.downloads.gif("between", [image_grid(frame[None]) for frame in frames])
    return show_frame(session, position, gif)


def path(session: Session) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns the z and x_T of all frames."""
    (z, x_T), (other_z, other_x_T) = map(session.codes, _pair(session))
    both = None if z is None else np.concatenate([z, other_z])
    return session.model.path(both, np.concatenate([x_T, other_x_T]), NUM_FRAMES)


def _pair(session: Session) -> tuple[ChosenImage, ChosenImage]:
    first = session.need_image()
    if session.second is None:
        choices = [image for image in shown_images(session) if image.digest != first.digest]
        if not choices:
            raise UserError("There is no second image yet. Upload one.")
        session.second = choices[0]
    return first, session.second


def code_for(session: Session, position: int) -> str:
    """Returns code that makes the same PNG and GIF."""
    origins = [image.origin for image in _pair(session)]
    first, second = (origin.expression for origin in origins)
    body = CODE.format(
        first=first,
        second=second,
        frames=NUM_FRAMES,
        steps=session.steps_in_code,
        position=position,
        last=NUM_FRAMES - 1,
    )
    return snippet(session.shared.location, origins, body, ", film, image_grid, image_rows")
