"""Edit: an image, moved along several probes, before and after and as a film."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from diffae_jax.data.pictures import image_grid, image_rows
from diffae_jax.demo import checks
from diffae_jax.demo.events import Page
from diffae_jax.demo.parts import add_button, add_code, add_downloads, add_tiles, ready
from diffae_jax.demo.sessions import Session
from diffae_jax.demo.snippets import quoted, snippet
from diffae_jax.demo.tiles import film_tile, table, tile_of, tiles
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.probes import Probe, directions

TITLE = "Edit"
START_PROBES, MOST_PROBES = 2, 4  # at first, and at most
NUM_FRAMES = 16

Moves = list[tuple[Probe, float]]  # probes and strengths

CODE = """
{fits}image = {image}
z = model.encode(image)
x_T = model.invert(image, z{steps})
{moves}
edited = model.decode(moved, x_T{steps})
reconstruction = model.decode(z, x_T{steps})
image_rows({{"": [reconstruction[0], edited[0]]}}, ["before", "after"]).save("edited.png")

weights = np.linspace(0, 1, {frames}, dtype=np.float32)[:, None]
frames = model.decode(z + weights * (moved - z), np.repeat(x_T, {frames}, axis=0){steps})
Path("edited.gif").write_bytes(film([image_grid(frame[None]) for frame in frames]))
"""


def suits(model: DiffAE) -> bool:
    """A model needs statistics of z. It gets a probe on the page if it has none."""
    return model.statistics is not None


def add(page: Page) -> None:
    """Adds the probes, a slider for each, the film, the downloads and the code."""
    names = list(directions(page.shared.model.probes))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.Dropdown(
                names,
                value=names[:START_PROBES],
                multiselect=True,
                max_choices=MOST_PROBES,
                label="Probes",
                elem_id="probes",
            )
            strengths = [_slider(i, names) for i in range(MOST_PROBES)]
        with gr.Column(scale=3, min_width=300):
            pictures = add_tiles("edited")
    with gr.Row(elem_classes="files"):
        make_film = add_button("Make a film", "edit-film")
        png, gif, npz = add_downloads("png", "gif", "npz")
    code = add_code()
    shown_parts = [pictures, png, gif, npz, code]

    def opened(session: Session, probes: Any, *values: Any) -> tuple[Any, ...]:
        known = list(session.directions())
        probes = checks.names_of(probes or known[:START_PROBES], known, "probe", MOST_PROBES)
        menu = gr.Dropdown(choices=known, value=probes)
        return menu, *_sliders(session, probes), *show(session, probes, *(session.strengths.get(n, 0) for n in probes))

    def choose(session: Session, probes: Any) -> tuple[Any, ...]:
        probes = checks.names_of(probes, session.directions(), "probe", MOST_PROBES)
        values = [session.strengths.get(name, 0) for name in probes]
        return *_sliders(session, probes), *show(session, probes, *values)

    page.follow(TITLE, opened, [chosen], [chosen, *strengths, *shown_parts])
    page.listen(chosen.input, choose, [chosen], [*strengths, *shown_parts])
    for slider in strengths:
        page.listen(slider.input, show, [chosen, *strengths], shown_parts, is_live=True)
    page.listen(make_film.click, show_film, [chosen, *strengths], shown_parts)


def _slider(index: int, names: Sequence[str]) -> gr.Slider:
    most = checks.MOST_STRENGTH
    used = names[:START_PROBES]
    label = used[index] if index < len(used) else ""
    return gr.Slider(-most, most, 0, step=0.05, label=label, visible=bool(label), elem_id=f"strength-{index}")


def _sliders(session: Session, probes: Sequence[str]) -> list[gr.Slider]:
    """Returns the sliders of the chosen probes, and hides the others."""
    used = [gr.Slider(label=name, value=session.strengths.get(name, 0), visible=True) for name in probes]
    return [*used, *(gr.Slider(value=0, visible=False) for _ in range(MOST_PROBES - len(used)))]


def show(session: Session, probes: Any, *values: Any, gif: Any = None) -> tuple[Any, ...]:
    """Returns the pictures as HTML, the files, of which the film may be missing, and the code."""
    image = session.need_image()
    moves = moves_of(session, probes, values)
    z, x_T = session.codes(image)
    moved = move(session, moves)
    edited = session.once(("edited", image.digest, moved.tobytes()), lambda: session.decode(moved, x_T))
    row, columns = [session.reconstruction(image), edited[0]], ["before", "after"]
    pictures = [
        tile_of(each, caption, slice=session.slice, size="largest") for each, caption in zip(row, columns, strict=True)
    ]
    pictures += [] if gif is None else [film_tile(gif, "film")]
    predicted = table(("probe", "before", "after"), [predictions(session, probe, z, moved) for probe, _ in moves])
    png = session.downloads.png("edited", image_rows({"": row}, columns))
    npz = session.downloads.npz("edited", z=z, x_T=x_T, moved_z=moved, edited=edited)
    return tiles(pictures, "largest") + predicted, ready(png), ready(gif), ready(npz), code_for(session, moves)


def show_film(session: Session, probes: Any, *values: Any) -> tuple[Any, ...]:
    """Returns what `show` returns, with the film."""
    z, x_T = session.codes(session.need_image())
    weights = np.linspace(0, 1, NUM_FRAMES, dtype=np.float32)[:, None]
    path = z + weights * (move(session, moves_of(session, probes, values)) - z)
    frames = session.once(("edit film", path.tobytes()), lambda: session.decode(path, np.repeat(x_T, NUM_FRAMES, 0)))
    gif = session.downloads.gif("edited", [image_grid(frame[None]) for frame in frames])
    return show(session, probes, *values, gif=gif)


def moves_of(session: Session, probes: Any, values: Sequence[Any]) -> Moves:
    """Returns the chosen probes with their strengths, and remembers these.

    Raises UserError if the page does not offer these probes, or if a strength is out of range.
    """
    known = session.directions()
    probes = checks.names_of(probes, known, "probe", MOST_PROBES)
    strengths = dict(zip(probes, map(checks.strength, values), strict=False))
    session.strengths |= strengths
    return [(known[name], strength) for name, strength in strengths.items()]


def move(session: Session, moves: Moves) -> np.ndarray:
    """Returns the z of the image, moved along all probes."""
    z, _ = session.codes(session.need_image())
    for probe, strength in moves:
        z = session.model.move(z, probe, strength)
    return z


def predictions(session: Session, probe: Probe, z: np.ndarray, moved: np.ndarray) -> tuple[str, str, str]:
    """Returns the name of a probe, and what it predicts before and after the edit."""
    before, after = (float(session.model.predict(each, probe)[0]) for each in (z, moved))
    form = "{:.3g}" if probe.kind == "continuous" else "{:.0%}"
    return probe.name, form.format(before), form.format(after)


def code_for(session: Session, moves: Moves) -> str:
    """Returns code that makes the same PNG and GIF. It fits the probes fitted on the page."""
    origin = session.need_image().origin
    lines = [
        f"moved = model.move({'moved' if i else 'z'}, {quoted(probe.name)}, {strength:g})"
        for i, (probe, strength) in enumerate(moves)
    ]
    origins, fits = session.code_of_probes(probe.name for probe, _ in moves)
    body = CODE.format(
        fits=fits, image=origin.expression, steps=session.steps_in_code, moves="\n".join(lines), frames=NUM_FRAMES
    )
    return snippet(session.shared.location, [origin, *origins], body, ", film, image_grid, image_rows")
