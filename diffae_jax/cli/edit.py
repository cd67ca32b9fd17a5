"""diffae edit: moves images along a probe."""

import argparse

from diffae_jax.cli.arguments import Parser, add_images, add_inversion, add_model, add_out, add_scale, number
from diffae_jax.runtime.errors import shown

HELP = "edit images: give them more or less of a probe's label"
EXAMPLES = (
    "ffhq128 photos --probe Smiling --strength 0.3 --out smiling",
    "ffhq128 photos --probe Smiling --strength -0.3 0 0.3 0.6 --out smiles.png",
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
    how.add_argument("--strength", metavar="S", type=number, nargs="+", help=f"{text}; several make a picture or film")
    how.add_argument(
        "--to",
        metavar="P",
        type=number,
        help="instead of --strength: the probability or value that the probe predicts after the edit",
    )
    text = "a folder for one file per image, a .png with all images, or an .npy with all values; with several "
    text += "strengths, a .png with a row for each image, or a .gif that plays forward and backward"
    add_out(parser, "PATH", text)
    add_scale(parser)
    add_inversion(parser)


def run(arguments: argparse.Namespace) -> None:
    """Edits images along a probe and writes them."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import images_of, load
    from diffae_jax.data.formats.files import file_paths
    from diffae_jax.inference.encode_dataset import open_for

    strengths = arguments.strength or [None]
    several = len(strengths) > 1
    suffixes = outputs.PICTURE_FILES if several else outputs.IMAGE_FILES
    is_file = outputs.check_free(arguments.out, suffixes, folder=not several, overwrite=arguments.overwrite)
    model = load(arguments.model)
    for strength in strengths:
        model.check_edit(arguments.probe, strength, arguments.to)
    source = open_for(model, arguments.images)
    num_images = len(source) * (1 + len(strengths) if several else 1)
    outputs.check_picture(arguments.out, is_file, num_images, model.image_shape, arguments.scale)
    originals = file_paths(source)
    names = outputs.names_of(source.ids, model.image_shape, originals)
    outputs.check_apart([arguments.out] if is_file else (arguments.out / name for name in names), source)
    settings = {name: getattr(arguments, name) for name in ("inversion", "sampler", "grid")}
    images = images_of(source)
    if not several:
        edited = model.edit(images, arguments.probe, *strengths, arguments.steps, to=arguments.to, **settings)
        outputs.write(arguments.out, is_file, names, edited, model.transform, originals, arguments.scale)
        return
    edited = model.sweep(images, arguments.probe, strengths, arguments.steps, **settings)
    outputs.write_sweep(arguments.out, source, arguments.probe, strengths, edited, arguments.scale)
    print(f"{len(edited):,} images, {len(strengths)} strengths: {shown(str(arguments.out))}")
