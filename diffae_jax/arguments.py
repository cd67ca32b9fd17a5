"""Arguments of the shell, read and checked before anything is imported that takes its time."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from diffae_jax.errors import UserError, shown


class Parser(argparse.ArgumentParser):
    """A parser that tells what it does not understand in one sentence: exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where help is."""
        sentence = UserError(f"{message.rstrip('.')} ({self.prog} --help tells more).")
        self.exit(2, f"Error: {sentence}\n")


def whole(text: str) -> int:
    """Reads a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is no whole number") from error


def checked(name: str) -> Callable[[str], int]:
    """Returns what reads a whole number that the function of that name in `config` accepts."""

    def read(text: str) -> int:
        from diffae_jax import config

        value = whole(text)
        try:
            getattr(config, name)(value)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return read


def within(low: int, high: int) -> Callable[[str], int]:
    """Returns what reads a whole number within limits."""

    def read(text: str) -> int:
        value = whole(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"it must be from {low:,} to {high:,}, not {shown(value)}")
        return value

    return read


def number(text: str) -> float:
    """Reads a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is no finite number")
    return value
