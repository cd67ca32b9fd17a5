"""diffae info: describes a model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import Parser, add_model, as_output
from diffae_jax.runtime.errors import shown

if TYPE_CHECKING:
    from diffae_jax import DiffAE

HELP = "describe a model: image shape, parameters, prior, statistics of z, probes, settings, origin, data and results"
EXAMPLES = ("ffhq128", "hf://USER/NAME", "runs/digits/bundle --html card.html")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    parser.add_argument("--html", metavar="FILE", type=as_output, help="write the model card as one HTML file, too")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing HTML file")


def run(arguments: argparse.Namespace) -> None:
    """Prints a description of a model, and writes its card as HTML."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load_with_card
    from diffae_jax.inference.card_page import check_available, write_page
    from diffae_jax.inference.sharing import local_model
    from diffae_jax.runtime.console import quantity
    from diffae_jax.runtime.files import local_copy, os_errors_as_user_errors

    if arguments.html is not None:
        outputs.check_free(arguments.html, (".html",), overwrite=arguments.overwrite)
        check_available()
    model = load_with_card(arguments.model)
    with (
        local_model(arguments.model) as path,
        os_errors_as_user_errors(path),
        local_copy(path) as folder,
    ):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print("\n".join([describe(model), *describe_card(model), f"  on disk: {quantity(float(size), 'B')}"]))
    if arguments.html is not None:
        path = arguments.model
        location = path.resolve().name if isinstance(path, Path) else str(path)  # without the folders of this machine
        write_page(arguments.html, model.card_text(location), model.card.pictures)
        print(f"Model card: {shown(str(arguments.html))}")


def describe(model: "DiffAE") -> str:
    """Describes a model in several lines."""
    from diffae_jax import probes
    from diffae_jax.inference.card import origin_lines

    sizes = model.num_parameters()
    z_dim = model.config.model.z_dim
    lines = [
        f"{shown(model.config.name)}: a {'DDIM baseline' if z_dim is None else 'diffusion autoencoder'} for images of "
        f"{'x'.join(map(str, model.image_shape))}",
        f"  z: {'none' if z_dim is None else f'{z_dim} dimensions'}",
        *(f"  parameters of the {part}: {size:,}" for part, size in sizes.items()),
    ]
    if z_dim is not None:
        if ":" in model.config.model.encoder.kind:
            lines.append(f"  encoder: {shown(model.config.model.encoder.kind)}")
        lines.append(f"  prior (latent DDIM): {'yes' if model.prior else 'no, so it cannot sample new images'}")
        lines.append(f"  statistics of z: {'yes' if model.statistics else 'no, so it cannot use probes'}")
    lines += [f"  probe {probes.describe(probe)}" for probe in model.probes.values()]
    if model.recommended is not None:
        measured = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" for name, value in model.recommended.measured.items()
        )
        lines.append(f"  recommended: {model.recommended}{f' ({measured})' if measured else ''}")
    lines += [f"  {key}: {value}" for key, value in origin_lines(model.origin)]
    return "\n".join(lines)


def describe_card(model: "DiffAE") -> list[str]:
    """Returns the model card in short: license, data and one result of each table."""
    from diffae_jax.inference.card import VALUE, license_of

    lines = [f"  license: {license_of(model.config)}"]
    lines += [f"  data: {shown(line)}" for line in model.card.data]
    for table in model.card.tables:
        header, *rows = table.rows
        columns = [i for i in range(1, len(header)) if rows and rows[0][i]]
        if columns:
            what = ", ".join(shown(text) for text in (header[0], rows[0][0], header[columns[-1]]) if text != VALUE)
            lines.append(f"  {what}: {shown(rows[0][columns[-1]])}")
    return lines
