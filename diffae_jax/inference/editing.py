"""Moves z along a probe and interpolates codes, without a network."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffae_jax.data.latents import LatentStatistics
from diffae_jax.diffusion.interpolation import lerp, slerp
from diffae_jax.probes import ClassProbe, Probe, find
from diffae_jax.runtime.arrays import AnyArray, is_traced, refuse_traced, to_host
from diffae_jax.runtime.errors import UserError, list_some, shown

MAX_STRENGTH = 1000  # images change visibly below 2
DEFAULT_STRENGTH = 0.3

Strength = float | int | jax.Array  # an array must hold one number


def moved(
    z: Float[AnyArray, "n d"],
    statistics: LatentStatistics,
    probe: Probe,
    strength: Strength | None,
    to: float | int | None,
) -> Float[AnyArray, "n d"]:
    """Moves z along a probe by a strength, or until the probe predicts `to`; see `DiffAE.move`."""
    if to is None:
        strength = DEFAULT_STRENGTH if strength is None else strength
        strengths = (jnp if is_traced(strength) else np).full(len(z), strength)
    else:
        strengths = probe.strength_to_reach(statistics.normalize(z), to)
    # adding a change keeps z exact at strength 0; normalizing and denormalizing z would round it
    return z + strengths[:, None].astype(np.float32) * (probe.shift(1.0) * statistics.std)


def check_edit(probe: Probe, strength: Any, to: Any) -> None:
    """Raises UserError if the strength or the value `to` of an edit is not possible."""
    if strength is not None and to is not None:
        raise UserError(f"An edit takes either a strength or a value `to`, not both (strength={strength}, to={to}).")
    if isinstance(strength, jax.Array) and strength.shape:
        raise UserError(f"The strength of an edit must be one number, not an array of shape {strength.shape}.")
    value = 0 if is_traced(strength) else strength.item() if isinstance(strength, jax.Array) else strength
    if not isinstance(value, numbers.Real | None) or not abs(value or 0) <= MAX_STRENGTH:
        raise UserError(
            f"The strength of an edit must be a number from -{MAX_STRENGTH} to {MAX_STRENGTH}, not {shown(value)}."
        )
    refuse_traced("The value `to` of an edit", to)
    if not isinstance(to, numbers.Real | None):
        raise UserError(f"The value `to` of an edit must be a number, not {shown(to)}.")
    if to is not None:
        probe.strength_to_reach(np.zeros((0, probe.z_dim), np.float32), to)


def as_probe(probe: Any, probes: Mapping[str, Probe | ClassProbe], z_dim: int) -> Probe | ClassProbe:
    """Returns `probe`, or the probe of that name in `probes`.

    Raises UserError if there is no such probe, or if it reads z of a different size.
    """
    probe = find(probes, probe) if isinstance(probe, str) else probe
    if not isinstance(probe, Probe | ClassProbe):
        raise UserError(f"A probe must be a name or a result of fit_probe, not {shown(probe)}.")
    if probe.z_dim != z_dim:
        raise UserError(f"The z of this model has {z_dim} dimensions, but probe {shown(probe.name)} has {probe.z_dim}.")
    return probe


def as_direction(probe: Probe | ClassProbe) -> Probe:
    """Returns the probe. Raises UserError if it has one direction per class."""
    if isinstance(probe, ClassProbe):
        names = list_some(each.name for each in probe.classes.values())
        raise UserError(f"Probe {shown(probe.name)} has a direction for each class. Choose one of {names}.")
    return probe


def path(
    z: Float[AnyArray, "2 d"] | None, x_T: Float[AnyArray, "2 *shape"], num_frames: int
) -> tuple[Float[AnyArray, "frames d"] | None, Float[AnyArray, "frames *shape"]]:
    """Interpolates the codes of two images: z on a straight line, x_T on an arc (Sec. 5.2)."""
    weights = jnp.linspace(0, 1, num_frames, dtype=jnp.float32)
    z = None if z is None else to_host(lerp(*jnp.asarray(z, jnp.float32), weights))
    return z, to_host(slerp(*jnp.asarray(x_T, jnp.float32), weights))


def deviation(images: Float[AnyArray, "n variations *shape"]) -> Float[AnyArray, "n *shape"]:
    """Returns the standard deviation over variations.

    Its gradient is 0, not NaN, where it is 0.
    """
    if not is_traced(images):
        return images.std(axis=1)
    variance = images.var(axis=1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
