"""Finds the settings of inversion and decoding for a budget: measures them, and chooses one."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from diffae_jax.evaluation.curves import save_curves
from diffae_jax.evaluation.frontier import RECONSTRUCTIONS, Choice, Images, reconstruction
from diffae_jax.evaluation.study import Distance
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.recommended import Recommended
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath

STEPS = (5, 10, 20, 50, 100)


class Cost(NamedTuple):
    """What a choice with a number of steps costs and how well it reconstructs: means over images.

    Attributes:
        choice: The inversion, sampler and grid.
        num_steps: The steps in each direction.
        mse: The mean squared error of reconstructions, in [0, 1].
        lpips: Their LPIPS, or None if its weights are not available.
        num_calls: The network calls of an image, in both directions.
        seconds: The time of an image in both directions, as one of all measured images.
    """

    choice: Choice
    num_steps: int
    mse: float
    lpips: float | None
    num_calls: float
    seconds: float


class Target(NamedTuple):
    """An error of at most `value`, or the smallest error within `value` seconds."""

    metric: Literal["mse", "lpips", "seconds"]
    value: float


def candidates(
    steps: Iterable[int], inversions: Collection[str] | None = None, grids: Collection[str] | None = None
) -> list[tuple[Choice, int]]:
    """Returns what to measure, few steps first: pairs of a choice and a number of steps.

    Args:
        steps: The numbers of steps.
        inversions: The names of inversions; by default all.
        grids: The names of grids; by default all that suit an inversion.

    Raises:
        UserError: If no choice has such an inversion and grid.
    """
    choices = [
        choice
        for choice in RECONSTRUCTIONS
        if choice.inversion in (inversions or (choice.inversion,)) and choice.grid in (grids or (choice.grid,))
    ]
    if not choices:
        known = "; ".join(f"{choice.inversion} with {choice.grid}" for choice in RECONSTRUCTIONS)
        raise UserError(f"No measured inversion uses these grids. Choose among: {known}.")
    return [(choice, num_steps) for num_steps in sorted(set(steps)) for choice in choices]


def measure(model: DiffAE, images: Images, choice: Choice, num_steps: int, lpips: Distance | None = None) -> Cost:
    """Measures a choice with a number of steps.

    Args:
        model: The model.
        images: Images in [-1, 1], [N, *spatial, C].
        choice: The inversion, sampler and grid.
        num_steps: The steps in each direction, 1 to 1,000.
        lpips: A function that returns the LPIPS of pairs of images, or None.

    Returns:
        Its error and cost.
    """
    point = reconstruction(model, images, choice, num_steps)
    distance = None if lpips is None else float(np.mean(lpips(point.images, images)))
    calls = float(np.mean(point.num_calls))
    return Cost(choice, num_steps, float(np.mean(point.errors)), distance, calls, point.seconds)


def search(
    settings: Sequence[tuple[Choice, int]], target: Target | None, measure: Callable[[Choice, int], Cost]
) -> list[Cost]:
    """Measures settings, and leaves out those that cannot be chosen for the target.

    More steps need more network calls and more time. So a choice is finished when it takes longer
    than the target, or as many calls as a setting that reaches the target error. Without a target,
    all settings are measured.
    """
    costs: list[Cost] = []
    for choice, num_steps in settings:
        if not any(_is_finished(cost, costs, target) for cost in costs if cost.choice == choice):
            costs.append(measure(choice, num_steps))
    return costs


def _is_finished(cost: Cost, costs: Sequence[Cost], target: Target | None) -> bool:
    """Whether more steps of the same choice are of no use."""
    if target is None:
        return False
    if target.metric == "seconds":
        return not _reaches(cost, target)
    return any(_reaches(other, target) and other.num_calls <= cost.num_calls for other in costs)


def _reaches(cost: Cost, target: Target) -> bool:
    return getattr(cost, target.metric) <= target.value


def frontier(costs: Iterable[Cost], metric: str = "mse") -> list[Cost]:
    """Returns the settings that no other one beats in network calls and error, by calls."""
    found: list[Cost] = []
    for cost in sorted(costs, key=lambda cost: (cost.num_calls, getattr(cost, metric))):
        if not found or getattr(cost, metric) < getattr(found[-1], metric):
            found.append(cost)
    return found


def choose(costs: Sequence[Cost], target: Target) -> Cost:
    """Returns the setting of fewest network calls; for a time, the one of least error.

    Raises UserError if no setting reaches the target.
    """
    reaching = [cost for cost in costs if _reaches(cost, target)]
    if not reaching:
        best = min(costs, key=lambda cost: getattr(cost, target.metric))
        fix = "fewer --steps or more seconds" if target.metric == "seconds" else "more --steps or a larger error"
        raise UserError(
            f"No setting reaches {describe(target)}: the best is "
            f"{describe(Target(target.metric, getattr(best, target.metric)))}, with {as_recommended(best)}. Use {fix}."
        )
    if target.metric == "seconds":
        return min(reaching, key=lambda cost: (cost.mse, cost.num_calls))
    return min(reaching, key=lambda cost: (cost.num_calls, getattr(cost, target.metric)))


def describe(target: Target) -> str:
    """Describes a target in a few words."""
    names = {"mse": "an MSE of", "lpips": "an LPIPS of", "seconds": "a time per image of"}
    return f"{names[target.metric]} {target.value:.3g}{' s' if target.metric == 'seconds' else ''}"


def as_recommended(cost: Cost) -> Recommended:
    """Returns a setting with its measurements, to store in a bundle."""
    measured = {name: getattr(cost, name) for name in ("mse", "lpips", "num_calls", "seconds")}
    known = {name: value for name, value in measured.items() if value is not None}
    return Recommended(cost.num_steps, cost.choice.inversion, cost.choice.sampler, cost.choice.grid, known)


def as_table(costs: Sequence[Cost]) -> str:
    """Formats settings as a table with a line for each."""
    header = ("steps", "inversion", "sampler", "grid", "network calls", "seconds", "MSE", "LPIPS")
    rows = [
        (
            *(str(cost.num_steps), cost.choice.inversion, cost.choice.sampler, cost.choice.grid),
            *(f"{cost.num_calls:.0f}", f"{cost.seconds:.2g}", f"{cost.mse:.2e}"),
            "" if cost.lpips is None else f"{cost.lpips:.4f}",
        )
        for cost in costs
    ]
    num_columns = len(header) - all(cost.lpips is None for cost in costs)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(num_columns)]
    return "\n".join(
        "  ".join(row[i].ljust(width) for i, width in enumerate(widths)).rstrip() for row in (header, *rows)
    )


def draw(path: AnyPath, costs: Sequence[Cost], metric: str = "mse", chosen: Cost | None = None) -> None:
    """Draws the error of settings against their network calls as a PNG, atomically.

    Args:
        path: The file to write.
        costs: The settings.
        metric: "mse" or "lpips".
        chosen: One of them, to mark.
    """

    def curve(costs: Iterable[Cost]) -> list[tuple[float, float]]:
        return [(cost.num_calls, getattr(cost, metric)) for cost in costs]

    names = dict.fromkeys(cost.choice.name for cost in costs)
    curves = {name: curve(cost for cost in costs if cost.choice.name == name) for name in names}
    curves["frontier"] = curve(frontier(costs, metric))
    if chosen is not None:
        curves[f"chosen: {chosen.num_steps} steps"] = curve([chosen])
    save_curves(path, {f"{metric.upper()} of reconstructions": curves}, "network calls per image")
