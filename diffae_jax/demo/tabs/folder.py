"""Your folder: encode your own images, label some by clicking, and fit a probe to them."""

from typing import Any

import gradio as gr
import numpy as np

from diffae_jax.data.pictures import image_rows
from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.images import ENCODE_BATCH, distinct, encode, most_images, uploaded_set
from diffae_jax.demo.parts import add_code, add_downloads, add_tiles, ready
from diffae_jax.demo.picker import row_of_images
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.snippets import quoted, snippet
from diffae_jax.demo.tabs import edit
from diffae_jax.demo.tiles import hint, tile_of, tiles
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.probes import Probe, describe
from diffae_jax.runtime.errors import UserError, counted

TITLE = "Your folder"
SHOWN = 40  # images to label
YES, NO = "with it", "without it"
ENOUGH = 2  # images of each kind that a probe needs
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)

CODE_OF_PROBE = """
labeled = model.encode({images})
model.fit_probe({name}, labeled, {labels}, kind="binary")
"""
CODE = """
{fits}image = {image}
strengths = {strengths}
images = np.concatenate([model.edit(image, {name}, strength{steps}) for strength in strengths])
image_rows({{"": images}}, [f"{{strength:+g}}" for strength in strengths]).save("probe.png")
"""


def suits(model: DiffAE) -> bool:
    """A probe needs normalized z."""
    return model.statistics is not None


def add(page: Page) -> None:
    """Adds the upload, the images to label, the fit, the downloads and the code."""
    gr.Markdown(
        "Upload a folder, or label the images that are already here. Label about ten: some that have what you look "
        "for, and some that do not. The new probe then appears in the tab Edit."
    )
    with gr.Row(elem_classes="settings"):
        folder = gr.UploadButton(
            "Upload a folder", file_count="directory", size="sm", min_width=150, scale=0, elem_id="folder"
        )
        files = gr.UploadButton(
            "Upload images",
            file_count="multiple",
            file_types=list(checks.suffixes_for(page.shared.model.image_shape)),
            size="sm",
            min_width=150,
            scale=0,
            elem_id="files",
        )
    with gr.Row(elem_classes="settings"):
        name = gr.Textbox(label="New label", placeholder="such as smile", max_length=60, elem_id="label")
        mark = gr.Radio([YES, NO], value=YES, label="A click labels an image", elem_id="mark")
        fit = gr.Button("Fit a probe", variant="primary", min_width=140, scale=0, elem_id="fit")
    grid = add_tiles("to-label")
    result = add_tiles("fitted")
    with gr.Row(elem_classes="files"):
        png, npz = add_downloads("png", "npz")
    code = add_code()

    for button in (folder, files):
        page.listen_long(button.upload, upload, [button], [grid, npz, page.picker, page.changed])
    page.follow(TITLE, opened, outputs=[grid, npz])
    page.listen_click(grid, click, [mark], [grid])
    page.listen(fit.click, fit_probe, [name], [result, png, code, page.tabs[edit.TITLE]])


def upload(session: Session, progress: gr.Progress, files: Any) -> tuple[Any, ...]:
    """Reads and encodes files. Files without an image are skipped, and the page says how many."""
    with checks.uploaded(files) as paths:
        most = most_images(session.model.transform)
        if len(paths) > most:
            raise UserError(f"There are {counted(len(paths), 'file')}. At most {most:,} can be uploaded. Choose fewer.")
        images = np.empty((len(paths), *session.model.image_shape), session.model.transform.dtype)
        names, skipped = [], []
        for path in progress.tqdm(paths, desc="Reading"):
            try:
                images[len(names)] = checks.read_upload(path, session.model)[0]
                names.append(path.name)
            except UserError as error:
                skipped.append(str(error))
    if not names:
        raise UserError(f"None of {counted(len(paths), 'file')} is an image that can be used. The first: {skipped[0]}")
    images, z = images[: len(names)], []
    for start in progress.tqdm(range(0, len(images), ENCODE_BATCH), desc="Encoding"):
        with session.shared.turn:
            z.append(encode(session.model, images[start : start + ENCODE_BATCH]))
    note = f"{counted(len(images), 'image')} encoded."
    if skipped:
        note += f" {counted(len(skipped), 'file', verb='was/were')} skipped. The first: {skipped[0]}"
    taken = [image.name for image in session.uploads]
    names = distinct([*taken, *names])[len(taken) :]
    session.replace_images(uploaded_set(images, names, np.concatenate(z), note))
    return *opened(session), row_of_images(session, session.chosen), session.version


