"""Command-line arguments, parsed and checked before any slow import."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from diffae_jax.runtime.errors import UserError, shown

IMAGES = (
    "a folder of image files or volumes; a single file; an npy, npz, HDF5, LMDB, zip or tar file; a data set of TFDS "
    "or Hugging Face; or the word digits for the 1,797 digits of scikit-learn"
)


class Parser(argparse.ArgumentParser):
    """A parser that prints an error in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the error and the command for help."""
        error = UserError(f"{message.rstrip('.')} (for help: {self.prog} --help).")
        self.exit(2, f"Error: {error}\n")


def whole(text: str) -> int:
    """Parses a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is not a whole number") from error


def checked(name: str, read: Callable[[str], Any] = whole) -> Callable[[str], Any]:
    """Returns a parser of values that the check of that name in `config` accepts.

    `read` parses the text, by default as a whole number.
    """

    def read_and_check(text: str) -> Any:
        from diffae_jax import config

        value = read(text)
        try:
            getattr(config, name)(value)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return read_and_check


def within(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        value = whole(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"it must be from {low:,} to {high:,}, not {shown(value)}")
        return value

    return read


def number(text: str) -> float:
    """Parses a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is not a finite number")
    return value


def add_model(parser: Parser) -> None:
    """Adds the first argument of every command that uses a model."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a bundle or a run folder")
    add_import(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds the modules to import before anything else."""
    text = "a module with the model's custom encoder, to import first; runs its code; may be repeated"
    parser.add_argument("--import", metavar="MODULE", dest="modules", action="append", default=[], help=text)


def add_images(parser: Parser) -> None:
    """Adds the images of a command."""
    parser.add_argument("images", metavar="IMAGES", type=Path, help=IMAGES)


def add_out(parser: Parser, metavar: str, text: str, *, required: bool = True) -> None:
    """Adds the output path and --overwrite."""
    parser.add_argument("--out", metavar=metavar, type=Path, required=required, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace existing output, but never an input image")


def add_steps(parser: Parser) -> None:
    """Adds the number of steps."""
    steps = checked("check_num_steps")
    parser.add_argument("--steps", metavar="N", type=steps, default=100, help="DDIM steps, 1 to 1000; default 100")


def add_sampler(parser: Parser) -> None:
    """Adds the sampler."""
    text = "the sampler that decodes x_T to an image; default ddim"
    parser.add_argument("--sampler", metavar="NAME", type=checked("check_sampler", str), default="ddim", help=text)


def add_seed(parser: Parser) -> None:
    """Adds the seed of random numbers."""
    text = "seed of random numbers, 0 to 2**31 - 1; default 0"
    parser.add_argument("--seed", metavar="N", type=checked("check_seed"), default=0, help=text)
