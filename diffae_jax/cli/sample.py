"""diffae sample: draws new images."""

import argparse

from diffae_jax.cli.arguments import (
    Parser,
    add_model,
    add_out,
    add_sampler,
    add_scale,
    add_seed,
    add_steps,
    checked,
    within,
)
from diffae_jax.runtime.errors import UserError

HELP = "draw new images, optionally with a label"
EXAMPLES = ("ffhq128 --num 64 --out new.png", "ffhq128 --probe Smiling --negative --out serious")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    text = "number of images, 1 to 100000; default 16"
    parser.add_argument("--num", metavar="N", type=within(1, 100_000), default=16, help=text)
    text = "draw only images that this probe accepts, such as Smiling or digit=2"
    parser.add_argument("--probe", metavar="NAME", help=text)
    parser.add_argument("--negative", action="store_true", help="with --probe: draw only images that the probe rejects")
    add_out(parser, "PATH", "a .png with all images, an .npy with all values, or a folder for one file per image")
    add_scale(parser)
    add_steps(parser)
    add_sampler(parser)
    steps = checked("check_num_steps")
    text = "number of steps to draw z, 1 to 1000; default 100"
    parser.add_argument("--latent-steps", metavar="N", type=steps, default=100, help=text)
    text = "the sampler that draws z; default ddim"
    sampler = checked("check_sampler", str)
    parser.add_argument("--latent-sampler", metavar="NAME", type=sampler, default="ddim", help=text)
    add_seed(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draws new images, with a probe's label if a probe is named, and writes them."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load

    if arguments.negative and arguments.probe is None:
        raise UserError("--negative needs --probe. Name the probe of the label that the images must not have.")
    is_file = outputs.check_free(arguments.out, outputs.IMAGE_FILES, folder=True, overwrite=arguments.overwrite)
    if is_file:
        outputs.check_number(arguments.out, arguments.num)
    model = load(arguments.model)
    outputs.check_picture(arguments.out, is_file, arguments.num, model.image_shape, arguments.scale)
    steps = (arguments.steps, arguments.latent_steps)
    samplers = {name: getattr(arguments, name) for name in ("sampler", "grid", "latent_sampler")}
    if arguments.probe is None:
        images = model.sample(arguments.num, arguments.seed, *steps, **samplers)
    else:
        settings = arguments.num, arguments.probe, not arguments.negative, arguments.seed
        images = model.sample_class(*settings, *steps, **samplers)
    names = outputs.names_of([f"sample-{i:05d}" for i in range(len(images))], model.image_shape)
    outputs.write(arguments.out, is_file, names, images, model.transform, scale=arguments.scale)
