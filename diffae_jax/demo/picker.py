"""The top of the page: the image that all tabs use, the steps, and the slice of volumes."""

from typing import Any

import gradio as gr

from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.images import ChosenImage
from diffae_jax.demo.parts import add_tiles
from diffae_jax.demo.sessions import START_STEPS, Session
from diffae_jax.demo.tiles import hint, tile_of, tiles
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.errors import UserError

SHOWN = 26  # images of the set in the row
STEPS = (10, 20, 50, 100)
RECOMMENDED = 0  # the value of the control that stands for the recommended settings


def shown_images(session: Session) -> list[ChosenImage]:
    """Returns the images to choose from: the uploads, and the first of the set.

    The chosen image comes first if it is neither.
    """
    row = [*session.uploads, *(session.images.at(i) for i in range(min(SHOWN, len(session.images))))]
    is_there = session.chosen is None or session.chosen.digest in {image.digest for image in row}
    return row if is_there else [session.chosen, *row]


def row_of_images(session: Session, chosen: ChosenImage | None, note: str = "") -> str:
    """Returns the images to choose from as HTML, with the chosen one marked, and a note below."""
    digest = None if chosen is None else chosen.digest
    row = [
        tile_of(image.image, slice=session.slice, size="small", mark="chosen" if image.digest == digest else "")
        for image in shown_images(session)
    ]
    note = note or ("" if row else "Upload an image to begin.")
    return tiles(row, "small", can_click=True, can_scroll=True) + (hint(note) if note else "")


def add_picker(page: Page) -> gr.HTML:
    """Adds images, upload, steps and, for volumes, the slice. Returns the row of images."""
    model = page.shared.model
    is_volume = len(model.image_shape) == 4
    with gr.Row():
        with gr.Column(scale=6, min_width=320):
            images = add_tiles("images")
        with gr.Column(scale=1, min_width=170):
            types = list(checks.suffixes_for(model.image_shape))
            upload = gr.UploadButton("Upload an image", file_types=types, size="sm", elem_id="upload")
            steps = gr.Dropdown(steps_of(model), label="Steps", elem_id="steps", min_width=150)
    depth = model.image_shape[0]
    slices = gr.Slider(0, depth - 1, depth // 2, step=1, label="Slice", visible=is_volume, elem_id="slice")

    def click(session: Session, index: Any) -> tuple[str, int]:
        choices = shown_images(session)
        session.choose(choices[checks.index_below(index, len(choices))])
        return row_of_images(session, session.chosen), session.version

    def uploaded(session: Session, file: Any) -> tuple[str, int]:
        with checks.uploaded(file) as (path, *_):
            image, note = checks.read_upload(path, model)
        session.upload(image, path.name)
        return row_of_images(session, session.chosen, note), session.version

    def set_steps(session: Session, count: Any) -> int:
        if count not in dict(steps_of(model)).values():
            raise UserError("Choose a number of steps.")
        session.num_steps = count or None
        session.version += 1
        return session.version

    def set_slice(session: Session, index: Any) -> tuple[str, int]:
        session.slice = checks.index_below(index, depth, "slice")
        session.version += 1
        return row_of_images(session, session.chosen), session.version

    page.listen_click(images, click, outputs=[images, page.changed])
    page.listen(upload.upload, uploaded, [upload], [images, page.changed])
    page.listen(steps.input, set_steps, [steps], [page.changed])
    if is_volume:
        page.listen(slices.input, set_slice, [slices], [images, page.changed], is_live=True)
    return images


def steps_of(model: DiffAE) -> list[tuple[str, int]]:
    """Returns the numbers of steps to choose from, first the one that the page starts with."""
    choices = [(str(count), count) for count in STEPS]
    if model.recommended is not None:
        return [(f"{model.recommended.num_steps}, as recommended", RECOMMENDED), *choices]
    start = STEPS.index(START_STEPS)
    return [choices[start], *choices[:start], *choices[start + 1 :]]
