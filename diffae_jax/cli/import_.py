"""diffae import: converts an official PyTorch checkpoint to a bundle."""

import argparse

from diffae_jax.cli.arguments import Parser, add_out, as_path, whole
from diffae_jax.runtime.errors import shown

HELP = "convert an official PyTorch checkpoint to a bundle"
EXAMPLES = (
    "checkpoints/ffhq128_autoenc_latent/last.ckpt --out ffhq128",
    "checkpoints/ffhq128_autoenc_130M/last.ckpt --latents checkpoints/ffhq128_autoenc_130M/latent.pkl \\\n"
    "      --classifier checkpoints/ffhq128_autoenc_cls/last.ckpt --out ffhq128",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    parser.add_argument("file", metavar="FILE", type=as_path, help="the checkpoint, usually last.ckpt")
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
    add_out(parser, "BUNDLE", "the bundle to write, a folder")


def run(arguments: argparse.Namespace) -> None:
    """Converts an official checkpoint to a bundle and describes it."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.info import describe
    from diffae_jax.convert import import_official
    from diffae_jax.inference import bundle

    outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    bundle.check_free(arguments.out)
    model = import_official(arguments.file, arguments.latents, arguments.classifier, image_size=arguments.image_size)
    model.save(arguments.out)
    print(f"{describe(model)}\nBundle: {shown(str(arguments.out))}")
