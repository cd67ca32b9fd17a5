"""Finds the settings of inversion and decoding for a budget: measures them, and chooses one."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from diffae_jax.diffusion.inversion import INVERSIONS
from diffae_jax.diffusion.samplers import SAMPLERS
from diffae_jax.evaluation import metrics
from diffae_jax.evaluation.study import Distance, encoded
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.recommended import Recommended
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, atomic_write

STEPS = (5, 10, 20, 50, 100)


class Setting(NamedTuple):
    """A way to invert and decode an image."""

    inversion: str
    sampler: str
    grid: str
    num_steps: int

    def __str__(self) -> str:
        return f"{self.num_steps} steps, inversion {self.inversion}, sampler {self.sampler}, grid {self.grid}"


class Point(NamedTuple):
    """What a setting costs and how well it reconstructs, as means over images.

    Attributes:
        setting: The setting.
        mse: The mean squared error of reconstructions, in [0, 1].
        lpips: Their LPIPS, or None if its weights are not available.
        num_calls: Network calls of an image, to invert and to decode it.
        seconds: The time to encode, invert and decode one image alone.
    """

    setting: Setting
    mse: float
    lpips: float | None
    num_calls: float
    seconds: float


class Target(NamedTuple):
    """An error of at most `value`, or the smallest error within `value` seconds."""

    metric: Literal["mse", "lpips", "seconds"]
    value: float


def candidates(inversions: Iterable[str], grids: Iterable[str], steps: Iterable[int]) -> list[Setting]:
    """Returns the settings to measure, those with few steps first.

    Each inversion is decoded with the sampler that suits it. Grids that do not suit are left out.
    """
    pairs = []
    for inversion in inversions:
        sampler = next(iter(INVERSIONS[inversion].decoders), "ddim")
        pairs += [(inversion, sampler, grid) for grid in grids if grid not in SAMPLERS[sampler].poor_grids]
    return [Setting(*pair, num_steps) for num_steps in sorted(set(steps)) for pair in pairs]


def measure(
    model: DiffAE, images: Float[np.ndarray, "n *shape"], setting: Setting, lpips: Distance | None = None
) -> Point:
    """Measures a setting on images.

    Args:
        model: The model.
        images: Images in [-1, 1], [N, *spatial, C].
        setting: The setting.
        lpips: A function that returns the LPIPS of pairs of images, or None.

    Returns:
        What was measured. The time is that of one image after compilation.
    """
    inversion, sampler, grid, num_steps = setting

    def reconstruct(images):
        z = encoded(model, images)
        inverted = model.invert_with_report(images, z, num_steps, method=inversion, grid=grid)
        return model.decode(z, inverted.x_T, num_steps, sampler=sampler, grid=grid), inverted.num_calls

    decoded, num_calls = reconstruct(images)
    seconds = []
    for _ in range(3):  # the first one compiles
        start = time.perf_counter()
        reconstruct(images[:1])
        seconds.append(time.perf_counter() - start)
    return Point(
        setting,
        float(metrics.mse(decoded, images).mean()),
        None if lpips is None else float(lpips(decoded, images).mean()),
        float(np.mean(num_calls) + SAMPLERS[sampler].num_calls(num_steps)),
        min(seconds[1:]),
    )


def search(settings: Sequence[Setting], target: Target | None, measure: Callable[[Setting], Point]) -> list[Point]:
    """Measures settings, and leaves out those that cannot be the choice for the target.

    These are settings that only differ by more steps from one that reaches an error, or from one
    that takes too long. Without a target, all settings are measured.
    """
    points: list[Point] = []
    for setting in settings:
        fewer = [point for point in points if point.setting[:3] == setting[:3]]
        if target is None or not any(_makes_more_steps_useless(point, target) for point in fewer):
            points.append(measure(setting))
    return points


def _makes_more_steps_useless(point: Point, target: Target) -> bool:
    reaches = getattr(point, target.metric) <= target.value
    return not reaches if target.metric == "seconds" else reaches


def frontier(points: Sequence[Point], metric: str = "mse") -> list[Point]:
    """Returns the points that no other point beats in both network calls and error, by calls."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.num_calls, getattr(point, metric))):
        if not found or getattr(point, metric) < getattr(found[-1], metric):
            found.append(point)
    return found


