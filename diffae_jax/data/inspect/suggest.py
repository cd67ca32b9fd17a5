"""The command that trains on a data set."""

import functools
import shlex
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import from_file
from diffae_jax.data.detect import DIGITS
from diffae_jax.runtime.errors import shown

IMAGES, OF_DIGITS = "configs/images.py", "configs/digits.py"
TOLD_KEYS = (  # that the command to train may need
    "data.path",
    "image_shape",
    "model.encoder_channel_mults",
    "train.batch_size",
    "data.skip_bad",
    "data.crop",
    "data.intensity",
    "data.labels",
    "data.held_out",
    "data.held_out_share",
    "execution.num_workers",
)


def base_of(path: str) -> ConfigDict:
    """Returns the config to train with where none is given."""
    return from_file(file_of(path))


def file_of(path: str) -> str:
    """Returns the name of that config."""
    return OF_DIGITS if path == DIGITS else IMAGES


def to_train(
    file: str | None, before: ConfigDict, config: ConfigDict, num_training: int, *, has_bad: bool
) -> list[str]:
    """Returns the command to train, of which only what differs from its config is given, and why it is as it is."""
    config = config.copy_and_resolve_references()
    lines = []
    if num_training < config.train.batch_size:
        config.train.batch_size = 2 ** (num_training.bit_length() - 1)
        lines.append(f"The training images are fewer than one batch of {before.train.batch_size}, so it is less below.")
    if has_bad and not config.data.skip_bad:
        config.data.skip_bad = True
        lines.append("What cannot be used is left out below, by data.skip_bad; without it, repair or remove it first.")
    lines += fit_encoder(config)
    file, rest = file or file_of(config.data.path), ""
    if file.endswith(".json"):  # that of another run, whose name and folder are taken
        rest = f", the other keys as in {shown(file)}"
        file, before = file_of(config.data.path), base_of(config.data.path)
    flags = [flag(config, key) for key in TOLD_KEYS if value_of(config, key) != value_of(before, key)]
    command = " ".join(["python -m diffae_jax.main", f"--config={shlex.quote(file)}", *flags])
    return [*lines, f"To train{rest}:", f"  {command}"]


def fit_encoder(config: ConfigDict) -> list[str]:
    """Takes levels off the encoder where the images cannot be halved so often; tells where the UNet is in the way."""
    levels = len(config.model.channel_mults)
    if any(size % 2 ** (levels - 1) for size in config.image_shape[:-1]):
        return [f"The networks below take sizes that are multiples of {2 ** (levels - 1)}: training refuses others."]
    while any(size % 2 ** (len(config.model.encoder_channel_mults) - 1) for size in config.image_shape[:-1]):
        config.model.encoder_channel_mults = config.model.encoder_channel_mults[:-1]
    return []


def flag(config: ConfigDict, key: str) -> str:
    """Returns what sets a key on the command line of training, as a shell takes it."""
    value = value_of(config, key)
    return f"--config.{key}=" + (f'"{value}"' if isinstance(value, tuple) else shlex.quote(str(value)))


def value_of(config: ConfigDict, key: str) -> Any:
    """Returns the value of a key with dots."""
    return functools.reduce(lambda group, name: group[name], key.split("."), config)
