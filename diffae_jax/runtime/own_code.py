"""The code of this package, and the import of the user's own modules."""

import hashlib
import importlib
from pathlib import Path

from diffae_jax.runtime.errors import UserError, shown


def import_own(module: str) -> None:
    """Imports a module by its dotted name. Raises UserError if it is missing or fails.

    Never call this with a name from a downloaded file.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"The module {shown(module)} cannot be imported ({type(error).__name__}: {shown(str(error))}): install its "
            f"package or put its folder on PYTHONPATH."
        ) from error


def code_digest() -> str:
    """Returns a hash of the Python files of the package."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
