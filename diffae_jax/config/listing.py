"""The keys as a list for people: python -m diffae_jax.config.listing > docs/config.md"""

from collections.abc import Iterator

from diffae_jax.config.keys import FLAT_KEYS, KEYS, Key, Section

INTRODUCTION = """\
# The keys of a config

<!-- Made by `python -m diffae_jax.config.listing > docs/config.md`. -->

A config file changes the default values below; the command line changes any key of a config:

    python -m diffae_jax.main --config=configs/ffhq128.py --config.train.batch_size=64 --config.model.z_dim=128

Keys marked as free may change when a run is resumed. All others decide the result: a run is not resumed with other
values of them.
"""
HEADER = "| key | default | values | meaning |\n|---|---|---|---|"


def as_markdown() -> str:
    """Returns the page docs/config.md."""
    lines = [INTRODUCTION]
    for title, meaning, names in _sections():
        lines += [f"## {title}\n", f"{meaning}\n", HEADER]
        for name in names:
            key = FLAT_KEYS[name]
            default = f"`{_shown(key.default)}`" if key.default != "" else ""
            cells = (f"`{name}`{' (free)' if key.free else ''}", default, values_of(key), key.meaning)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def as_text() -> str:
    """Returns the same for a terminal, a line or two a key."""
    lines = []
    for _, meaning, names in _sections():
        lines += ["", f"  {meaning}"]
        for name in names:
            key = FLAT_KEYS[name]
            values = values_of(key)
            quote = '"' if isinstance(key.default, tuple) else ""
            lines += [
                f"  --config.{name}={quote}{_shown(key.default)}{quote}",
                f"      {key.meaning}{values and f' ({values})'}",
            ]
    return "\n".join(lines[1:])


def values_of(key: Key) -> str:
    """Returns which values a key may have."""
    values = ", ".join(key.choices)
    if key.choices and isinstance(key.default, tuple):
        values = f"some of {values}"
    if key.low is not None:
        values = f"{key.low:,} to {key.high:,}"
    elif key.positive:
        values = "greater than 0"
    elif type(key.default) is bool:
        values = "True, False"
    elif isinstance(key.default, str) and not key.choices:
        values = "text"
    if key.length:
        values = f"{key.length[0]} to {key.length[1]} numbers, each {values}"
    return f"{values}; None: {key.none}" if key.none else values


def _sections() -> Iterator[tuple[str, str, list[str]]]:
    """Yields the title, the meaning and the names of the keys of each section; first the keys without a section."""
    yield "The run", "Keys without a section.", [name for name, key in KEYS.items() if isinstance(key, Key)]
    for title, section in KEYS.items():
        if isinstance(section, Section):
            yield title, section.meaning, [name for name in FLAT_KEYS if name.startswith(f"{title}.")]


def _shown(default: object) -> str:
    return f"{default:_}" if type(default) is int else str(default)


if __name__ == "__main__":
    print(as_markdown(), end="")
