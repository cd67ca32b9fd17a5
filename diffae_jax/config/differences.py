"""Compares two configs, to decide whether a run may be resumed or continued differently."""

from typing import Any

from diffae_jax.config.keys import FLAT_KEYS

ABSENT = "absent"
SHAPED_BY = {  # a length is free, unless the learning rate depends on it
    "train.num_images": "train.learning_rate_schedule",
    "prior.num_latents": "prior.learning_rate_schedule",
}


def differing_keys(old: dict[str, Any], new: dict[str, Any], also_free: tuple[str, ...] = ()) -> list[str]:
    """Returns "key: old -> new" for each key whose value differs. Configs are nested dicts.

    Keys that a resumed run may change (`free`) and the sections in `also_free` are ignored.
    """
    return [
        text
        for name, text in changes(old, new).items()
        if not _is_free(name, new) and name.partition(".")[0] not in also_free
    ]


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Returns "key: old -> new" of each key whose value differs, by key. Configs are nested."""
    old, new = _comparable(old), _comparable(new)
    return {
        name: f"{name}: {old.get(name, ABSENT)} -> {new.get(name, ABSENT)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    }


def shapes_networks(name: str) -> bool:
    """Returns whether a key decides which weights the encoder and the UNet have."""
    return name == "image_shape" or (name.startswith("model.") and name != "model.dropout")


def _is_free(name: str, config: dict[str, Any]) -> bool:
    """Returns whether a run may be resumed with another value of a key."""
    if name in SHAPED_BY and flat(config).get(SHAPED_BY[name], "constant") != "constant":
        return False
    return name in FLAT_KEYS and FLAT_KEYS[name].free


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Flattens a config and turns tuples into lists, the only sequences of JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat(config).items()}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts: {"model": {"z_dim": 8}} becomes {"model.z_dim": 8}."""
    values = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return values
