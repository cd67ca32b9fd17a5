"""diffae probe: fits probes to labels, or predicts labels with probes."""

import argparse

from diffae_jax.cli.arguments import Parser, add_images, add_labels, add_model, add_out
from diffae_jax.runtime.errors import UserError, list_some, shown

HELP = "fit probes to labels and write a model with them; without --labels, write a table of predictions"
EXAMPLES = (
    "ffhq128 photos --labels labels.csv --column smiling age --out ffhq128-probes",
    "ffhq128-probes photos --out predictions.csv",
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_images(parser)
    add_labels(parser)
    parser.add_argument("--column", metavar="C", nargs="+", help="the columns to fit; default all")
    text = "for labels that mark only some positives: count all other images as negative"
    parser.add_argument("--positive-unlabeled", action="store_true", help=text)
    add_out(parser, "PATH", "with --labels: a bundle, which may be MODEL; without: a .csv file of predictions")


def run(arguments: argparse.Namespace) -> None:
    """Fits probes and writes a model; without labels, writes the predictions of its probes."""
    if arguments.labels is not None:
        fit_probes(arguments)
        return
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.inference.encode_dataset import latents, open_for

    if arguments.column or arguments.id_column or arguments.positive_unlabeled:
        raise UserError("--column, --id-column and --positive-unlabeled need --labels, the table to fit probes to.")
    outputs.check_free(arguments.out, (".csv",), overwrite=arguments.overwrite)
    model = load(arguments.model)
    if not model.probes:
        raise UserError(f"{arguments.model} has no probes to predict with. Fit some with --labels FILE.csv.")
    source = open_for(model, arguments.images)
    z = latents(model, source)
    predictions = [model.predict(z, name) for name in model.probes]
    column = "id"
    while column in model.probes:
        column += "_"
    outputs.write_table(arguments.out, [(column, *model.probes), *zip(source.ids, *predictions, strict=True)])
    print(f"{len(z):,} images, {len(predictions)} probes: {shown(str(arguments.out))}")


def fit_probes(arguments: argparse.Namespace) -> None:
    """Fits a probe to each column of labels and writes the model with them."""
    import sys

    from diffae_jax import probes
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.data.labels.matching import labels_in
    from diffae_jax.data.labels.tables import read_table
    from diffae_jax.inference import bundle
    from diffae_jax.inference.encode_dataset import latents, open_for
    from diffae_jax.runtime.console import say
    from diffae_jax.runtime.files import local_path

    if isinstance(arguments.model, str) or arguments.out.resolve() != arguments.model.resolve():
        outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    bundle.check_free(arguments.out)
    table = read_table(local_path(arguments.labels))  # which may be damaged, so it is read before the model
    model = load(arguments.model)
    model.check_normalized()
    source = open_for(model, arguments.images)
    labels = labels_in(table, source.ids, arguments.id_column or "")
    unknown = [name for name in arguments.column or () if name not in labels.columns]
    if unknown:
        existing = list_some(labels.columns)
        raise UserError(f"{arguments.labels} has no labels {list_some(unknown)}. It has {existing}.")
    columns, unmatched = labels.of(source.ids), labels.unmatched(source.ids)
    for note in labels.notes_on_table:
        say(f"Note: {note}", file=sys.stderr)
    if unmatched:
        rows = f"{len(unmatched):,} rows of {arguments.labels}"
        say(f"Note: {rows} match no image ({list_some(unmatched)}).", file=sys.stderr)
    chosen = {name: columns[name] for name in arguments.column or columns}
    for name, values in chosen.items():
        probes.check_labels(name, values, positive_unlabeled=arguments.positive_unlabeled)
    z = latents(model, source)
    for name, values in chosen.items():
        model.fit_probe(name, z, values, positive_unlabeled=arguments.positive_unlabeled)
    model.save(arguments.out)
    print(f"Bundle: {shown(str(arguments.out))}")
