"""diffae edit: moves images along a probe."""

import argparse

from diffae_jax.cli.arguments import Parser, add_images, add_inversion, add_model, add_out, number

HELP = "edit images: give them more or less of a probe's label"
EXAMPLES = (
    "ffhq128 photos --probe Smiling --strength 0.3 --out smiling",
    "ffhq128 her.jpg --probe Young --to 0.9 --out younger.png",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_images(parser)
    parser.add_argument(
        "--probe",
        metavar="NAME",
        required=True,
        help="a probe of the model, such as Smiling or digit=2; diffae info lists them",
    )
    how = parser.add_mutually_exclusive_group(required=True)
    text = "how far to move z along the probe, such as 0.3, in units of sqrt(D) standard deviations of z"
    how.add_argument("--strength", metavar="S", type=number, help=text)
    how.add_argument(
        "--to",
        metavar="P",
        type=number,
        help="instead of --strength: the probability or value that the probe predicts after the edit",
    )
    add_out(parser, "PATH", "a folder for one file per image, a .png with all images, or an .npy with all values")
    add_inversion(parser)


def run(arguments: argparse.Namespace) -> None:
    """Edits images along a probe and writes them."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import images_of, load
    from diffae_jax.data.formats.files import file_paths
    from diffae_jax.inference.encode_dataset import open_for

    is_file = outputs.check_free(arguments.out, outputs.IMAGE_FILES, folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    model.check_edit(arguments.probe, arguments.strength, arguments.to)
    source = open_for(model, arguments.images)
    if is_file:
        outputs.check_number(arguments.out, len(source))
    originals = file_paths(source)
    names = outputs.names_of(source.ids, model.image_shape, originals)
    outputs.check_apart([arguments.out] if is_file else (arguments.out / name for name in names), source)
    edited = model.edit(
        images_of(source),
        arguments.probe,
        arguments.strength,
        arguments.steps,
        to=arguments.to,
        inversion=arguments.inversion,
        sampler=arguments.sampler,
        grid=arguments.grid,
    )
    outputs.write(arguments.out, is_file, names, edited, model.transform, originals)
