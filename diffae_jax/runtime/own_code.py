"""Modules of the user's own, imported because the user named them; never because a file from elsewhere did."""

import importlib

from diffae_jax.runtime.errors import UserError, shown


def import_own(module: str) -> None:
    """Imports a module by its dotted name. Raises UserError where it is not there or fails."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a program of somebody else's, which may raise anything
        raise UserError(
            f"The module {shown(module)} cannot be imported ({type(error).__name__}: {shown(str(error))}): install its "
            f"package or put its folder on PYTHONPATH."
        ) from error
