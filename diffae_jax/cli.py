"""Uses a trained model from the shell: diffae import last.ckpt --out BUNDLE"""

import argparse
import os
import sys
from pathlib import Path

from diffae_jax.errors import UserError, shown

EXAMPLES = """examples:
  diffae import checkpoints/ffhq128_autoenc_latent/last.ckpt --out ffhq128
  diffae import checkpoints/ffhq128_autoenc_130M/last.ckpt --latents checkpoints/ffhq128_autoenc_130M/latent.pkl \\
      --classifier checkpoints/ffhq128_autoenc_cls/last.ckpt --out ffhq128
"""


def import_(arguments: argparse.Namespace) -> None:
    """Writes an official checkpoint as a bundle, and says what it found."""
    from diffae_jax.bundle import check_free
    from diffae_jax.convert import import_official
    from diffae_jax.convert.official import describe

    check_free(arguments.out)
    model = import_official(arguments.file, arguments.latents, arguments.classifier, image_size=arguments.image_size)
    model.save(arguments.out)
    print(f"{describe(model)}\nBundle: {shown(str(arguments.out))}")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    whole = argparse.ArgumentParser(
        "diffae",
        description="Uses a trained diffusion autoencoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "import",
        help="turn an official PyTorch checkpoint into a bundle",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", metavar="FILE", type=Path, help="the checkpoint, last.ckpt")
    command.add_argument("--latents", metavar="FILE", type=Path, help="its latent.pkl, where z is to be normalised")
    command.add_argument("--classifier", metavar="FILE", type=Path, help="its classifier: 40 attributes as probes")
    command.add_argument("--image-size", metavar="PIXELS", type=int, help="for a checkpoint that does not tell it")
    command.add_argument("--out", metavar="BUNDLE", type=Path, required=True, help="the folder to write")
    command.set_defaults(run=import_)
    return whole


def run() -> None:
    """Runs a command and tells a user's mistakes in one sentence: exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes of its inner life
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
