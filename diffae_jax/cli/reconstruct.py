"""diffae reconstruct: encodes and decodes images."""

import argparse

from diffae_jax.cli.arguments import Parser, add_images, add_inversion, add_model, add_out, add_scale, add_seed
from diffae_jax.runtime.errors import shown

HELP = "encode and decode images, and print the reconstruction error"
EXAMPLES = (
    "ffhq128 photos --out again",
    "ffhq128 photos --out again.png",
    "ffhq128 cat.jpg --random-x-T --seed 3 --out what-z-keeps",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_images(parser)
    text = "a folder for one PNG per image, named after the image; volumes and signals also get an npy or NIfTI; or "
    text += "a .png with images, reconstructions and differences"
    add_out(parser, "PATH", text)
    add_scale(parser)
    add_inversion(parser)
    text = "decode with a random x_T instead of the image's own, to see what z holds"
    parser.add_argument("--random-x-T", action="store_true", help=text)
    add_seed(parser)


def run(arguments: argparse.Namespace) -> None:
    """Reconstructs images, writes them and prints the mean error."""
    import numpy as np

    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import images_of, load
    from diffae_jax.data.formats.files import file_paths
    from diffae_jax.data.pictures import difference_map
    from diffae_jax.data.sources import read
    from diffae_jax.data.transforms import to_float
    from diffae_jax.evaluation.metrics import mse, psnr
    from diffae_jax.inference.encode_dataset import open_for
    from diffae_jax.inference.recommended import with_defaults

    is_file = outputs.check_free(arguments.out, (".png",), folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    source = open_for(model, arguments.images)
    outputs.check_picture(arguments.out, is_file, 3 * len(source), model.image_shape, arguments.scale)
    originals = file_paths(source)
    names = outputs.names_of(source.ids, model.image_shape, originals)
    outputs.check_apart([arguments.out] if is_file else (arguments.out / name for name in names), source)
    decoded = model.reconstruct(
        images_of(source),
        arguments.steps,
        not arguments.random_x_T,
        arguments.seed,
        inversion=arguments.inversion,
        sampler=arguments.sampler,
        grid=arguments.grid,
    )
    images = to_float(read(source, range(len(source))))
    pairs = [(image[None], x_0[None]) for image, x_0 in zip(decoded, images, strict=True)]
    errors, ratios = ([float(measure(*pair)[0]) for pair in pairs] for measure in (mse, psnr))
    named = (getattr(arguments, name) for name in ("steps", "inversion", "sampler", "grid"))
    (steps, *_), _ = with_defaults(None if arguments.random_x_T else model.recommended, *named)
    kind = "random" if arguments.random_x_T else "inferred"
    if is_file:
        difference = difference_map(images, decoded)
        columns = {f"{kind} x_T": decoded, difference.name: difference.images}
        outputs.write_rows(arguments.out, source, columns, arguments.scale)
    else:
        outputs.write_images(arguments.out, names, decoded, model.transform, originals)
    print(
        f"{len(decoded):,} images, {steps} steps, {kind} x_T: MSE {np.mean(errors):.2e}, "
        f"PSNR {np.mean(ratios):.2f} dB (images in [0, 1])\nImages: {shown(str(arguments.out))}"
    )
