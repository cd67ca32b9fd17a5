"""Finds and reads configs: files of Python, those of the package by their names, and the config.json of a run."""

import inspect
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config.differences import flat
from diffae_jax.config.keys import FLAT_KEYS, KINDS, default
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import check_file, expand_home, os_errors_as_user_errors, read_json

PACKAGE = Path(__file__).parents[1]
RETIRED_KEYS = ("data.kind",)  # of earlier versions; the format is detected from the path
RENAMED_PROGRAMS = {"neighbours": "neighbors"}  # values of evaluation.programs in earlier versions


def packaged_configs() -> dict[str, Path]:
    """Returns the configs that come with the package, by their names."""
    installed = PACKAGE / "configs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "configs"  # which in a checkout lies beside it
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def locate(text: str) -> tuple[Path, str]:
    """Returns the file of a config and its variant, or "", from FILE or NAME, of which either may end in :VARIANT.

    A file of that path comes first. NAME and configs/NAME.py mean configs of the package, from any folder.

    Raises UserError, which lists those, if there is no such config.
    """
    packaged = packaged_configs()
    packaged |= {f"configs/{path.name}": path for path in packaged.values()}
    name, _, variant_name = text.rpartition(":")
    for candidate, behind in ((text, ""), (name, variant_name)):
        path = expand_home(candidate)
        with os_errors_as_user_errors(path):
            if path.is_file():
                return path, behind
        if candidate in packaged:
            return packaged[candidate], behind
    given = expand_home(name or text)
    if given.exists():
        check_file(given)  # raises, since it is no file
    names = ", ".join(packaged_configs())
    raise UserError(f"{given} is missing: give the path of a config, or the name of one of the package ({names}).")


def from_file(text: str) -> ConfigDict:
    """Reads a config: what get_config returns in the file of Python that `locate` finds, or a config.json.

    Raises UserError if it is none. The values are not checked.
    """
    path, variant_name = locate(text)
    if path.suffix.lower() == ".json":
        return from_json(path)
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        if variant_name and not inspect.signature(get_config).parameters:
            raise UserError(f"{path} has no variants: leave :{shown(variant_name)} off.")
        config = get_config(*filter(None, [variant_name]))
    except UserError:
        raise
    except Exception as error:  # a program of somebody else's, which may raise anything
        raise UserError(f"{path} is not a config ({type(error).__name__}: {shown(str(error))}).") from error
    if not isinstance(config, ConfigDict) or flat(config.to_dict()).keys() != FLAT_KEYS.keys():
        raise UserError(f"{path} is not a config: its get_config must return what config.default() does, changed.")
    return config


def from_json(path: Path) -> ConfigDict:
    """Reads a config.json. Keys that it lacks have their default values; the values are not checked.

    Keys of earlier versions that mean nothing any more are left out.

    Raises UserError if it is no config, for unknown keys and for values of the wrong type.
    """
    config = default()
    _update(config, read_json(path), path)
    return config


def _update(config: ConfigDict, values: Any, path: Path, prefix: str = "") -> None:
    """Sets what a config has; what it has not is refused before anybody looks into it."""
    if not isinstance(values, dict):
        raise UserError(
            f"{path} is not a config: {prefix.rstrip('.') or 'it'} is no group of keys, but {shown(values)}."
        )
    for key, value in values.items():
        if prefix + key in RETIRED_KEYS:
            continue
        if key not in config:
            raise UserError(
                f"{path} has the key {shown(prefix + key)}, which this version of diffae_jax does not know."
            )
        if isinstance(config[key], ConfigDict):
            _update(config[key], value, path, f"{prefix}{key}.")
            continue
        if isinstance(value, list):  # JSON has lists alone
            value = tuple(value)
        if prefix + key == "evaluation.programs" and isinstance(value, tuple):
            value = tuple(RENAMED_PROGRAMS.get(name, name) if isinstance(name, str) else name for name in value)
        elif type(value) is int and isinstance(config[key], tuple):  # what once was one number may be several now
            value = (value,)
        try:
            config[key] = value
        except (TypeError, OverflowError) as error:
            kind = KINDS[type(config[key])]
            raise UserError(f"{path} has {prefix}{key} = {shown(value)}, where {kind} is expected.") from error
