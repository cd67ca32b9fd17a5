"""Finds and reads configs: Python files, packaged configs by name, and config.json files."""

import inspect
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config.differences import flat
from diffae_jax.config.keys import FLAT_KEYS, KINDS, default
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import AnyPath, check_file, expand_home, local_copy, os_errors_as_user_errors, read_json

PACKAGE = Path(__file__).parents[1]
RETIRED_KEYS = ("data.kind",)  # keys of earlier versions that are now ignored
# {key: {old value: new value}} for config.json files of earlier versions
RENAMED_VALUES = {"evaluation.programs": {"neighbours": "neighbors"}}


def packaged_configs() -> dict[str, Path]:
    """Returns the paths of the configs that come with the package, by name."""
    installed = PACKAGE / "configs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "configs"  # in a checkout, next to it
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def locate(text: str) -> tuple[AnyPath, str]:
    """Splits FILE, NAME, FILE:VARIANT or NAME:VARIANT into the path of the config and the variant.

    The variant is "" if none is given. An existing file has priority. NAME and configs/NAME.py
    refer to configs of the package, whatever the current folder is. Raises UserError if no config
    is found.
    """
    packaged = packaged_configs()
    packaged |= {f"configs/{path.name}": path for path in packaged.values()}
    name, _, variant_name = text.rpartition(":")
    for candidate, candidate_variant in ((text, ""), (name, variant_name)):
        path = expand_home(candidate)
        with os_errors_as_user_errors(path):
            if path.is_file():
                return path, candidate_variant
        if candidate in packaged:
            return packaged[candidate], candidate_variant
    given = expand_home(name or text)
    if given.exists():
        check_file(given)  # raises, because it is not a regular file
    names = ", ".join(packaged_configs())
    raise UserError(f"{given} is missing: give the path of a config, or the name of a packaged one ({names}).")


def from_file(text: str) -> ConfigDict:
    """Reads a config from a Python file with `get_config` or from a config.json.

    Args:
        text: A path, or the name of a packaged config such as "ffhq128". A Python file may be
            followed by a variant: "ffhq128:ddim".

    Returns:
        The config. Its values are not checked yet: see `check`.

    Raises:
        UserError: The file is missing, is not a config, or has no variants.
    """
    path, variant_name = locate(text)
    if path.suffix.lower() == ".json":
        return from_json(path)
    try:
        with local_copy(path) as local:
            get_config = runpy.run_path(str(local))["get_config"]
        if variant_name and not inspect.signature(get_config).parameters:
            raise UserError(f"{path} has no variants: remove :{shown(variant_name)}.")
        config = get_config(*filter(None, [variant_name]))
    except UserError:
        raise
    except Exception as error:  # the user's program may raise anything
        raise UserError(
            f"{path} is not a config ({type(error).__name__}: {shown(str(error))}). Correct its function get_config."
        ) from error
    if not isinstance(config, ConfigDict) or flat(config.to_dict()).keys() != FLAT_KEYS.keys():
        raise UserError(f"{path} is not a config: its get_config must return config.default() with changed values.")
    return config


def from_json(path: AnyPath) -> ConfigDict:
    """Reads a config.json. The values are not checked.

    Missing keys get their default values. Obsolete keys of earlier versions are ignored. Raises
    UserError if the file is not a config, has unknown keys, or has values of the wrong type.
    """
    config = default()
    _update(config, read_json(path), path)
    return config


def _update(config: ConfigDict, values: Any, path: AnyPath, prefix: str = "") -> None:
    """Copies values from JSON into a config. Raises UserError for unknown keys and wrong types."""
    if not isinstance(values, dict):
        name = f"`{prefix.rstrip('.')}`" if prefix else "the file"
        raise UserError(
            f"{path} is not a config: {name} must be a section, not {shown(values)}. Use the config.json of a run."
        )
    for key, value in values.items():
        if prefix + key in RETIRED_KEYS:
            continue
        if key not in config:
            raise UserError(
                f"{path} has the key {shown(prefix + key)}, which this version of diffae_jax does not have. "
                f"Install the version that wrote the file, or remove the key."
            )
        if isinstance(config[key], ConfigDict):
            _update(config[key], value, path, f"{prefix}{key}.")
            continue
        if isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
        elif type(value) is int and isinstance(config[key], tuple):  # earlier versions stored one number
            value = (value,)
        if isinstance(value, tuple):
            renamed = RENAMED_VALUES.get(prefix + key, {})
            value = tuple(renamed.get(item, item) if isinstance(item, str) else item for item in value)
        try:
            config[key] = value
        except (TypeError, OverflowError) as error:
            kind = KINDS[type(config[key])]
            raise UserError(f"{path} has {prefix}{key} = {shown(value)}, but it must be {kind}.") from error
