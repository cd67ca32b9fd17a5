"""The settings of an experiment: declared keys, checks, variants, and reading of files.

A config is a `ConfigDict` of plain values. This package imports no network, data or training code.
"""

from diffae_jax.config.check import (
    check,
    check_grid,
    check_inversion,
    check_license,
    check_measured,
    check_num_steps,
    check_run,
    check_sampler,
    check_seed,
)
from diffae_jax.config.differences import differing_keys
from diffae_jax.config.intensity import format_intensity, parse_intensity
from diffae_jax.config.keys import MAX_LEVELS, MAX_PRIOR_LAYERS, PROGRAMS, default
from diffae_jax.config.reading import from_file, from_json, packaged_configs
from diffae_jax.config.variants import variant

__all__ = [
    "MAX_LEVELS",
    "MAX_PRIOR_LAYERS",
    "PROGRAMS",
    "check",
    "check_grid",
    "check_inversion",
    "check_license",
    "check_measured",
    "check_num_steps",
    "check_run",
    "check_sampler",
    "check_seed",
    "default",
    "differing_keys",
    "format_intensity",
    "from_file",
    "from_json",
    "packaged_configs",
    "parse_intensity",
    "variant",
]
