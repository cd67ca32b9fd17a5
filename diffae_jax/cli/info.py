"""diffae info: describes a model."""

import argparse
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import Parser, add_model
from diffae_jax.runtime.errors import shown

if TYPE_CHECKING:
    from diffae_jax import DiffAE

HELP = "describe a model: image shape, parameters, prior, statistics of z, probes, settings and origin"
EXAMPLES = ("ffhq128",)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints a description of a model."""
    from diffae_jax.cli.inputs import load
    from diffae_jax.runtime.console import quantity
    from diffae_jax.runtime.files import local_copy, os_errors_as_user_errors

    model = load(arguments.model)
    with os_errors_as_user_errors(arguments.model), local_copy(arguments.model) as folder:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{describe(model)}\n  on disk: {quantity(float(size), 'B')}")


def describe(model: "DiffAE") -> str:
    """Describes a model in several lines."""
    from diffae_jax import probes
    from diffae_jax.models.functional import flatten

    sizes = {"encoder": 0, "UNet": 0, "prior": 0}
    for name, leaf in flatten({"autoencoder": model.params, "prior": model.prior or {}}).items():
        part = "prior" if name.startswith("prior") else "encoder" if ".encoder." in name else "UNet"
        sizes[part] += leaf.size
    z_dim = model.config.model.z_dim
    lines = [
        f"{shown(model.config.name)}: a {'DDIM baseline' if z_dim is None else 'diffusion autoencoder'} for images of "
        f"{'x'.join(map(str, model.image_shape))}",
        f"  z: {'none' if z_dim is None else f'{z_dim} dimensions'}",
        *(f"  parameters of the {part}: {size:,}" for part, size in sizes.items() if size),
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
    for key, value in model.origin.items():
        if isinstance(value, dict):
            lines += [f"  {shown(key)}: {shown(name)} ({shown(inner)})" for name, inner in value.items()]
        else:
            is_number = type(value) is int and value.bit_length() <= 64
            lines.append(f"  {shown(key).replace('_', ' ')}: {f'{value:,}' if is_number else shown(value)}")
    return "\n".join(lines)
