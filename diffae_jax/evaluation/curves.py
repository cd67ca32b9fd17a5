"""Draws curves with axes, for which alone matplotlib draws."""

from diffae_jax.runtime.files import AnyPath, atomic_write


def save_curves(path: AnyPath, panels: dict[str, dict[str, list[tuple[float, float]]]], xlabel: str) -> None:
    """Writes panels of curves on logarithmic axes as one PNG, atomically.

    Args:
        path: The file to write.
        panels: By label of the vertical axis, the points (x, y) of each curve by its name.
        xlabel: The label of the horizontal axes.
    """
    # pyplot needs a display, and would change the plots of a notebook
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="compressed")
    FigureCanvasAgg(figure)
    for axis, (ylabel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in curves.items():
            axis.loglog(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.xaxis.set_major_formatter("{x:g}")  # 40 instead of 4 x 10^1
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=100)
