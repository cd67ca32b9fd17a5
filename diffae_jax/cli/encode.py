"""diffae encode: writes z of images to one file."""

import argparse

from diffae_jax.cli.arguments import Parser, add_images, add_model, add_out
from diffae_jax.runtime.errors import shown

HELP = "write the z of images to one file; a stopped command resumes when you run it again"
EXAMPLES = ("ffhq128 photos --out z.npz", "digits digits --out z.parquet")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_images(parser)
    text = "an .npz with ids and z, or a .parquet with id, z_000, z_001, ...; labels are added if the images have any"
    add_out(parser, "FILE", text)


def run(arguments: argparse.Namespace) -> None:
    """Encodes images and writes z to one file."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.inference.encode_dataset import FORMATS, check_format, encode_dataset, open_for

    outputs.check_free(arguments.out, FORMATS, overwrite=arguments.overwrite)
    check_format(arguments.out)
    model = load(arguments.model)
    encode_dataset(model, open_for(model, arguments.images), arguments.out)
    print(f"z: {shown(str(arguments.out))}")
