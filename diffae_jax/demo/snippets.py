"""The code that does what a tab of the page does, ready to copy."""

import dataclasses
import json
from collections.abc import Iterable

LIBRARIES = {"Path(": "from pathlib import Path", "np.": "import numpy as np"}  # by what shows that code uses them


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


def snippet(location: str, origins: Iterable[Origin], body: str, names: str = "") -> str:
    """Returns a program.

    Args:
        location: the model, as `DiffAE.load` takes it.
        origins: the images that the body uses.
        body: the lines after the model is loaded.
        names: what else the body imports from the package, such as ", film, image_grid".

    Returns:
        The program. It imports, loads the model, opens the images and runs the body.
    """
    origins = list(origins)
    libraries = [line for used, line in LIBRARIES.items() if used in body]
    ours = {f"from diffae_jax import DiffAE{names}", *(line for origin in origins for line in origin.imported)}
    setups = dict.fromkeys(origin.setup for origin in origins if origin.setup)
    blocks = [libraries, sorted(ours), [f"model = DiffAE.load({quoted(location)})", *setups, body.strip()]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"
