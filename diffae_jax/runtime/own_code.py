"""Imports the user's own modules. Never call this with a name from a downloaded file."""

import importlib

from diffae_jax.runtime.errors import UserError, shown


def import_own(module: str) -> None:
    """Imports a module by its dotted name. Raises UserError if it is missing or fails."""
    try:
        importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"The module {shown(module)} cannot be imported ({type(error).__name__}: {shown(str(error))}): install its "
            f"package or put its folder on PYTHONPATH."
        ) from error
