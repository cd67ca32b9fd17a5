"""diffae interpolate: interpolates between two images."""

import argparse

from diffae_jax.cli.arguments import Parser, add_inversion, add_model, add_out, add_scale, as_path, within
from diffae_jax.runtime.errors import UserError, counted, shown

HELP = "interpolate between two images"
EXAMPLES = ("ffhq128 a.jpg b.jpg --frames 24 --out morph.gif",)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    parser.add_argument("first", metavar="A", type=as_path, help="the file with the first image")
    parser.add_argument("second", metavar="B", type=as_path, help="the file with the second image")
    add_out(
        parser,
        "PATH",
        "a .gif that plays forward and backward, a .png with the frames side by side, or a folder of frames",
    )
    parser.add_argument(
        "--frames", metavar="N", type=within(2, 1000), default=8, help="number of frames, 2 to 1000; default 8"
    )
    add_scale(parser)
    add_inversion(parser)


def run(arguments: argparse.Namespace) -> None:
    """Interpolates between two images and writes a GIF, a strip or a folder of frames."""
    import numpy as np

    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import images_of, load
    from diffae_jax.data.pictures import image_grid, save_film, save_rows
    from diffae_jax.inference.encode_dataset import open_for
    from diffae_jax.runtime.files import os_errors_as_user_errors

    is_file = outputs.check_free(arguments.out, (".gif", ".png"), folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    paths = arguments.first, arguments.second
    sources = [open_for(model, path) for path in paths]
    for path, source in zip(paths, sources, strict=True):
        if len(source) != 1:  # before any is read
            raise UserError(f"{path} holds {counted(len(source), 'image')}. Give the file of a single image.")
    names = outputs.names_of([f"frame-{i:03d}" for i in range(arguments.frames)], model.image_shape)
    outputs.check_picture(arguments.out, is_file, arguments.frames, model.image_shape, arguments.scale)
    for source in sources:
        outputs.check_apart([arguments.out] if is_file else [arguments.out / name for name in names], source)
    settings = {name: getattr(arguments, name) for name in ("inversion", "sampler", "grid")}
    frames = model.interpolate(*map(images_of, sources), arguments.frames, arguments.steps, **settings)
    if not is_file:
        outputs.write_images(arguments.out, names, frames, model.transform)
    else:
        with os_errors_as_user_errors(arguments.out, "written"):
            if arguments.out.suffix.lower() == ".gif":
                save_film(arguments.out, [image_grid(frame[None], arguments.scale) for frame in frames])
            else:
                shares = [f"{share:.2f}" for share in np.linspace(0, 1, len(frames))]  # of the second image
                save_rows(arguments.out, {"": frames}, shares, arguments.scale)
    print(f"{len(frames)} frames: {shown(str(arguments.out))}")
