"""A map of z as SVG: a point for each image, colored by a label."""

import numpy as np
from jaxtyping import Float

from diffae_jax.demo.tiles import escaped
from diffae_jax.runtime.errors import counted

WIDTH, HEIGHT, MARGIN = 640, 420, 16  # of the drawing, which the page scales
MOST_COLORS = 10  # more values are shown on a scale
UNKNOWN = "#b8bcc6"


def scatter(
    points: Float[np.ndarray, "n 2"],
    names: list[str],
    labels: np.ndarray | None,
    chosen: Float[np.ndarray, "2"] | None,
) -> str:
    """Draws a map.

    Args:
        points: the place of each image.
        names: what is shown when the mouse is above a point.
        labels: a label for each image, or None for points of one color.
        chosen: the place of the chosen image, which gets a ring.

    Returns:
        The map as SVG, with a legend. Each point has the index of its image.
    """
    colors, legend = ([UNKNOWN] * len(points), "") if labels is None else _colors(labels)
    low, high = points.min(0), points.max(0)
    scale = (np.array([WIDTH, HEIGHT]) - 2 * MARGIN) / np.maximum(high - low, 1e-9)

    def place(point):
        x, y = np.clip((point - low) * scale, 0, [WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN]) + MARGIN
        return f'cx="{x:.1f}" cy="{HEIGHT - y:.1f}"'

    circles = [
        f'<circle data-index="{i}" {place(point)} r="5" fill="{color}"><title>{escaped(name)}</title></circle>'
        for i, (point, name, color) in enumerate(zip(points, names, colors, strict=True))
    ]
    if chosen is not None:
        circles.append(f'<circle class="ring" {place(chosen)} r="10"/>')
    return (
        f'<svg class="map" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="map of z">{"".join(circles)}</svg>'
        f"{legend}"
    )


def _colors(labels: np.ndarray) -> tuple[list[str], str]:
    """Returns a color for each label, and the legend."""
    from matplotlib import colormaps  # a slow import
    from matplotlib.colors import to_hex

    known = np.array([label is not None and label == label and label != "" for label in labels.tolist()], bool)
    values = np.unique(labels[known].astype(str) if labels.dtype == object else labels[known])
    if not len(values):
        return [UNKNOWN] * len(labels), ""
    if len(values) <= MOST_COLORS or values.dtype.kind == "U":
        shown = values[:MOST_COLORS].tolist()
        color_of = {value: to_hex(colormaps["tab10"](i)) for i, value in enumerate(shown)}
        colors = [color_of.get(label, UNKNOWN) for label in labels.tolist()]
        entries = {f"{value:g}" if isinstance(value, float) else str(value): color_of[value] for value in shown}
        if len(values) > MOST_COLORS:
            entries[counted(len(values) - MOST_COLORS, "other value")] = UNKNOWN
    else:
        low, high = float(values.min()), float(values.max())
        shade = [(float(label) - low) / (high - low) if use else -1 for label, use in zip(labels, known, strict=True)]
        colors = [to_hex(colormaps["viridis"](value)) if value >= 0 else UNKNOWN for value in shade]
        steps = np.linspace(low, high, 5)
        entries = {f"{value:.3g}": to_hex(colormaps["viridis"](i / 4)) for i, value in enumerate(steps)}
    marks = [f'<span><i style="background:{color}"></i>{escaped(text)}</span>' for text, color in entries.items()]
    return colors, f'<div class="legend">{"".join(marks)}</div>'
