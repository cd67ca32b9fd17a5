"""diffae push: shares a model on the Hugging Face Hub."""

import argparse

from diffae_jax.cli.arguments import Parser, add_model

HELP = "share a model on the Hugging Face Hub"
EXAMPLES = (
    "runs/digits/bundle USER/digits --private",
    "runs/digits/bundle USER/digits --branch v2 --license cc-by-4.0",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    parser.add_argument("name", metavar="USER/NAME", help="the repository; it is created if there is none")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=None, help="only you may see a new repository")
    visibility.add_argument("--public", action="store_false", dest="private", help="all may see a new repository")
    parser.add_argument("--branch", metavar="NAME", help="the branch to write to; default main")
    parser.add_argument("--message", metavar="TEXT", default="", help="the commit message")
    text = "license of the weights in the model card, such as cc-by-4.0; by default that of the model"
    parser.add_argument("--license", metavar="NAME", help=text)
    parser.add_argument("--no-pictures", action="store_true", help="leave out the pictures of the model card")


def run(arguments: argparse.Namespace) -> None:
    """Copies a model to the Hub and prints its address."""
    import dataclasses

    from diffae_jax.cli.inputs import load_with_card
    from diffae_jax.config import check_license
    from diffae_jax.inference.card import with_license
    from diffae_jax.inference.sharing import parse_name
    from diffae_jax.runtime.hub import check_installed

    check_installed()
    address = parse_name(arguments.name, arguments.branch)
    if arguments.license is not None:
        check_license(arguments.license)
    model = load_with_card(arguments.model)
    if arguments.license is not None:
        model.config.export.license = arguments.license
        if model.card.text is not None:  # edited
            model.card = dataclasses.replace(model.card, text=with_license(model.card.text, arguments.license))
    if arguments.no_pictures:
        model.card = dataclasses.replace(model.card, pictures=())
    commit = model.push_to_hub(
        address.repository, private=arguments.private, branch=address.revision, message=arguments.message
    )
    print(f"Commit: {commit}\nLoad it with DiffAE.load({str(address)!r}).")
