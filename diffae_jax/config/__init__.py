"""The keys of an experiment: what each means, the values of the paper, and what may change between runs."""

from diffae_jax.config.settings import (
    MAX_LEVELS,
    MAX_PRIOR_LAYERS,
    PROGRAMS,
    check,
    check_num_steps,
    check_run,
    check_sampler,
    check_seed,
    default,
    differing_keys,
    format_intensity,
    from_file,
    from_json,
    parse_intensity,
    variant,
)

__all__ = [
    "MAX_LEVELS",
    "MAX_PRIOR_LAYERS",
    "PROGRAMS",
    "check",
    "check_num_steps",
    "check_run",
    "check_sampler",
    "check_seed",
    "default",
    "differing_keys",
    "format_intensity",
    "from_file",
    "from_json",
    "parse_intensity",
    "variant",
]
