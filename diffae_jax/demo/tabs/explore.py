"""Explore: a map of z, the nearest images, and the directions in which z varies most."""

from collections.abc import Iterable
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import Float

from diffae_jax.data.pictures import image_rows
from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.images import ImageSet
from diffae_jax.demo.parts import add_code, add_downloads, add_tiles, ready
from diffae_jax.demo.picker import row_of_images
from diffae_jax.demo.scatter import scatter
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.snippets import snippet
from diffae_jax.demo.tiles import hint, tile_of, tiles
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.probes import ClassProbe, Probe

TITLE = "Explore"
NUM_COMPONENTS = 6
NUM_NEAREST = 8
DEVIATIONS = (-3, -2, -1, 0, 1, 2, 3)  # of the coordinate along a component
NAMES = [f"{deviation:+d}" if deviation else "0" for deviation in DEVIATIONS]
LABEL, PREDICTED, NO_COLOR = "label ", "probe ", ""  # what values of the menu of colors begin with
SAME = 1e-4  # images with a smaller distance have the same z

CODE = """
image = {image}
components = model.principal_components(model.encode({images}), {count})
component = components[{index}]
z = model.encode(image)
x_T = model.invert(image, z{steps})
strengths = {strengths}
moved = np.concatenate([model.move(z, component, strength) for strength in strengths])
images = model.decode(moved, np.repeat(x_T, len(moved), axis=0){steps})
image_rows({{"": images}}, {columns}).save("direction.png")
"""


def suits(model: DiffAE) -> bool:
    """Distances and components need normalized z."""
    return model.statistics is not None


def add(page: Page) -> None:
    """Adds the map, the nearest images, the components, the downloads and the code."""
    gr.Markdown("Each point is the z of an image, drawn along the two directions in which z varies most. Click one.")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            drawn = add_tiles("map")
        with gr.Column(scale=2, min_width=280):
            colors = choices_of_color(page.shared.images, page.shared.model.probes)
            color = gr.Dropdown(colors, value=colors[0][1], label="Color", elem_id="color")
            gr.Markdown("**Nearest images** to the image above. Click one.")
            nearest = add_tiles("nearest")
    gr.Markdown("**Principal directions.** The image above, moved by up to 3 standard deviations.")
    numbers = [(str(i + 1), i) for i in range(NUM_COMPONENTS)]
    component = gr.Radio(numbers, value=0, label="Direction", elem_id="component")
    row = add_tiles("directions")
    with gr.Row(elem_classes="files"):
        png, npz = add_downloads("png", "npz")
    code = add_code()
    outputs = [color, drawn, nearest, row, png, npz, code]

    def opened(session: Session, chosen: Any, index: Any) -> tuple[Any, ...]:
        known = choices_of_color(session.images, [*session.fitted, *session.model.probes])
        values = [value for _, value in known]
        chosen = chosen if chosen in values else values[0]
        return gr.Dropdown(choices=known, value=chosen), *show(session, chosen, index)

    def click_point(session: Session, index: Any) -> tuple[Any, ...]:
        session.choose(session.images.at(checks.index_below(index, len(session.images))))
        return row_of_images(session, session.chosen), session.version

    def click_nearest(session: Session, index: Any) -> tuple[Any, ...]:
        found, _ = nearest_of(session)
        return click_point(session, int(found[checks.index_below(index, len(found))]))

    page.follow(TITLE, opened, [color, component], outputs)
    page.listen([color.input, component.input], opened, [color, component], outputs)
    page.listen_click(drawn, click_point, outputs=[page.picker, page.changed])
    page.listen_click(nearest, click_nearest, outputs=[page.picker, page.changed])


