"""Command-line arguments, parsed and checked before any slow import."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffae_jax.runtime.errors import UserError, shown

if TYPE_CHECKING:
    from diffae_jax.runtime.files import AnyPath

IMAGES = (
    "a folder of image files or volumes; a single file; an npy, npz, HDF5, Zarr, LMDB, zip or tar file; a data set of "
    "TFDS or Hugging Face; any of these in a bucket (gs:// or s3://); or the word digits for the 1,797 digits of "
    "scikit-learn"
)


class Parser(argparse.ArgumentParser):
    """A parser that prints an error on one line and exits with code 2."""

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


def as_path(text: str) -> "AnyPath":
    """Parses a path or an address in a bucket. Shells do not replace the ~ of --out=~/FILE."""
    from diffae_jax.runtime.files import expand_home

    return expand_home(text)


def as_model(text: str) -> "AnyPath | str":
    """Parses a path. The name of a shipped model and an address on the Hub stay text."""
    from diffae_jax.pretrained import is_shipped
    from diffae_jax.runtime.hub import is_hub_address, parse_address

    if is_shipped(text):
        return text
    try:
        return str(parse_address(text)) if is_hub_address(text) else as_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def as_output(text: str) -> Path:
    """Parses a path to write to, which must be on a disk."""
    from diffae_jax.runtime.buckets import is_address
    from diffae_jax.runtime.hub import is_hub_address

    if is_hub_address(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is on the Hub: give a local path, then use diffae push")
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is in a bucket, but commands write to disks: give a local path, then copy the result"
        )
    return as_path(text)


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
    from diffae_jax.pretrained import names

    text = (
        "a bundle or a run folder; may be in a bucket, or on the Hugging Face Hub: hf://USER/NAME[@REVISION]; or the "
        f"name of a model that ships with the package: {', '.join(names())}"
    )
    parser.add_argument("model", metavar="MODEL", type=as_model, help=text)
    add_import(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds the modules to import before anything else."""
    text = "a module to import first, such as one with a custom encoder or sampler; its code runs; repeatable"
    parser.add_argument("--import", metavar="MODULE", dest="modules", action="append", default=[], help=text)


def add_images(parser: Parser) -> None:
    """Adds the images of a command."""
    parser.add_argument("images", metavar="IMAGES", type=as_path, help=IMAGES)


def add_labels(parser: Parser) -> None:
    """Adds a table of labels and the column of its image names."""
    text = "a table (CSV, TSV, Parquet, JSON, xlsx, HDF5): file names in one column, one label in each other column"
    parser.add_argument("--labels", metavar="FILE", type=as_path, help=text)
    add_id_column(parser)


def add_id_column(parser: Parser) -> None:
    """Adds the column of image names in a table."""
    text = "the column of the table with the ids or file names; by default the column that matches the images"
    parser.add_argument("--id-column", metavar="C", help=text)


def add_out(parser: Parser, metavar: str, text: str, *, required: bool = True) -> None:
    """Adds the output path and --overwrite."""
    parser.add_argument("--out", metavar=metavar, type=as_output, required=required, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace existing output, but never an input image")


def add_scale(parser: Parser) -> None:
    """Adds the scale of pictures. `outputs.check_picture` compares it with their size."""
    text = "pixels of a PNG or GIF for each pixel of an image, 1 to 64; by default, small images in grids are enlarged"
    parser.add_argument("--scale", metavar="N", type=within(1, 64), help=text)


def add_steps(parser: Parser, *, default: int | None = 100) -> None:
    """Adds the number of steps. Without a default, it is that of the recommended settings."""
    steps = checked("check_num_steps")
    text = f"number of steps, 1 to 1000; default {default or 'that of the recommended settings, or 100'}"
    parser.add_argument("--steps", metavar="N", type=steps, default=default, help=text)


def add_sampler(parser: Parser, *, default: str | None = "ddim") -> None:
    """Adds the sampler and its grid. Without a default, the sampler is that of the inversion."""
    shown_default = default or "ddim, or heun with --inversion=gaussian"
    text = f"the sampler of images: ddim, stochastic_ddim, dpmpp_2m or heun; default {shown_default}"
    parser.add_argument("--sampler", metavar="NAME", type=checked("check_sampler", str), default=default, help=text)
    text = "the time steps: even, quadratic or log_snr; default: the grid that suits the sampler"
    parser.add_argument("--grid", metavar="NAME", type=checked("check_grid", str), help=text)


def add_inversion(parser: Parser) -> None:
    """Adds the steps, the method of inversion, and the sampler and grid that go with it.

    If none is given, the recommended settings of the model are used.
    """
    add_steps(parser, default=None)
    text = "how an image is turned into x_T: ddim (the paper), exact or gaussian; default ddim, or as recommended"
    parser.add_argument("--inversion", metavar="NAME", type=checked("check_inversion", str), help=text)
    add_sampler(parser, default=None)


def add_seed(parser: Parser) -> None:
    """Adds the seed of random numbers."""
    text = "seed of random numbers, 0 to 2**31 - 1; default 0"
    parser.add_argument("--seed", metavar="N", type=checked("check_seed"), default=0, help=text)
