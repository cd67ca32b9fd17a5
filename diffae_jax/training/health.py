"""Whether training is well: finite numbers, and a z that the decoder makes use of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffae_jax.runtime.errors import UserError
from diffae_jax.training.loss_scale import MINIMUM_SCALE
from diffae_jax.training.step import Metrics

USEFUL_Z = 0.98  # loss with the own z over loss with another's, below which z counts as used
WARM_UP_IMAGES = 20_000  # before which a z without use is no cause for worry


def effective_rank(z: Float[Array, "n d"]) -> Float[Array, ""]:
    """exp of the entropy of the normalized spectrum of centered z: how many directions carry its variance."""
    spectrum = jnp.square(jnp.linalg.svd(z - z.mean(0), compute_uv=False))
    share = spectrum / jnp.maximum(spectrum.sum(), 1e-30)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def z_health(z: Float[Array, "n d"], loss_given_z: Callable[[Array], Float[Array, "n"]]) -> Metrics:
    """Returns the effective rank of z of at least two images, and the loss with their own z and with that of another.

    `loss_given_z` returns the loss of each image decoded with the given z, noise and time steps fixed.
    """
    return {
        "z/effective_rank": effective_rank(z),
        "z/loss_own": loss_given_z(z).mean(),
        "z/loss_shuffled": loss_given_z(jnp.roll(z, 1, axis=0)).mean(),
    }


def describe_z(values: dict[str, float], images: int) -> str:
    """Says in one line whether z is learning, with a warning and its remedy where it is not."""
    own, shuffled = values["z/loss_own"], values["z/loss_shuffled"]
    line = (
        f"z: effective rank {values['z/effective_rank']:.1f}, gradient norm of the encoder "
        f"{values['grad_norm/encoder']:.2g}, loss {own:.4f} with its own z, {shuffled:.4f} with another's: "
    )
    if own < USEFUL_Z * shuffled:
        return line + "z is learning."
    if images < WARM_UP_IMAGES:
        return line + (
            "z does not matter yet. The UNet's output layers start at zero, so the encoder's first gradient is zero."
        )
    return line + (
        f"WARNING: after {images:,} images the decoder still ignores z. Check that the images differ and are scaled "
        f"well (the grids show what the network sees), train longer, or raise --config.train.learning_rate."
    )


def check_finite(step: int, metrics: dict[str, float], last_saved: int | None) -> None:
    """Raises UserError where a step's loss or gradient is not finite, or float16 has no scale left to try."""
    saved = "nothing was saved yet" if last_saved is None else f"step {last_saved} is saved and good"
    if "loss_scale" not in metrics and not metrics["finite"]:
        raise UserError(
            f"Step {step}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}, so training "
            f"stopped ({saved}): look for broken images, or set a lower --config.train.learning_rate."
        )
    if metrics.get("loss_scale", MINIMUM_SCALE) < MINIMUM_SCALE:
        raise UserError(
            f"Step {step}: gradients overflow float16 at every loss scale down to {MINIMUM_SCALE}, so training "
            f"stopped ({saved}): use --config.train.precision=float32 or a lower --config.train.learning_rate."
        )