def show(session: Session, color: str, index: Any) -> tuple[Any, ...]:
    """Returns the map, the nearest images and the component as HTML, the files and the code."""
    count = num_components(session)
    if count < 2:
        few = hint("A map needs at least three images. Encode some in the tab Your folder.")
        return few, "", "", ready(None), ready(None), ""
    components = session.model.principal_components(session.images.z, count)
    place = np.stack([probe.logits(normalized(session, session.images.z)) for probe in components[:2]], axis=1)
    own = normalized(session, session.codes(session.need_image())[0])
    chosen = np.array([probe.logits(own)[0] for probe in components[:2]])
    labels = labels_of(session, color)
    names = [f"{name}, {labels[i]}" if labels is not None else name for i, name in enumerate(session.images.names)]
    found, distances = nearest_of(session)
    near = [
        tile_of(session.images.images[i], f"{distance:.2f}", slice=session.slice, size="small")
        for i, distance in zip(found, distances, strict=True)
    ]
    index = min(checks.index_below(index, NUM_COMPONENTS, "direction"), count - 1)
    strengths = strengths_of(session, components[index])
    moved_z, images = along(session, components[index], strengths)
    row = [tile_of(image, name, slice=session.slice) for image, name in zip(images, NAMES, strict=True)]
    share = f"Direction {index + 1} holds {components[index].score.value:.0%} of the variance of z."
    return (
        scatter(place, names, labels, chosen),
        tiles(near, "small", can_click=True),
        tiles(row) + hint(share),
        ready(session.downloads.png("direction", image_rows({"": images}, NAMES))),
        ready(
            session.downloads.npz("explore", z=session.images.z, names=np.array(session.images.names), moved=moved_z)
        ),
        code_for(session, index, strengths),
    )


def num_components(session: Session) -> int:
    """Returns how many components the set has."""
    return min(NUM_COMPONENTS, len(session.images) - 1, session.model.config.model.z_dim)


def normalized(session: Session, z: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Returns normalized z."""
    return session.model.statistics.normalize(z)


def nearest_of(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the nearest images of the set, and the distances of normalized z.

    The distance is the root of the mean squared difference. The image itself is left out.
    """
    own = normalized(session, session.codes(session.need_image())[0])
    distances = np.sqrt(np.square(normalized(session, session.images.z) - own).mean(1))
    order = np.argsort(distances, kind="stable")
    order = order[distances[order] > SAME][:NUM_NEAREST]
    return order, distances[order]


def strengths_of(session: Session, component: Probe) -> list[float]:
    """Returns the strengths that move z by `DEVIATIONS`, rounded for the code."""
    deviation = component.logits(normalized(session, session.images.z)).std()
    per_strength = np.linalg.norm(component.shift(1.0)) * np.linalg.norm(component.weights)
    return [round(float(count * deviation / per_strength), 4) for count in DEVIATIONS]


def along(session: Session, component: Probe, strengths: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the moved z of the chosen image, and the images."""
    z, x_T = session.codes(session.need_image())
    moved = np.concatenate([session.model.move(z, component, strength) for strength in strengths])
    return moved, session.once(
        ("component", moved.tobytes()), lambda: session.decode(moved, np.repeat(x_T, len(moved), axis=0))
    )


def choices_of_color(images: ImageSet, probes: Iterable[str]) -> list[tuple[str, str]]:
    """Returns texts and values: the labels of a set, what probes predict, and no color."""
    labels = [(name, LABEL + name) for name in images.labels]
    return [*labels, *((f"{name} (predicted)", PREDICTED + name) for name in probes), ("none", NO_COLOR)]


def labels_of(session: Session, color: str) -> np.ndarray | None:
    """Returns a label for each image of the set, or None."""
    if color == NO_COLOR:
        return None
    if color.startswith(LABEL):
        return session.images.labels[color.removeprefix(LABEL)]
    name = color.removeprefix(PREDICTED)
    probe: Probe | ClassProbe = session.directions().get(name) or session.model.probes[name]
    return np.asarray(session.model.predict(session.images.z, probe))


def code_for(session: Session, index: int, strengths: list[float]) -> str:
    """Returns code that makes the same PNG."""
    origin = session.need_image().origin
    body = CODE.format(
        image=origin.expression,
        images=session.images.origin.expression,
        count=num_components(session),
        index=index,
        steps=session.steps_in_code,
        strengths=strengths,
        columns=str(NAMES).replace("'", '"'),
    )
    return snippet(session.shared.location, [origin, session.images.origin], body, ", image_rows")
