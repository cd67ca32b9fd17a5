"""Suggests a command that trains on a data set."""

import functools
import re
import shlex
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import from_file
from diffae_jax.data.detect import DIGITS, split_part
from diffae_jax.runtime.errors import shown
from diffae_jax.runtime.files import local_path

IMAGES, OF_DIGITS = "configs/images.py", "configs/digits.py"
COMMAND_KEYS = (  # the command sets these keys if they differ from the config
    "name",
    "data.path",
    "image_shape",
    "model.encoder_channel_mults",
    "train.batch_size",
    "data.skip_bad",
    "data.crop",
    "data.intensity",
    "data.labels",
    "data.id_column",
    "data.held_out",
    "data.held_out_share",
    "data.include",
    "data.exclude",
    "execution.num_workers",
)


def default_config(path: str) -> ConfigDict:
    """Returns the config to train with if the user gives none."""
    return from_file(default_file(path))


def default_file(path: str) -> str:
    """Returns the file of the default config for a path of images."""
    return OF_DIGITS if path == DIGITS else IMAGES


def training_command(
    file: str | None, base: ConfigDict, config: ConfigDict, num_training: int, *, has_bad: bool
) -> list[str]:
    """Returns lines with the training command and the reasons for its settings.

    The command only sets keys that differ from the config in `file`.
    """
    config = config.copy_and_resolve_references()
    lines = []
    if num_training < config.train.batch_size:
        config.train.batch_size = 2 ** (num_training.bit_length() - 1)
        lines.append(
            f"There are fewer training images than one batch of {base.train.batch_size}, so the command sets a smaller "
            f"batch size."
        )
    if has_bad and not config.data.skip_bad:
        config.data.skip_bad = True
        lines.append(
            "The command leaves out images that cannot be used (data.skip_bad=True). If you repair or remove them, "
            "omit this setting."
        )
    lines += fit_encoder(config)
    if file is None and config.data.path != DIGITS:
        config.name = name_of(config.data.path)
    file, rest = file or default_file(config.data.path), ""
    if file.endswith(".json"):  # of another run: its name and folder are in use
        config.name = name_of(config.data.path)
        rest = f" (set the other keys as in {shown(file)} yourself)"
        file, base = default_file(config.data.path), default_config(config.data.path)
    flags = [flag(config, key) for key in COMMAND_KEYS if value_of(config, key) != value_of(base, key)]
    command = " ".join(["python -m diffae_jax.main", f"--config={shlex.quote(file)}", *flags])
    return [*lines, f"To train{rest}:", f"  {command}"]


def name_of(path: str) -> str:
    """Returns a name for a run: that of the folder or file of its images."""
    file = local_path(split_part(path)[0]).resolve()
    stem = file.name.partition(".")[0] if file.is_file() else file.name
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "images"


def flags_for_shape(config: ConfigDict, image_shape: tuple[int, ...]) -> list[str]:
    """Returns the flags that set an image_shape and fit the encoder of the config to it."""
    fitted = config.copy_and_resolve_references()
    fitted.image_shape = image_shape
    fit_encoder(fitted)
    keys = ("image_shape", "model.encoder_channel_mults")
    return [flag(fitted, key) for key in keys if value_of(fitted, key) != value_of(config, key)]


def fit_encoder(config: ConfigDict) -> list[str]:
    """Removes encoder levels until each can halve the image. Warns if the UNet does not fit."""
    levels = len(config.model.channel_mults)
    if any(size % 2 ** (levels - 1) for size in config.image_shape[:-1]):
        return [
            f"The networks of this config need sizes that are multiples of {2 ** (levels - 1)}. Training stops with an "
            f"error for other sizes. Change --image-shape."
        ]
    while any(size % 2 ** (len(config.model.encoder_channel_mults) - 1) for size in config.image_shape[:-1]):
        config.model.encoder_channel_mults = config.model.encoder_channel_mults[:-1]
    return []


def flag(config: ConfigDict, key: str) -> str:
    """Returns the flag that sets a key to its current value, quoted for a shell."""
    value = value_of(config, key)
    return f"--config.{key}=" + (f'"{value}"' if isinstance(value, tuple) else shlex.quote(str(value)))


def value_of(config: ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key."""
    return functools.reduce(lambda group, name: group[name], key.split("."), config)
