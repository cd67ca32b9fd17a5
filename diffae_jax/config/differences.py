"""Compares two configs, to decide whether a run may be resumed."""

from typing import Any

from diffae_jax.config.keys import FLAT_KEYS

ABSENT = "absent"


def differing_keys(old: dict[str, Any], new: dict[str, Any], also_free: tuple[str, ...] = ()) -> list[str]:
    """Returns "key: old -> new" for each key whose value differs. Configs are nested dicts.

    Keys that a resumed run may change (`free`) and the sections in `also_free` are ignored.
    """
    old, new = _comparable(old), _comparable(new)
    return [
        f"{name}: {old.get(name, ABSENT)} -> {new.get(name, ABSENT)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ABSENT) != new.get(name, ABSENT)
        and not (name in FLAT_KEYS and FLAT_KEYS[name].free)
        and name.partition(".")[0] not in also_free
    ]


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Flattens a config and turns tuples into lists, the only sequences of JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat(config).items()}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts: {"model": {"z_dim": 8}} becomes {"model.z_dim": 8}."""
    values = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return values
