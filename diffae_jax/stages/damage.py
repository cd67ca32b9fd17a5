"""Sets aside what is damaged in a run folder, before a stage reads it."""

from diffae_jax.data.latents import INPUTS
from diffae_jax.inference.bundle import CONFIG, MANIFEST, WEIGHTS, damage_of_probes, read_manifest
from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, os_errors_as_user_errors, set_aside
from diffae_jax.training.checkpoint import set_aside_damaged


def set_aside_damage(folder: AnyPath) -> None:
    """Sets aside damaged checkpoints, probes and a damaged bundle, each with a warning.

    The stages then make them again. Damaged z are found by the stage latents, and a damaged file
    of weights in the bundle by the stage export. Raises UserError if no checkpoint is undamaged.
    """
    for stage in ("autoencoder", "prior"):
        set_aside_damaged(folder / stage / "checkpoints")
    with os_errors_as_user_errors(folder, "written"):
        if damage := damage_of_probes(folder / "probes"):
            say(f"WARNING: {damage}. All probes are fitted again. Check the disk.")
            (folder / "probes" / INPUTS).unlink()
        _set_aside_bundle(folder / "bundle")


def _set_aside_bundle(bundle: AnyPath) -> None:
    if isinstance(bundle, BucketPath) and not (bundle / MANIFEST).exists():
        return  # unfinished, and replaced by export
    if not ((bundle / CONFIG).exists() and (bundle / WEIGHTS).exists()):
        return  # none yet, or not a bundle, which export refuses to replace
    try:
        read_manifest(bundle)
    except UserError as error:
        say(f"WARNING: {error} It was renamed to {set_aside(bundle)}, and the stage export writes it again.")
