"""diffae demo: serves a web page that shows a model."""

import argparse

from diffae_jax.cli.arguments import IMAGES, Parser, add_model, as_path, within

HELP = "show a model on a web page on this machine: reconstruct, interpolate, edit, sample and explore"
EXAMPLES = ("digits", "digits --images digits", "ffhq128 --images photos --port 8000")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    text = f"images to show, at most 500, chosen at random; by default the examples of a shipped model. {IMAGES}"
    parser.add_argument("--images", metavar="IMAGES", type=as_path, help=text)
    text = "the port of the page on this machine, 1 to 65535; default 7860"
    parser.add_argument("--port", metavar="N", type=within(1, 65535), default=7860, help=text)


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until it is stopped."""
    from diffae_jax.demo.serving import check_installed, check_port, serve

    check_installed()
    check_port(arguments.port)
    from diffae_jax.cli.inputs import load
    from diffae_jax.demo.images import images_at, no_images, shipped_images
    from diffae_jax.pretrained import is_shipped

    model = load(arguments.model)
    if arguments.images is not None:
        images = images_at(model, arguments.images)
    else:
        images = shipped_images(model, str(arguments.model)) if is_shipped(arguments.model) else no_images(model)
    serve(model, str(arguments.model), images, arguments.port)
