"""The samplers, grids and inversions that a call names, and which of them go together."""

import dataclasses
from typing import Any

from diffae_jax.config import check_grid, check_inversion, check_sampler
from diffae_jax.diffusion.inversion import INVERSIONS, Inversion, Method
from diffae_jax.diffusion.loop import Sampler
from diffae_jax.diffusion.samplers import SAMPLERS
from diffae_jax.runtime.errors import UserError


def as_sampler(sampler: Any, grid: str | None = None) -> Sampler:
    """Returns a sampler on a grid.

    Args:
        sampler: a name in `SAMPLERS`, or a `Sampler`.
        grid: a name in `GRIDS`; by default that of the sampler.

    Raises:
        UserError: if a name is unknown, or if the grid does not suit the sampler.
    """
    if not isinstance(sampler, Sampler):
        check_sampler(sampler)
        sampler = SAMPLERS[sampler]
    if grid is None:
        return sampler
    check_grid(grid)
    if grid in sampler.poor_grids:
        name = _name_of(sampler)
        raise UserError(
            f"{name} on the grid {grid} is less accurate than ddim with as many steps. Use grid {sampler.grid} or "
            f"another sampler."
        )
    return dataclasses.replace(sampler, grid=grid)


def as_inversion(method: Any, grid: str | None = None) -> Sampler:
    """Returns the sampler of a method of inversion on a grid.

    Args:
        method: a name in `INVERSIONS`, or a `Method`.
        grid: a name in `GRIDS`; by default that of the method.

    Raises:
        UserError: if a name is unknown.
    """
    return as_sampler(_as_method(method).sampler, grid)


def as_round_trip(inversion: Any, sampler: Any = None, grid: str | None = None) -> tuple[Sampler, Sampler]:
    """Returns the samplers that invert and decode an image, both on the same grid.

    Args:
        inversion: a name in `INVERSIONS`, or a `Method`.
        sampler: a name in `SAMPLERS`, or a `Sampler`; by default the one that suits the inversion.
        grid: a name in `GRIDS`; by default that of the sampler.

    Raises:
        UserError: if a name is unknown, or if the sampler does not decode what the method inverts.
    """
    method = _as_method(inversion)
    decoders = method.decoders
    decoder = as_sampler(sampler or next(iter(decoders), "ddim"), grid)
    if decoder.stochastic:
        raise UserError(
            f"{_name_of(decoder)} adds random noise, so it does not decode an inverted image again. Use another "
            f"sampler, or random x_T."
        )
    if decoders and not any(_same_method(decoder, SAMPLERS[name]) for name in decoders):
        raise UserError(
            f"{_name_of(decoder)} does not decode the x_T of this inversion. Use sampler "
            f"{' or '.join(decoders)}, or the inversion ddim."
        )
    return dataclasses.replace(method.sampler, grid=decoder.grid), decoder


def cost(inversion: Inversion) -> str:
    """Describes the network calls and the residual of an inversion on the host."""
    calls, residual = inversion.num_calls, inversion.residual
    return (
        f"Inversion took {calls.mean():.0f} network calls per image (at most {calls.max():,}); the largest error of a "
        f"step is {residual.max():.1e}."
    )


def _as_method(method: Any) -> Method:
    if isinstance(method, Method):
        return method
    check_inversion(method)
    return INVERSIONS[method]


def _same_method(sampler: Sampler, other: Sampler) -> bool:
    return dataclasses.replace(sampler, grid=other.grid) == other


def _name_of(sampler: Sampler) -> str:
    names = (f"Sampler {name}" for name, known in SAMPLERS.items() if _same_method(sampler, known))
    return next(names, "This sampler")
