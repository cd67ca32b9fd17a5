"""diffae evaluate: the paper's measurements of a model, as a report."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import IMAGES, Parser, add_model, add_out, add_seed, checked, within
from diffae_jax.runtime.errors import shown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from diffae_jax import DiffAE

HELP = "measure a model as the paper does, and write a report; a command that was stopped goes on where it was"
EXAMPLES = (
    "ffhq128 --data faces/test --training faces/train --out report",
    "digits --data digits --baseline runs/digits_ddim --others runs/digits_z4 --out report",
    "ffhq128 --data faces/test --programs reconstruction --steps 10 20 50 100 --download --out report",
)
FILES_OF_WEIGHTS = ("inception", "alexnet", "lpips")  # arguments and settings of that name


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    parser.add_argument("--data", metavar="IMAGES", type=Path, required=True, help=f"what is measured: {IMAGES}")
    text = "what the model was trained on, for samples, labels and neighbors; of the digits it is known"
    parser.add_argument("--training", metavar="IMAGES", type=Path, help=text)
    parser.add_argument("--labels", metavar="FILE", type=Path, help="a CSV: the id of each image, and a column a label")
    add_out(parser, "FOLDER", "gets report.html, results.json and the pictures")
    parser.add_argument("--baseline", metavar="MODEL", type=Path, help="a DDIM without z, to compare with")
    text = "models with a z of other sizes, to compare with"
    parser.add_argument("--others", metavar="MODEL", type=Path, nargs="+", help=text)
    parser.add_argument("--foreign", metavar="IMAGES", type=Path, help="images of another kind, to see x_T of them")
    text = "what to measure, by default what the model's config says; all: everything"
    parser.add_argument("--programs", metavar="NAME", nargs="+", help=text)
    steps = checked("check_num_steps")
    text = "steps of DDIM, those of the reconstruction and of the samples"
    parser.add_argument("--steps", metavar="N", type=steps, nargs="+", help=text)
    text = "steps of all that is not measured at several; by default the most of --steps"
    parser.add_argument("--code-steps", metavar="N", type=steps, help=text)
    most = within(2, 10_000_000)
    parser.add_argument("--num-images", metavar="N", type=most, help="at most so many images are measured")
    parser.add_argument("--num-samples", metavar="N", type=most, help="so many new images are drawn")
    add_seed(parser)
    parser.add_argument("--keep-images", action="store_true", help="keep what is generated, as PNG files")
    text = "fetch the public weights that LPIPS and FID need, once, to a folder of the user's"
    parser.add_argument("--download", action="store_true", help=text)
    for name, what in (("inception", "FID"), ("alexnet", "LPIPS"), ("lpips", "LPIPS, too")):
        parser.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"weights for {what}, where they are at hand")


def run(arguments: argparse.Namespace) -> None:
    """Measures a model, and writes a report."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.data.detect import DIGITS, open_splits, with_labels
    from diffae_jax.data.inspect.scan import check_all
    from diffae_jax.data.sources import TransformedSource
    from diffae_jax.evaluation.evaluate import evaluate
    from diffae_jax.evaluation.results import REPORT
    from diffae_jax.inference.encode_dataset import open_for

    if not is_evaluation(arguments.out):
        outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    settings = evaluation_settings(model, arguments)
    if str(arguments.data) == DIGITS and arguments.training is None:
        training, images = (
            TransformedSource(source, model.transform) for source in open_splits(DIGITS, model.image_shape)[1:]
        )
    else:
        images = open_for(model, arguments.data)
        training = None if arguments.training is None else open_for(model, arguments.training)
    foreign = arguments.foreign and open_for(model, arguments.foreign)
    if arguments.labels is not None:
        images, training = (
            source and TransformedSource(with_labels(source.source, str(arguments.labels)), source.transform)
            for source in (images, training)
        )
    for source in (images, foreign):
        if source:
            check_all(source, show_progress=sys.stderr.isatty())
    found = evaluate(
        model,
        images,
        training,
        settings,
        arguments.out,
        seed=arguments.seed,
        baseline=arguments.baseline and load(arguments.baseline),
        others=tuple(load(path) for path in arguments.others or ()),
        foreign=foreign,
        replace=arguments.overwrite,
    )
    print(f"{'The report' if found else 'There already'}: {shown(str(arguments.out / REPORT))}")


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds what `evaluate` writes, whole or begun."""
    from diffae_jax.evaluation.chunk_cache import INPUTS
    from diffae_jax.evaluation.evaluate import CHUNKS
    from diffae_jax.evaluation.results import RESULTS
    from diffae_jax.runtime.files import os_errors_as_user_errors, read_json

    with os_errors_as_user_errors(folder):
        if (folder / CHUNKS / INPUTS).exists():
            return True
        found = read_json(folder / RESULTS) if (folder / RESULTS).exists() else None
    return isinstance(found, dict) and "measured" in found


def evaluation_settings(model: "DiffAE", arguments: argparse.Namespace) -> "ConfigDict":
    """Returns what the model's config says of evaluation, changed by the arguments that were given."""
    from diffae_jax.config import PROGRAMS, check, default

    config = model.config.copy_and_resolve_references()
    settings = config.evaluation
    own = default().evaluation
    for name in ("keep_images", "download", *FILES_OF_WEIGHTS):  # of who made the model
        settings[name] = own[name]
    given = {
        "num_images": arguments.num_images,
        "num_samples": arguments.num_samples,
        "num_steps": arguments.steps,
        "num_sample_steps": arguments.steps,
        "num_code_steps": arguments.code_steps or (arguments.steps and max(arguments.steps)),
        "programs": PROGRAMS if arguments.programs == ["all"] else arguments.programs,
        "keep_images": arguments.keep_images or None,
        "download": arguments.download or None,
        **{name: getattr(arguments, name) and str(getattr(arguments, name)) for name in FILES_OF_WEIGHTS},
    }
    for name, value in given.items():
        if value is not None:
            settings[name] = tuple(value) if isinstance(value, list) else value
    check(config)
    return settings
