"""Checks the values of a config against the declarations in `keys`."""

import importlib.util
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config.differences import flat
from diffae_jax.config.intensity import parse_intensity
from diffae_jax.config.keys import FLAT_KEYS, KINDS, Key
from diffae_jax.diffusion.grids import GRIDS
from diffae_jax.diffusion.inversion import INVERSIONS
from diffae_jax.diffusion.samplers import SAMPLERS
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS
from diffae_jax.pretrained import is_shipped
from diffae_jax.runtime.arrays import refuse_traced
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import expand_home
from diffae_jax.runtime.hub import is_hub_address

MAX_NUMBER = 1e18
MAX_IMAGE_VALUES = 2**30
LICENSE = re.compile(r"[a-z0-9.+-]{0,50}")


def check(config: ConfigDict) -> None:
    """Checks the type and the range of every value of a config, and values that depend on others.

    Args:
        config: A config with all keys of `default()`.

    Raises:
        UserError: A value is invalid. The message names the first such key and its allowed values.
    """
    values = flat(config.to_dict())
    for name, key in FLAT_KEYS.items():
        _check_key(name, key, values[name])
    if math.prod(config.image_shape) > MAX_IMAGE_VALUES:
        raise UserError(
            f"image_shape {config.image_shape} has more than {MAX_IMAGE_VALUES:,} values. Set a smaller image_shape."
        )
    parse_intensity(config.data.intensity)
    check_license(config.export.license)
    for warmup, length in (("train.warmup_images", "train.num_images"), ("prior.warmup_latents", "prior.num_latents")):
        if values[warmup] >= values[length]:
            raise UserError(
                f"{warmup}={values[warmup]:,} must be less than {length}={values[length]:,}, or the learning rate "
                f"never reaches its full value. Set a shorter warm-up."
            )
    if config.train.freeze == "encoder" and config.model.z_dim is None:
        raise UserError("train.freeze=encoder cannot be used: a DDIM baseline has no encoder. Set it to none.")


def check_license(text: str) -> None:
    """Raises UserError if a text cannot be the identifier of a license. It may be empty."""
    if LICENSE.fullmatch(text) is None:
        raise UserError(
            f"The license must be an identifier of the Hub, such as cc-by-4.0, apache-2.0 or other, not {shown(text)}."
        )


def _check_key(name: str, key: Key, value: Any) -> None:
    if value is None and key.none:
        return
    if type(value) is not type(key.default):
        raise UserError(f"{name} must be {KINDS[type(key.default)]}, not {shown(value)}.")
    if isinstance(value, tuple):
        _check_list(name, key, value)
    elif key.choices and value not in key.choices:
        empty = " or empty" if "" in key.choices else ""
        raise UserError(f"{name} must be one of {', '.join(filter(None, key.choices))}{empty}, not {shown(value)}.")
    elif type(value) in (int, float):
        _check_number(name, key, value)


def _check_number(name: str, key: Key, value: int | float) -> None:
    if not abs(value) < MAX_NUMBER:
        raise UserError(f"{name} must be finite and less than {MAX_NUMBER:.0e}, not {shown(value)}.")
    if key.positive and not value > 0:
        raise UserError(f"{name} must be positive, not {shown(value)}.")
    if key.low is not None and not key.low <= value <= key.high:
        none = f", or None for {key.none}" if key.none else ""
        raise UserError(f"{name} must be between {key.low} and {key.high}{none}, not {shown(value)}.")


def _check_list(name: str, key: Key, values: tuple) -> None:
    if key.length and not key.length[0] <= len(values) <= key.length[1]:
        raise UserError(f"{name} must have {key.length[0]} to {key.length[1]} values, not {len(values)}.")
    if key.low is not None:
        for value in values:
            if type(value) is not int or not key.low <= value <= key.high:
                raise UserError(
                    f"Each value of {name} must be a positive whole number up to {key.high}, not {shown(value)}."
                )
    elif key.choices:
        if unknown := [value for value in values if value not in key.choices]:
            raise UserError(f"{name} may contain only {', '.join(key.choices)}, not {list_some(map(shown, unknown))}.")
    else:
        for value in values:
            if not isinstance(value, str):
                raise UserError(f"{name} must be a list of text, but contains {shown(value)}.")


def check_run(config: ConfigDict) -> None:
    """Checks a config, and that the packages and files that its run needs are available.

    Raises UserError if a package or file is missing. An already trained model does not need them.
    """
    check(config)
    if config.report.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            'report.tensorboard=True needs tensorboardX. Run pip install "diffae_jax[tensorboard]", or set it to False.'
        )
    if (tracker := config.report.tracker) != "none" and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f'report.tracker={tracker} needs {tracker}. Run pip install "diffae_jax[{tracker}]", or set it to none.'
        )
    evaluation = config.evaluation
    check_measured(evaluation)
    paths = (evaluation.baseline, *evaluation.others, evaluation.inception, evaluation.alexnet, evaluation.lpips)
    for path in filter(None, paths):
        if not (
            is_hub_address(path) or is_shipped(path) or expand_home(path).exists()
        ):  # fail now, not after days of training
            raise UserError(f"{path}, named in config.evaluation, is missing. Check the path.")
    if not config.name:
        raise UserError("name is empty, but it names the run folder. Set it with --config.name=NAME.")


def check_num_steps(num_steps: int) -> None:
    """Raises UserError if a number of diffusion steps is not a whole number from 1 to 1000."""
    refuse_traced("The number of steps", num_steps)
    if not (isinstance(num_steps, numbers.Integral) and 1 <= num_steps <= NUM_TIMESTEPS):
        raise UserError(f"Inversion, decoding and sampling take 1 to {NUM_TIMESTEPS} steps, not {shown(num_steps)}.")


def check_sampler(name: Any) -> None:
    """Raises UserError if no sampler has this name."""
    _check_name("sampler", name, SAMPLERS)


def check_grid(name: Any) -> None:
    """Raises UserError if no grid has this name."""
    _check_name("grid", name, GRIDS)


def check_inversion(name: Any) -> None:
    """Raises UserError if no method of inversion has this name."""
    _check_name("inversion", name, INVERSIONS)


def _check_name(kind: str, name: Any, table: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or name not in table:
        raise UserError(f"There is no {kind} {shown(name)}. Choose one of: {', '.join(table)}.")


def check_measured(settings: ConfigDict) -> None:
    """Raises UserError if an evaluation with these settings would measure an unknown method."""
    for check_name, names in ((check_sampler, settings.samplers), (check_inversion, settings.inversions)):
        for name in names:
            check_name(name)


def check_seed(seed: int) -> None:
    """Raises UserError if the random generator does not accept a seed."""
    key = FLAT_KEYS["seed"]
    if not (isinstance(seed, numbers.Integral) and key.low <= seed <= key.high):
        raise UserError(f"The seed must be a whole number between {key.low} and {key.high}, not {shown(seed)}.")
