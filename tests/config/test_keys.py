"""The declared keys: checks of each key, and the page that lists them."""

import json

import pytest

from diffae_jax.config import check, default, differing_keys
from diffae_jax.config.keys import FLAT_KEYS
from diffae_jax.config.listing import as_markdown
from diffae_jax.runtime.errors import UserError
from tests.environment import ROOT


def changed(name, value):
    """The default config with another value, of any type, as a config.json may have it."""
    config = default()
    section, _, last = name.rpartition(".")
    target = config
    for part in filter(None, section.split(".")):
        target = target[part]
    with config.unlocked(), target.ignore_type():
        target[last] = value
    return config


def wrong_values(key):
    """Values that a key must refuse by its declaration."""
    yield b"1"
    yield None if not key.none else "none"
    if isinstance(key.default, tuple):
        good = key.default[0] if key.default else "path"
        yield (*key.default[:1], b"1")
        yield (1.5,)
        if key.choices:
            yield (good, "other")
        if key.high is not None:
            yield from ((good, key.low - 1, good), (good, key.high + 1, good), (True, good))
        if key.length:
            yield from ((good,) * (key.length[1] + 1), (good,) * max(0, key.length[0] - 1) if key.length[0] else "none")
    elif isinstance(key.default, bool):
        yield 1
    elif isinstance(key.default, str):
        yield 1
        if key.choices:
            yield from ("", "other", next(iter(key.choices)).upper())
    else:
        assert key.positive or None not in (key.low, key.high), "a number without bounds"
        yield from ("1", float("nan"), float("inf"), -1)
        if type(key.default) is int:
            yield from (True, 1.5)
        if key.positive:
            yield from (0, type(key.default)(0), 10**19)
        else:
            yield from (key.low - 1, key.high + 1, type(key.default)(key.high + 1))


def right_values(key):
    if key.none:
        yield None
    if isinstance(key.default, tuple):
        if key.high is not None:
            yield (key.low,) * max(1, key.length[0])
        if key.choices:
            yield tuple(key.choices)[::-1]
        if key.default == ():
            yield ("a", "b")
    elif key.choices:
        yield from key.choices
    elif key.high is not None:
        yield from (type(key.default)(key.low), type(key.default)(key.high))
    elif isinstance(key.default, bool):
        yield not key.default


@pytest.mark.parametrize("name", FLAT_KEYS)
def test_key_takes_what_is_declared_and_nothing_else(name):
    for value in right_values(FLAT_KEYS[name]):
        config = changed(name, value)
        if "warmup" in name:  # must be shorter than the training
            config.train.num_images = config.prior.num_latents = value + 1
        check(config)
    for value in wrong_values(FLAT_KEYS[name]):
        with pytest.raises(UserError, match=rf"^(\S+ )*{name} (must|are|may) [^\n]+\.$"):
            check(changed(name, value))


def test_bounds_are_those_of_networks_that_a_machine_survives():
    bounds = {name: key.high for name, key in FLAT_KEYS.items() if key.high is not None and name.startswith("model.")}
    assert bounds == {
        "model.base_channels": 4096,
        "model.channel_mults": 64,
        "model.encoder_channel_mults": 64,
        "model.attention_resolutions": 65_536,
        "model.embed_dim": 65_536,
        "model.z_dim": 65_536,
        "model.num_heads": 1024,
        "model.num_res_blocks": 8,
        "model.dropout": 0.99,
    }
    assert (FLAT_KEYS["prior.num_layers"].high, FLAT_KEYS["prior.width"].high) == (50, 65_536)


def test_free_keys_are_the_budget_the_data_paths_and_whatever_changes_no_result():
    free = {name for name, key in FLAT_KEYS.items() if key.free}
    budget_and_paths = {
        "train.num_images",
        "prior.num_latents",
        "data.path",
        "data.held_out",
        "data.labels",
        "data.id_column",
    }
    sections = {name for name in FLAT_KEYS if name.partition(".")[0] in ("execution", "report", "evaluation", "export")}
    assert free == budget_and_paths | sections
    for name, key in FLAT_KEYS.items():
        other = changed(name, "another").to_dict()
        expected = [] if key.free else [f"{name}: {json.loads(json.dumps(key.default))} -> another"]
        assert differing_keys(default().to_dict(), other) == expected


def test_page_lists_every_key_as_declared():
    assert (ROOT / "docs" / "config.md").read_text() == as_markdown(), (
        "write it again: python -m diffae_jax.config.listing > docs/config.md"
    )
    rows = [line.split("|")[1] for line in as_markdown().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(FLAT_KEYS)
    assert all(key.meaning for key in FLAT_KEYS.values())
