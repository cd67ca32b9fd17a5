"""diffae probe: probes of labels, and what probes read off images."""

import argparse
from pathlib import Path

from diffae_jax.cli.arguments import Parser, add_images, add_model, add_out
from diffae_jax.runtime.errors import UserError, list_some, shown

HELP = "fit probes to labels and write a model that has them; without --labels, write what its probes read"
EXAMPLES = (
    "ffhq128 photos --labels labels.csv --column smiling age --out ffhq128-probes",
    "ffhq128-probes photos --out readings.csv",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_images(parser)
    parser.add_argument("--labels", metavar="FILE", type=Path, help="a CSV: the id of each image, and a column a label")
    parser.add_argument("--column", metavar="C", nargs="+", help="some of its columns, by default all")
    unlabeled = "images without the label may still have the attribute"
    parser.add_argument("--positive-unlabeled", action="store_true", help=unlabeled)
    add_out(parser, "PATH", "with --labels a bundle, which may be MODEL; else a .csv")


def run(arguments: argparse.Namespace) -> None:
    """Writes a model with probes of labels or, without labels, what the probes that there are read off images."""
    if arguments.labels is not None:
        fit_probes(arguments)
        return
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.inference.encode_dataset import latents, open_for

    if arguments.column or arguments.positive_unlabeled:
        raise UserError("--column and --positive-unlabeled need --labels: the table that probes are fitted to.")
    outputs.check_free(arguments.out, (".csv",), overwrite=arguments.overwrite)
    model = load(arguments.model)
    if not model.probes:
        raise UserError(f"{arguments.model} has no probes to read with: fit some with --labels FILE.csv.")
    source = open_for(model, arguments.images)
    z = latents(model, source)
    readings = [model.predict(z, name) for name in model.probes]
    column = "id"
    while column in model.probes:
        column += "_"
    outputs.write_table(arguments.out, [(column, *model.probes), *zip(source.ids, *readings, strict=True)])
    print(f"{len(z):,} images, {len(readings)} probes: {shown(str(arguments.out))}")


def fit_probes(arguments: argparse.Namespace) -> None:
    """Fits a probe to each column of labels and writes the model with all of them."""
    import sys

    from diffae_jax import probes
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.data.labels.matching import read_labels
    from diffae_jax.inference import bundle
    from diffae_jax.inference.encode_dataset import latents, open_for
    from diffae_jax.runtime.console import say

    if arguments.out.resolve() != arguments.model.resolve():
        outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    bundle.check_free(arguments.out)
    labels = read_labels(arguments.labels)
    unknown = [name for name in arguments.column or () if name not in labels.columns]
    if unknown:
        there_are = list_some(labels.columns)
        raise UserError(f"{arguments.labels} has no column {list_some(unknown)}; there are {there_are}.")
    model = load(arguments.model)
    model.check_normalized()
    source = open_for(model, arguments.images)
    columns, unmatched = labels.of(source.ids), labels.unmatched(source.ids)
    if unmatched:
        rows = f"{len(unmatched):,} rows of {arguments.labels} are"
        say(f"Note: {rows} of none of the images ({list_some(unmatched)}).", file=sys.stderr)
    chosen = {name: columns[name] for name in arguments.column or columns}
    for name, values in chosen.items():
        probes.check_labels(name, values, positive_unlabeled=arguments.positive_unlabeled)
    z = latents(model, source)
    for name, values in chosen.items():
        model.fit_probe(name, z, values, positive_unlabeled=arguments.positive_unlabeled)
    model.save(arguments.out)
    print(f"Bundle: {shown(str(arguments.out))}")
