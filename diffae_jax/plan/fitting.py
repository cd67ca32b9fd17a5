"""Finds settings with which the training of a config fits into the memory of a target."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.plan.planning import Need, needs_of
from diffae_jax.plan.targets import Target
from diffae_jax.runtime.console import quantity
from diffae_jax.runtime.errors import UserError

Settings = dict[str, Any]  # config key -> value

MAX_MICROBATCHES = 16


def candidates(config: ConfigDict, num_devices: int) -> Iterator[Settings]:
    """Yields settings to try, the cheapest first: those that cost the least training speed.

    First the config as it is, then recomputed activations, microbatches, split weights (FSDP) and
    last smaller batches, which change the training itself.
    """
    execution, settings = config.execution, {}
    yield settings
    if not execution.remat:
        settings = settings | {"execution.remat": True}
        yield settings
    per_device, parts = config.train.batch_size // num_devices, execution.num_microbatches
    while 2 * parts <= min(per_device, MAX_MICROBATCHES) and per_device % (2 * parts) == 0:
        parts *= 2
        settings = settings | {"execution.num_microbatches": parts}
        yield settings
    if num_devices > 1 and execution.sharding != "fsdp":
        settings = settings | {"execution.sharding": "fsdp"}
        yield settings
    while per_device % 2 == 0:
        per_device //= 2
        settings = settings | {"train.batch_size": per_device * num_devices}
        if per_device % parts:
            parts = math.gcd(parts, per_device)
            settings["execution.num_microbatches"] = parts
        yield settings


def with_settings(config: ConfigDict, settings: Settings) -> ConfigDict:
    """Returns a copy of a config with some values replaced."""
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(settings)
    return changed


def fit(config: ConfigDict, target: Target, tried: Callable[[Settings, Need], None]) -> tuple[Settings, Need]:
    """Returns the first settings with which training fits, and what it then needs.

    Args:
        config: The config.
        target: The target.
        tried: Called after each attempt.

    Raises:
        UserError: It does not fit even with everything on.
    """
    least: tuple[Settings, Need] | None = None
    for settings in candidates(config, target.num_devices):
        (need,) = needs_of(with_settings(config, settings), target, ["train"])
        tried(settings, need)
        if need.memory <= target.chip.usable:
            return settings, need
        if least is None or need.memory < least[1].memory:
            least = settings, need
    settings, need = least
    raise UserError(
        f"{config.name} does not fit {target.name}: it needs at least {quantity(need.memory, 'B')} on each device, "
        f"with {flags_of(settings)}, and a device has {quantity(target.chip.usable, 'B')}. Use larger devices or "
        f"more of them, or a smaller model."
    )


def flags_of(settings: Settings) -> str:
    """Returns settings as flags to type."""
    return " ".join(f"--config.{key}={value}" for key, value in settings.items()) or "the config as it is"
