"""diffae data: what training would see of a data set."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import Parser, number, within
from diffae_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "look at a data set, and say what training would see of it; exit code 1 where images cannot be used"
EXAMPLES = (
    "photos --out sheet.png",
    "photos --image-shape 128 128 3 --labels labels.csv --held-out-share 0.1",
    "scans.h5#volumes --intensity=-1000..1000 --workers 8",
)
OVERRIDES = {  # arguments by the keys that they set
    "data.crop": "crop",
    "data.intensity": "intensity",
    "data.labels": "labels",
    "data.held_out": "held_out",
    "data.held_out_share": "held_out_share",
    "execution.num_workers": "workers",
}


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    text = "a folder, an array file (npy, npz, HDF5), LMDB, a data set of TFDS, one image, or the word digits; a part "
    parser.add_argument("path", metavar="PATH", help=f"{text}is named behind a #")
    text = "height, width and channels, say; without it and --config, a shape is proposed"
    sizes = within(1, 65_536)
    parser.add_argument("--image-shape", metavar="N", type=sizes, nargs="+", help=text)
    text = "a config, as for diffae train, or the config.json of a run; what follows is given in place of its own"
    parser.add_argument("--config", metavar="CONFIG", help=text)
    parser.add_argument("--crop", metavar="NAME", help="center or celeba")
    text = "the values that become -1 and 1, or percentiles, LOW%%..HIGH%%; a negative LOW needs --intensity=LOW..HIGH"
    parser.add_argument("--intensity", metavar="LOW..HIGH", help=text)
    text = "a table, the id or file name of each image first; or folders: the subfolder of each image"
    parser.add_argument("--labels", metavar="TABLE", help=text)
    text = "what is kept from training: a split, a subfolder, [:1000], a table, or the path of other images"
    parser.add_argument("--held-out", metavar="PART", help=text)
    text = "a share of the images to keep from training, by default 0.02, or that of the config"
    parser.add_argument("--held-out-share", metavar="SHARE", type=number, help=text)
    text = "processes that read images, of which the speed is measured, by default 0: threads"
    parser.add_argument("--workers", metavar="N", type=within(0, 1024), help=text)
    text = "a .png that gets up to 64 of the images as training would see them"
    parser.add_argument("--out", metavar="FILE", type=Path, help=text)
    parser.add_argument("--overwrite", action="store_true", help="write even where something is; never over an image")


def run(arguments: argparse.Namespace) -> None:
    """Says what training would see of a data set, and writes some of it as a picture; exits with 1 for bad images."""
    from diffae_jax.data.inspect.report import inspect

    if arguments.out is not None:
        check_out(arguments.out, arguments.path, overwrite=arguments.overwrite)
    before, config = settings_of(arguments)
    if inspect(config, before, file=arguments.config, out=arguments.out):
        sys.exit(1)


def settings_of(arguments: argparse.Namespace) -> "tuple[ConfigDict, ConfigDict]":
    """Returns the config that is given, or the one to train with where none is given, and what was made of it.

    Raises UserError for values that no run could use. Without a shape, and without a config, one is proposed and told.
    """
    from diffae_jax.config import check, from_file
    from diffae_jax.data.inspect.infer_shape import infer_image_shape
    from diffae_jax.data.inspect.suggest import base_of, flag

    before = base_of(arguments.path) if arguments.config is None else from_file(arguments.config)
    config = before.copy_and_resolve_references()
    config.data.path = arguments.path
    for key, name in OVERRIDES.items():
        if getattr(arguments, name) is not None:
            config.update_from_flattened_dict({key: getattr(arguments, name)})
    if arguments.image_shape is not None:
        config.image_shape = tuple(arguments.image_shape)
    check(config)
    if arguments.image_shape is None and arguments.config is None:
        config.image_shape = infer_image_shape(config.data.path, config.data.crop)
        print(f"Shape: none was given, so one is proposed: {flag(config, 'image_shape')}")
    return before, config


def check_out(out: Path, path: str, *, overwrite: bool) -> None:
    """Raises UserError where the picture cannot be written, or would itself become one of the images."""
    from diffae_jax.cli import outputs
    from diffae_jax.runtime.files import expand_home

    outputs.check_free(out, (".png",), overwrite=overwrite)
    folder = expand_home(path.partition("#")[0])
    if folder.resolve() in out.resolve().parents or folder.resolve() == out.resolve():
        raise UserError(f"{out} lies among the images of {path}, and would become one of them: give another --out.")
