"""diffae data: checks a data set before training."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import Parser, add_id_column, as_output, number, within
from diffae_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "check a data set and suggest a training command; the exit code is 1 if images cannot be used"
EXAMPLES = (
    "photos --out sheet.png",
    "photos --image-shape 128 128 3 --labels labels.csv --held-out-share 0.1",
    "scans.h5#volumes --intensity=-1000..1000 --workers 8",
)
OVERRIDES = {  # the argument that sets each key
    "data.crop": "crop",
    "data.intensity": "intensity",
    "data.labels": "labels",
    "data.id_column": "id_column",
    "data.held_out": "held_out",
    "data.held_out_share": "held_out_share",
    "data.include": "include",
    "data.exclude": "exclude",
    "execution.num_workers": "workers",
}


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    text = "a folder, an array file (npy, npz, HDF5, Zarr), LMDB, a zip or tar of images, a data set of TFDS or "
    text += "Hugging Face, one image, or digits; PATH#PART selects a part, such as an array of a file"
    parser.add_argument("path", metavar="PATH", help=text)
    text = "for example height, width and channels; without it and --config, a shape is proposed"
    sizes = within(1, 65_536)
    parser.add_argument("--image-shape", metavar="N", type=sizes, nargs="+", help=text)
    text = "a config, as for diffae train, or the config.json of a run; the other options override its keys"
    parser.add_argument("--config", metavar="CONFIG", help=text)
    parser.add_argument("--crop", metavar="NAME", help="center or celeba: the crop before scaling")
    text = "the values that become -1 and 1, or percentiles LOW%%..HIGH%%; use --intensity=LOW..HIGH for a negative LOW"
    parser.add_argument("--intensity", metavar="LOW..HIGH", help=text)
    text = "a table with the id or file name of each image in one column; or folders: names of subfolders"
    parser.add_argument("--labels", metavar="TABLE", help=text)
    add_id_column(parser)
    text = "the images to hold out from training: a split, a subfolder, [:1000], a table, or the path of other images"
    parser.add_argument("--held-out", metavar="PART", help=text)
    text = "the fraction of images to hold out from training, by default that of the config (0.02 without --config)"
    parser.add_argument("--held-out-share", metavar="SHARE", type=number, help=text)
    text = "patterns of the names of images to use, separated by commas, such as *_t1.png"
    parser.add_argument("--include", metavar="PATTERNS", help=text)
    text = "patterns of the names of images to leave out, separated by commas, such as *_mask.png"
    parser.add_argument("--exclude", metavar="PATTERNS", help=text)
    text = "the number of processes that read images in the speed measurement, by default 0: threads"
    parser.add_argument("--workers", metavar="N", type=within(0, 1024), help=text)
    text = "a .png file for a contact sheet of up to 64 images, scaled and cropped as in training"
    parser.add_argument("--out", metavar="FILE", type=as_output, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file, but never an image of PATH")


def run(arguments: argparse.Namespace) -> None:
    """Prints a report and writes a contact sheet. Exits with code 1 if images cannot be used."""
    from diffae_jax.data.inspect.report import inspect

    if arguments.out is not None:
        check_out(arguments.out, arguments.path, overwrite=arguments.overwrite)
    base, config = settings_of(arguments)
    if inspect(config, base, file=arguments.config, out=arguments.out):
        sys.exit(1)


def settings_of(arguments: argparse.Namespace) -> "tuple[ConfigDict, ConfigDict]":
    """Returns the given or default config, and a copy with the arguments set.

    If neither a shape nor a config is given, a shape is inferred and printed. Raises UserError for
    invalid values.
    """
    from diffae_jax.config import check, from_file
    from diffae_jax.data.inspect.infer_shape import infer_image_shape
    from diffae_jax.data.inspect.suggest import default_config, flag

    base = default_config(arguments.path) if arguments.config is None else from_file(arguments.config)
    config = base.copy_and_resolve_references()
    config.data.path = arguments.path
    for key, name in OVERRIDES.items():
        if getattr(arguments, name) is not None:
            config.update_from_flattened_dict({key: getattr(arguments, name)})
    if arguments.image_shape is not None:
        config.image_shape = tuple(arguments.image_shape)
    check(config)
    if arguments.image_shape is None and arguments.config is None:
        config.image_shape = infer_image_shape(config.data.path, config.data.crop)
        print(f"Shape: no --image-shape was given. Proposed: {flag(config, 'image_shape')}")
    return base, config


def check_out(out: Path, path: str, *, overwrite: bool) -> None:
    """Raises UserError if the contact sheet exists, or would become an image of the data set."""
    from diffae_jax.cli import outputs
    from diffae_jax.runtime.files import local_path

    outputs.check_free(out, (".png",), overwrite=overwrite)
    folder = local_path(path.partition("#")[0])
    if folder.resolve() in out.resolve().parents or folder.resolve() == out.resolve():
        raise UserError(f"The contact sheet {out} would replace or join the images of {path}: give another --out.")