def opened(session: Session) -> tuple[Any, ...]:
    """Returns the images to label as HTML, and the file of all z."""
    if not len(session.images):
        return hint("There are no images yet."), ready(None)
    npz = session.downloads.npz("z", names=np.array(session.images.names), z=session.images.z)
    return images_to_label(session), ready(npz)


def images_to_label(session: Session) -> str:
    """Returns the images to label as HTML, with the labels so far and their number."""
    marks = session.marks
    shown_images = session.images.images[:SHOWN]
    words = {True: ("yes", "yes"), False: ("no", "no")}
    pictures = []
    for i, image in enumerate(shown_images):
        caption, mark = words[marks[i]] if i in marks else ("", "")
        pictures.append(tile_of(image, caption, slice=session.slice, size="small", mark=mark))
    yes = sum(marks.values())
    said = f"Labeled: {yes} with it, {len(marks) - yes} without it." if marks else "Click images to label them."
    note = [hint(session.images.note)] if session.images.note else []
    return "".join([*note, tiles(pictures, "small", can_click=True), hint(said)])


def click(session: Session, index: Any, mark: Any) -> str:
    """Labels an image, or removes the label if the image already has it."""
    index = checks.index_below(index, min(SHOWN, len(session.images)))
    if session.marks.get(index) == (mark == YES):
        del session.marks[index]
    else:
        session.marks[index] = mark == YES
    return images_to_label(session)


def fit_probe(session: Session, name: Any) -> tuple[Any, ...]:
    """Fits a probe to the labels, and returns an edit with it as HTML, the file and the code."""
    name = name.strip() if isinstance(name, str) else ""
    rows = sorted(session.marks)
    labels = [int(session.marks[row]) for row in rows]
    few = [word for word, count in ((YES, sum(labels)), (NO, len(labels) - sum(labels))) if count < ENOUGH]
    if not name:
        raise UserError("Write the name of the new label, such as smile.")
    if few:
        raise UserError(f"Label at least {ENOUGH} images of each kind. There are too few of: {', '.join(few)}.")
    labeled = session.images.origin_of(rows).expression
    code = CODE_OF_PROBE.format(images=labeled, name=quoted(name), labels=labels).strip()
    probe = session.fit_probe(name, rows, labels, code)
    images = edits(session, probe)
    columns = [f"{strength:+g}" for strength in STRENGTHS]
    pictures = [tile_of(image, name, slice=session.slice) for image, name in zip(images, columns, strict=True)]
    said = hint(f"{describe(probe)}. The chosen image, moved along it:")
    png = session.downloads.png("probe", image_rows({"": images}, columns))
    return said + tiles(pictures), ready(png), code_for(session, name), gr.Tab(visible=True)


def edits(session: Session, probe: Probe) -> np.ndarray:
    """Returns the chosen image, moved along a probe by each of `STRENGTHS`."""
    z, x_T = session.codes(session.need_image())
    moved = np.concatenate([session.model.move(z, probe, strength) for strength in STRENGTHS])
    return session.once(("edits", moved.tobytes()), lambda: session.decode(moved, np.repeat(x_T, len(moved), axis=0)))


def code_for(session: Session, name: str) -> str:
    """Returns code that fits the probe and makes the same PNG."""
    origin = session.need_image().origin
    origins, fits = session.code_of_probes([name])
    body = CODE.format(
        fits=fits,
        image=origin.expression,
        strengths=list(STRENGTHS),
        name=quoted(name),
        steps=session.steps_in_code,
    )
    return snippet(session.shared.location, [origin, *origins], body, ", image_rows")
