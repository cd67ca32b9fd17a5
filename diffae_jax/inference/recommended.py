"""The recommended settings of a model: how to invert and decode an image and the cost of that.

`diffae budget` measures them and stores them in the manifest of a bundle.
"""

import dataclasses
from typing import Any

from diffae_jax.config import check_num_steps
from diffae_jax.diffusion.grids import GRIDS
from diffae_jax.diffusion.inversion import INVERSIONS
from diffae_jax.diffusion.samplers import SAMPLERS
from diffae_jax.runtime.arrays import is_finite
from diffae_jax.runtime.console import warn
from diffae_jax.runtime.errors import UserError, counted, shown

DEFAULT_STEPS = 100
DEFAULT_INVERSION = "ddim"
MEASURED = ("mse", "lpips", "num_calls", "seconds")


@dataclasses.dataclass(frozen=True)
class Recommended:
    """The settings that `DiffAE` inverts and decodes images with if a call names none.

    Args:
        num_steps: The number of steps, 1 to 1,000.
        inversion: A name in `diffusion.inversion.INVERSIONS`.
        sampler: A name in `diffusion.samplers.SAMPLERS`.
        grid: A name in `diffusion.grids.GRIDS`.
        measured: What was measured with these settings, per image: "mse" in [0, 1], "lpips" if
            known, "num_calls" of the network and "seconds".
    """

    num_steps: int
    inversion: str
    sampler: str
    grid: str
    measured: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Describes the settings in a few words."""
        methods = f"inversion {self.inversion}, sampler {self.sampler}, grid {self.grid}"
        return f"{counted(self.num_steps, 'step')}, {methods}"

    @property
    def methods(self) -> tuple[str, str, str]:
        """The names of the inversion, the sampler and the grid."""
        return self.inversion, self.sampler, self.grid

    @property
    def options(self) -> str:
        """The options of a command that select these settings."""
        return f"--steps={self.num_steps} --inversion={self.inversion} --sampler={self.sampler} --grid={self.grid}"

    def as_json(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return dataclasses.asdict(self)


def with_defaults(
    recommended: Recommended | None,
    num_steps: int | None,
    inversion: Any = None,
    sampler: Any = None,
    grid: str | None = None,
) -> tuple[tuple[int, Any, Any, str | None], bool]:
    """Completes what a call names: by the recommended settings if it names nothing.

    Returns steps, inversion, sampler and grid, and whether they are recommended. Sampler and grid
    may be None: then those that suit the inversion. Raises UserError for a wrong number of steps.
    """
    named = (num_steps, inversion, sampler, grid)
    if recommended is not None and all(value is None for value in named):
        return (recommended.num_steps, *recommended.methods), True
    num_steps = DEFAULT_STEPS if num_steps is None else num_steps
    check_num_steps(num_steps)
    return (num_steps, inversion or DEFAULT_INVERSION, sampler, grid), False


def from_json(content: Any, name: str) -> Recommended | None:
    """Reads what `Recommended.as_json` returned. `name` is that of the file, for messages.

    Returns None, and logs a warning, if this version does not know a name. Raises UserError if the
    content is damaged.
    """
    if content is None:
        return None
    texts = {key: content.get(key) for key in ("inversion", "sampler", "grid")} if isinstance(content, dict) else {}
    measured = content.get("measured", {}) if isinstance(content, dict) else None
    if not texts or not all(isinstance(text, str) for text in texts.values()) or not _are_figures(measured):
        raise UserError(f"The recommended settings in {name} are damaged. Run diffae budget again.")
    steps = content.get("num_steps")
    if type(steps) is not int:
        raise UserError(f"The recommended settings in {name} are damaged. Run diffae budget again.")
    check_num_steps(steps)
    for (key, text), table in zip(texts.items(), (INVERSIONS, SAMPLERS, GRIDS), strict=True):
        if text not in table:
            warn(f"The recommended settings in {name} are not used: there is no {key} {shown(text)} in this version.")
            return None
    return Recommended(steps, **texts, measured=measured)


def _are_figures(measured: Any) -> bool:
    return isinstance(measured, dict) and all(
        key in MEASURED and type(value) in (int, float) and is_finite(value) for key, value in measured.items()
    )
