"""The top of the page: the image that all tabs use, the steps, and the slice of volumes."""

from pathlib import Path
from typing import Any

import gradio as gr

from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.images import ChosenImage, uploaded_file
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.tiles import ON_LOAD, hint, tile_of, tiles

SHOWN = 30  # images in the row
STEPS = (10, 20, 50, 100)
RECOMMENDED = 0  # the value of the control that stands for the recommended settings


def shown_images(session: Session) -> list[ChosenImage]:
    """Returns the images to choose from: the uploads, then the first of the set."""
    return [*session.uploads, *(session.images.at(i) for i in range(min(SHOWN, len(session.images))))]


def row_of_images(session: Session, chosen: ChosenImage | None) -> str:
    """Returns the images to choose from as HTML, with the chosen one marked."""
    digest = None if chosen is None else chosen.digest
    row = [
        tile_of(image.image, slice=session.slice, size="small", mark="chosen" if image.digest == digest else "")
        for image in shown_images(session)
    ]
    return tiles(row, "small", can_click=True, in_one_row=True) if row else hint("Upload an image to begin.")


def add_picker(page: Page) -> gr.HTML:
    """Adds images, upload, steps and, for volumes, the slice. Returns the row of images."""
    model = page.shared.model
    with gr.Row(elem_classes="picker"):
        images = gr.HTML(js_on_load=ON_LOAD, apply_default_css=False, elem_id="images", scale=8)
        types = list(checks.suffixes_for(model.image_shape))
        upload = gr.UploadButton(
            "Upload an image", file_types=types, scale=0, min_width=150, elem_id="upload", size="sm"
        )
    note = gr.Markdown(elem_classes="note", elem_id="note")
    with gr.Row(elem_classes="settings"):
        steps = _steps(model)
        depth = model.image_shape[0]
        is_volume = len(model.image_shape) == 4
        slices = gr.Slider(0, depth - 1, depth // 2, step=1, label="Slice", visible=is_volume, elem_id="slice")

    def show(session: Session) -> tuple[Any, ...]:
        return row_of_images(session, session.chosen), session.version

    def click(session: Session, index: Any) -> tuple[Any, ...]:
        choices = shown_images(session)
        session.choose(choices[checks.index_below(index, len(choices))])
        return *show(session), ""

    def uploaded(session: Session, file: str) -> tuple[Any, ...]:
        path = Path(file)
        image, converted = checks.read_upload(path, model)
        session.upload(ChosenImage(image, path.name, uploaded_file(path.name)))
        return *show(session), converted

    def set_steps(session: Session, value: int) -> int:
        session.num_steps = value or None
        session.version += 1
        return session.version

    def set_slice(session: Session, value: int) -> tuple[Any, ...]:
        session.slice = value
        session.version += 1
        return show(session)

    page.listen_click(images, click, outputs=[images, page.changed, note])
    page.listen(upload.upload, uploaded, [upload], [images, page.changed, note])
    page.listen(steps.input, set_steps, [steps], [page.changed])
    if is_volume:
        page.listen(slices.input, set_slice, [slices], [images, page.changed], is_live=True)
    return images


def _steps(model: Any) -> gr.Radio:
    choices = [(str(count), count) for count in STEPS]
    if model.recommended is not None:
        choices = [(f"{model.recommended.num_steps} (recommended)", RECOMMENDED), *choices]
    start = RECOMMENDED if model.recommended is not None else 20
    return gr.Radio(choices, value=start, label="Steps", elem_id="steps", info="More steps are slower and more exact.")
