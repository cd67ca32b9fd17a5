"""The code that does what a tab of the page does, ready to copy."""

import dataclasses
import json
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Origin:
    """How code gets an image.

    Attributes:
        expression: the image, in Python.
        setup: a line before the expression, which may use `model`.
        imported: lines that import what the expression or the setup uses.
    """

    expression: str
    setup: str = ""
    imported: tuple[str, ...] = ()


def quoted(text: str) -> str:
    """Returns a text as a Python literal, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def snippet(location: str, origins: Iterable[Origin], body: str, *imports: str) -> str:
    """Returns a program.

    Args:
        location: the model, as `DiffAE.load` takes it.
        origins: the images that the body uses.
        body: the lines after the model is loaded.
        *imports: lines that import what the body uses, in addition to `DiffAE`.

    Returns:
        The program. It imports, loads the model, opens the images and runs the body.
    """
    origins = list(origins)
    lines = {"from diffae_jax import DiffAE", *imports, *(line for origin in origins for line in origin.imported)}
    standard = sorted(line for line in lines if "diffae_jax" not in line)
    ours = sorted(line for line in lines if "diffae_jax" in line)
    setups = dict.fromkeys(origin.setup for origin in origins if origin.setup)
    blocks = [standard, ours, [f"model = DiffAE.load({quoted(location)})", *setups, body.strip()]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"
