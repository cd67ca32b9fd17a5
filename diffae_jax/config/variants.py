"""Variants of a config, as in --config=NAME:VARIANT."""

import re

from ml_collections import ConfigDict

from diffae_jax.runtime.errors import UserError, shown


def variant(config: ConfigDict, name: str | None) -> ConfigDict:
    """Changes a config to one of its variants, and appends the variant to the name of the config.

    Args:
        config: The config; it is changed in place.
        name: "ddim": the DDIM baseline, a UNet without z. "zN", such as "z64": z has N dimensions,
            1 to 99,999. "v": both networks predict v instead of the noise. None or "": no change.

    Returns:
        The same config.

    Raises:
        UserError: There is no such variant.

    Source: Table 2, b to e (smaller z).
    """
    if name:
        z_variant = re.fullmatch("z([1-9][0-9]{0,4})", name)
        if name not in ("ddim", "v") and not z_variant:
            raise UserError(
                f"There is no variant {shown(name)} of {config.name}: use ddim (the baseline without z), v (networks "
                f"that predict v) or, for example, z64 (a z of 64 dimensions)."
            )
        config.name += f"_{name}"
        if name == "v":
            config.train.parameterization = config.prior.parameterization = "v"
        else:
            config.model.z_dim = int(z_variant[1]) if z_variant else None
    return config
