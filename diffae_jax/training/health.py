"""Checks of training: the loss and gradients are finite, and the decoder uses z."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffae_jax.runtime.errors import UserError
from diffae_jax.training.loss_scale import MINIMUM_SCALE
from diffae_jax.training.step import Metrics

USEFUL_Z = 0.98  # z counts as used if (loss with own z) / (loss with another image's z) is lower
WARM_UP_IMAGES = 20_000  # images seen before an unused z gives a warning


def effective_rank(z: Float[Array, "n d"]) -> Float[Array, ""]:
    """Returns the effective rank of z: about how many directions carry its variance.

    It is exp of the entropy of the normalized eigenvalue spectrum of centered z.
    """
    spectrum = jnp.square(jnp.linalg.svd(z - z.mean(0), compute_uv=False))
    share = spectrum / jnp.maximum(spectrum.sum(), 1e-30)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def z_health(z: Float[Array, "n d"], loss_given_z: Callable[[Array], Float[Array, "n"]]) -> Metrics:
    """Returns the effective rank of z, and the loss with each image's own and another image's z.

    Needs z of at least two images. `loss_given_z` returns the loss of each image for a given z,
    with fixed noise and time steps.
    """
    return {
        "z/effective_rank": effective_rank(z),
        "z/loss_own": loss_given_z(z).mean(),
        "z/loss_shuffled": loss_given_z(jnp.roll(z, 1, axis=0)).mean(),
    }


def describe_z(values: dict[str, float], images: int) -> str:
    """Describes in one line whether the UNet uses z, with a warning and a fix if it does not."""
    own, shuffled = values["z/loss_own"], values["z/loss_shuffled"]
    line = (
        f"z: effective rank {values['z/effective_rank']:.1f}, gradient norm of the encoder "
        f"{values['grad_norm/encoder']:.2g}, loss {own:.4f} with each image's own z, {shuffled:.4f} with "
        f"another image's z. "
    )
    if own < USEFUL_Z * shuffled:
        return line + "The UNet uses z."
    if images < WARM_UP_IMAGES:
        return line + (
            "The UNet does not use z yet. That is normal: output layers start at zero, so the encoder has no gradient "
            "at first."
        )
    return line + (
        f"WARNING: after {images:,} images, the UNet ignores z. Check in the grids that the images differ and have "
        f"normal contrast, train longer, or raise --config.train.learning_rate."
    )


def check_finite(
    step: int,
    metrics: dict[str, float],
    last_saved: int | None,
    stage: str = "autoencoder",
    explain: Callable[[], str] | None = None,
) -> None:
    """Raises UserError if the loss or a gradient is not finite.

    With float16, raises it only at the lowest loss scale. The message has the explanation that
    `explain` returns; without it, the message says how to get one.
    """
    learning_rate = f"--config.{'prior' if stage == 'prior' else 'train'}.learning_rate"
    saved = "nothing has been saved yet" if last_saved is None else f"you can resume from step {last_saved}"

    def reason() -> str:
        if explain is None:
            return "For the images and the layer, resume with one process and --config.report.debug_nonfinite=True. "
        return f"{explain()} ".lstrip()

    if "loss_scale" not in metrics and not metrics["finite"]:
        raise UserError(
            f"Step {step}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}, so training "
            f"stopped ({saved}). {reason()}Look for broken images, or set a lower {learning_rate}."
        )
    if metrics.get("loss_scale", MINIMUM_SCALE) < MINIMUM_SCALE:
        raise UserError(
            f"Step {step}: gradients overflow float16 at every loss scale down to {MINIMUM_SCALE}, so training "
            f"stopped ({saved}). {reason()}Use --config.train.precision=float32 or a lower {learning_rate}."
        )