def choose(points: Sequence[Point], target: Target) -> Point:
    """Returns the point with the fewest network calls, or within the time the one of least error.

    Raises UserError if no point reaches the target.
    """
    reaching = [point for point in points if getattr(point, target.metric) <= target.value]
    best = min(points, key=lambda point: getattr(point, target.metric))
    if not reaching:
        reached, change = {
            "seconds": (f"{best.seconds:.3g} s per image", "Allow more seconds, or measure fewer --steps"),
            "mse": (f"an MSE of {best.mse:.2e}", "Allow a larger error, or measure more --steps"),
            "lpips": (f"an LPIPS of {best.lpips or 0:.3g}", "Allow a larger error, or measure more --steps"),
        }[target.metric]
        raise UserError(f"No setting reaches {describe(target)}: the best is {reached}, with {best.setting}. {change}.")
    if target.metric == "seconds":
        return min(reaching, key=lambda point: (point.mse, point.num_calls))
    return min(reaching, key=lambda point: (point.num_calls, getattr(point, target.metric)))


def describe(target: Target) -> str:
    """Describes a target in a few words."""
    names = {"mse": "an MSE of", "lpips": "an LPIPS of", "seconds": "a time per image of"}
    return f"{names[target.metric]} {target.value:g}{' s' if target.metric == 'seconds' else ''}"


def as_recommended(point: Point) -> Recommended:
    """Returns a setting with its measurements, to store in a bundle."""
    measured = {name: getattr(point, name) for name in ("mse", "lpips", "num_calls", "seconds")}
    known = {name: value for name, value in measured.items() if value is not None}
    return Recommended(**point.setting._asdict(), measured=known)


def as_table(points: Sequence[Point]) -> str:
    """Formats points as a table with a line for each."""
    header = ("steps", "inversion", "sampler", "grid", "network calls", "seconds", "MSE", "LPIPS")
    rows = [
        (
            *(str(point.setting.num_steps), *point.setting[:3], f"{point.num_calls:.0f}"),
            *(f"{point.seconds:.3g}", f"{point.mse:.2e}", "" if point.lpips is None else f"{point.lpips:.4f}"),
        )
        for point in points
    ]
    num_columns = len(header) - all(point.lpips is None for point in points)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(num_columns)]
    lines = ["  ".join(row[i].ljust(width) for i, width in enumerate(widths)).rstrip() for row in (header, *rows)]
    return "\n".join(lines)


def draw(path: AnyPath, points: Sequence[Point], target: Target | None, chosen: Point | None) -> None:
    """Draws the error of all settings by network calls, with the frontier, as a PNG."""
    # pyplot needs a display, and would change the plots of a notebook
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = "lpips" if target is not None and target.metric == "lpips" else "mse"
    figure = Figure(figsize=(7, 4.5), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for inversion, marker in zip(dict.fromkeys(point.setting.inversion for point in points), "osD^v<>", strict=False):
        for grid, color in zip(dict.fromkeys(point.setting.grid for point in points), ("C0", "C1", "C2"), strict=False):
            line = [point for point in points if (point.setting.inversion, point.setting.grid) == (inversion, grid)]
            calls, errors = [point.num_calls for point in line], [getattr(point, metric) for point in line]
            axes.plot(calls, errors, marker, color=color, ls=":", lw=0.8, label=f"inversion {inversion}, grid {grid}")
    best = frontier(points, metric)
    axes.plot([p.num_calls for p in best], [getattr(p, metric) for p in best], color="0.4", zorder=0, label="frontier")
    if chosen is not None:
        place = [chosen.num_calls], [getattr(chosen, metric)]
        axes.plot(*place, "o", ms=16, mfc="none", mec="k", label=f"chosen: {chosen.setting.num_steps} steps")
    if target is not None and target.metric == metric:
        axes.axhline(target.value, color="k", lw=0.5)
    name = "MSE in [0, 1]" if metric == "mse" else "LPIPS"
    axes.set(xscale="log", yscale="log", xlabel="network calls of an image", ylabel=f"{name} of reconstructions")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=100)
