"""Variants of a config: what stands behind the colon of --config=NAME:VARIANT."""

import re

from ml_collections import ConfigDict

from diffae_jax.runtime.errors import UserError, shown


def variant(config: ConfigDict, name: str | None) -> ConfigDict:
    """Applies a variant to a config, and adds it to its name.

    "ddim" is the DDIM baseline, without z; "z64", say, has a z of 64 dimensions (Table 2, b to e); in "v" both networks
    predict v instead of the noise.
    """
    if name:
        of_z = re.fullmatch("z([1-9][0-9]{0,4})", name)
        if name not in ("ddim", "v") and not of_z:
            raise UserError(
                f"There is no variant {shown(name)} of {config.name}: give ddim, the baseline without z, v, for "
                f"networks that predict v, or, for example, z64 for a z of 64 dimensions."
            )
        config.name += f"_{name}"
        if name == "v":
            config.train.parameterization = config.prior.parameterization = "v"
        else:
            config.model.z_dim = int(of_z[1]) if of_z else None
    return config
