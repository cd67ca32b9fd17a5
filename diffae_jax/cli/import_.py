"""diffae import: converts an official PyTorch checkpoint to a bundle."""

import argparse
from pathlib import Path

from diffae_jax.cli.arguments import Parser, add_out, as_path, whole
from diffae_jax.runtime.errors import UserError, shown

HELP = "convert an official PyTorch checkpoint to a bundle"
EXAMPLES = (
    "ffhq128_autoenc_latent --out ffhq128",
    "--list",
    "checkpoints/ffhq128_autoenc_130M/last.ckpt --latents checkpoints/ffhq128_autoenc_130M/latent.pkl \\\n"
    "      --classifier checkpoints/ffhq128_autoenc_cls/last.ckpt --out ffhq128",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    text = "a checkpoint, usually last.ckpt; or the folder of an official model, also by its name alone if it is in "
    text += "the current folder or in checkpoints. The latents and the classifier in folders next to it are used, too"
    parser.add_argument("file", metavar="MODEL", type=as_path, nargs="?", help=text)
    parser.add_argument(
        "--latents",
        metavar="FILE",
        type=as_path,
        help="the latent.pkl of this model, with the mean and standard deviation of z",
    )
    parser.add_argument(
        "--classifier",
        metavar="FILE",
        type=as_path,
        help="the classifier of this model, whose 40 attributes become probes",
    )
    parser.add_argument(
        "--image-size", metavar="PIXELS", type=whole, help="image width, if the checkpoint does not contain it"
    )
    text = "list the official models with their files, and which are missing; MODEL is then the folder that holds them"
    parser.add_argument("--list", action="store_true", dest="list_models", help=text)
    add_out(parser, "BUNDLE", "the bundle to write, a folder", required=False)


def run(arguments: argparse.Namespace) -> None:
    """Converts an official checkpoint and describes it, or lists the official models."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.info import describe
    from diffae_jax.convert import import_official, released
    from diffae_jax.inference import bundle

    if arguments.list_models:
        print(released.describe(arguments.file or Path(released.CHECKPOINTS)))
        return
    if arguments.file is None or arguments.out is None:
        raise UserError("diffae import needs a checkpoint and --out, or --list.")
    outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    bundle.check_free(arguments.out)
    model = import_official(arguments.file, arguments.latents, arguments.classifier, image_size=arguments.image_size)
    model.save(arguments.out)
    print(f"{describe(model)}\nBundle: {shown(str(arguments.out))}")
