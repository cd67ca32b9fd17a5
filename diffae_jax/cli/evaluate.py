"""diffae evaluate: repeats the paper's measurements on a model and writes a report."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import (
    IMAGES,
    Parser,
    add_labels,
    add_model,
    add_out,
    add_seed,
    as_model,
    as_path,
    checked,
    within,
)
from diffae_jax.runtime.errors import UserError, shown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from diffae_jax import DiffAE

HELP = "repeat the paper's measurements on a model and write a report; rerun the command to resume a stopped one"
EXAMPLES = (
    "ffhq128 --data faces/test --training faces/train --out report",
    "digits --data digits --baseline runs/digits_ddim --others runs/digits_z4 --out report",
    "ffhq128 --data faces/test --programs reconstruction --steps 10 20 50 100 --download --out report",
)
WEIGHT_FILES = ("inception", "alexnet", "lpips")  # names of arguments and of settings


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    parser.add_argument(
        "--data", metavar="IMAGES", type=as_path, required=True, help=f"the images to measure: {IMAGES}"
    )
    text = "the training images, for samples, labels and neighbors; not needed with --data digits"
    parser.add_argument("--training", metavar="IMAGES", type=as_path, help=text)
    add_labels(parser)
    add_out(parser, "FOLDER", "the folder for report.html, results.json and the pictures")
    parser.add_argument("--baseline", metavar="MODEL", type=as_model, help="a DDIM baseline to compare with")
    text = "models with different sizes of z, to compare with"
    parser.add_argument("--others", metavar="MODEL", type=as_model, nargs="+", help=text)
    text = "images of a different kind, for the program out_of_distribution"
    parser.add_argument("--foreign", metavar="IMAGES", type=as_path, help=text)
    text = "the programs to run; all: every program; by default those in the config of the model"
    parser.add_argument("--programs", metavar="NAME", nargs="+", help=text)
    steps = checked("check_num_steps")
    text = "numbers of DDIM steps for reconstructions and samples"
    parser.add_argument("--steps", metavar="N", type=steps, nargs="+", help=text)
    text = "the number of steps for all other measurements; by default the largest of --steps"
    parser.add_argument("--code-steps", metavar="N", type=steps, help=text)
    text = "samplers for new images, such as ddim dpmpp_2m; default: those in the config of the model"
    sampler = checked("check_sampler", str)
    parser.add_argument("--samplers", metavar="NAME", type=sampler, nargs="+", help=text)
    text = "methods of inversion for reconstructions: ddim, exact, gaussian"
    inversion = checked("check_inversion", str)
    parser.add_argument("--inversions", metavar="NAME", type=inversion, nargs="+", help=text)
    count = within(2, 10_000_000)
    parser.add_argument("--num-images", metavar="N", type=count, help="the maximum number of images to measure")
    parser.add_argument("--num-samples", metavar="N", type=count, help="the number of new images to sample")
    add_seed(parser)
    parser.add_argument("--keep-images", action="store_true", help="save generated images as PNG files")
    text = "download the public weights of LPIPS and FID once, to the user's cache folder"
    parser.add_argument("--download", action="store_true", help=text)
    for name, network in (
        ("inception", "the Inception network of FID"),
        ("alexnet", "AlexNet for LPIPS"),
        ("lpips", "LPIPS"),
    ):
        text = f"a file with the weights of {network}; by default the downloaded one"
        parser.add_argument(f"--{name}", metavar="FILE", type=as_path, help=text)


def run(arguments: argparse.Namespace) -> None:
    """Measures a model, and writes a report."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.data.detect import DIGITS
    from diffae_jax.data.inspect.scan import check_all
    from diffae_jax.data.sources import TransformedSource
    from diffae_jax.data.splits import open_splits, with_labels
    from diffae_jax.evaluation.evaluate import evaluate
    from diffae_jax.evaluation.results import REPORT
    from diffae_jax.inference.encode_dataset import open_for

    if arguments.id_column and arguments.labels is None:
        raise UserError("--id-column needs --labels, the table with this column.")
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
        sources = [source.source for source in (images, training) if source is not None]
        labeled = with_labels(sources, str(arguments.labels), id_column=arguments.id_column or "")
        images, *others = (TransformedSource(source, model.transform) for source in labeled)
        training = others[0] if others else None
    for source in (images, foreign):
        if source:
            check_all(source, show_progress=sys.stderr.isatty())
    results = evaluate(
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
    print(f"{'Report' if results else 'Already finished'}: {shown(str(arguments.out / REPORT))}")


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds a finished or unfinished evaluation."""
    from diffae_jax.evaluation.chunk_cache import INPUTS
    from diffae_jax.evaluation.evaluate import CHUNKS
    from diffae_jax.evaluation.results import RESULTS
    from diffae_jax.runtime.files import os_errors_as_user_errors, read_json

    with os_errors_as_user_errors(folder):
        if (folder / CHUNKS / INPUTS).exists():
            return True
        results = read_json(folder / RESULTS) if (folder / RESULTS).exists() else None
    return isinstance(results, dict) and "measured" in results


def evaluation_settings(model: "DiffAE", arguments: argparse.Namespace) -> "ConfigDict":
    """Returns the evaluation settings of the model's config, overridden by the given arguments."""
    from diffae_jax.config import PROGRAMS, check, default

    config = model.config.copy_and_resolve_references()
    settings = config.evaluation
    defaults = default().evaluation
    # these settings fit only the machine where the model was trained
    for name in ("keep_images", "download", *WEIGHT_FILES):
        settings[name] = defaults[name]
    given = {
        "num_images": arguments.num_images,
        "num_samples": arguments.num_samples,
        "num_steps": arguments.steps,
        "samplers": arguments.samplers,
        "inversions": arguments.inversions,
        "num_sample_steps": arguments.steps,
        "num_code_steps": arguments.code_steps or (arguments.steps and max(arguments.steps)),
        "programs": PROGRAMS if arguments.programs == ["all"] else arguments.programs,
        "keep_images": arguments.keep_images or None,
        "download": arguments.download or None,
        **{name: getattr(arguments, name) and str(getattr(arguments, name)) for name in WEIGHT_FILES},
    }
    for name, value in given.items():
        if value is not None:
            settings[name] = tuple(value) if isinstance(value, list) else value
    check(config)
    return settings
