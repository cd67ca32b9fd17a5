"""Arguments of the shell, read and checked before anything is imported that takes its time."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from diffae_jax.runtime.errors import UserError, shown

IMAGES = (
    "a folder of image files or volumes, one of these, an npy, npz, HDF5, LMDB or TFDS data set, or the word digits: "
    "the 1,797 digits of scikit-learn"
)


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


def checked(name: str, read: Callable[[str], Any] = whole) -> Callable[[str], Any]:
    """Returns what reads a value, by default a whole number, that the function of that name in `config` accepts."""

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


def add_model(parser: Parser) -> None:
    """Adds the first argument of every command that uses a model."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a bundle, or the folder of a run")
    text = "import this first: the code of the model's own encoder, where it has one and you trust it"
    parser.add_argument("--import", metavar="MODULE", dest="modules", action="append", default=[], help=text)


def add_images(parser: Parser) -> None:
    """Adds the images that a command works on."""
    parser.add_argument("images", metavar="IMAGES", type=Path, help=IMAGES)


def add_out(parser: Parser, metavar: str, text: str, *, required: bool = True) -> None:
    """Adds where a command writes."""
    parser.add_argument("--out", metavar=metavar, type=Path, required=required, help=text)
    parser.add_argument("--overwrite", action="store_true", help="write even where something is; never over an image")


def add_steps(parser: Parser) -> None:
    """Adds the number of steps, 1 to 1,000."""
    steps = checked("check_num_steps")
    parser.add_argument("--steps", metavar="N", type=steps, default=100, help="steps of DDIM, by default 100")


def add_sampler(parser: Parser) -> None:
    """Adds the way from x_T to an image."""
    text = "the way from x_T to an image, by default ddim"
    parser.add_argument("--sampler", metavar="NAME", type=checked("check_sampler", str), default="ddim", help=text)


def add_seed(parser: Parser) -> None:
    """Adds the seed of what is random."""
    parser.add_argument("--seed", metavar="N", type=checked("check_seed"), default=0, help="by default 0")
