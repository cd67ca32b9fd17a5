"""diffae budget: finds the number of steps and the inversion for an error or a time."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.cli.arguments import IMAGES, Parser, add_model, add_out, add_seed, as_path, checked, number, within
from diffae_jax.runtime.errors import UserError, shown

if TYPE_CHECKING:
    from diffae_jax import DiffAE
    from diffae_jax.data.sources import TransformedSource
    from diffae_jax.evaluation.budget import Cost
    from diffae_jax.runtime.files import AnyPath

HELP = "find the steps and the inversion that reach an error or a time, and store them in the bundle"
EXAMPLES = (
    "ffhq128 --data faces/test --target-mse 1e-5 --out budget.png",
    "ffhq128 --data faces/test --seconds 2",
    "digits --data digits --inversions exact --steps 5 10 20 --no-save",
)
TARGETS = ("target_mse", "target_lpips", "seconds")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add_model(parser)
    text = f"the images to measure: {IMAGES}. Of the data the model was trained on, only held-out images are used"
    parser.add_argument("--data", metavar="IMAGES", type=as_path, required=True, help=text)
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument("--target-mse", metavar="X", type=positive, help="the largest MSE, for images in [0, 1]")
    targets.add_argument("--target-lpips", metavar="X", type=positive, help="the largest LPIPS")
    text = "the longest time to invert and decode an image in a batch; the setting of least MSE is chosen"
    targets.add_argument("--seconds", metavar="X", type=positive, help=text)
    steps = checked("check_num_steps")
    text = "the numbers of steps to measure; default 5 10 20 50 100"
    parser.add_argument("--steps", metavar="N", type=steps, nargs="+", help=text)
    for name in ("inversion", "grid"):
        text = f"the {name}s to measure; by default all"
        parser.add_argument(f"--{name}s", metavar="NAME", type=checked(f"check_{name}", str), nargs="+", help=text)
    text = "the maximum number of images to measure; default 32"
    parser.add_argument("--num-images", metavar="N", type=within(1, 10_000), default=32, help=text)
    add_seed(parser)
    add_out(parser, "FILE", "a .png for a picture of all settings", required=False)
    parser.add_argument("--no-save", action="store_true", help="do not store the chosen settings in the bundle")


def positive(text: str) -> float:
    """Parses a number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"it must be above 0, not {shown(value)}")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Measures settings, prints the best ones, and stores the choice."""
    from diffae_jax.cli import outputs
    from diffae_jax.cli.inputs import load
    from diffae_jax.data.sources import choose
    from diffae_jax.evaluation import budget, frontier
    from diffae_jax.evaluation.networks.feature_spaces import load_lpips, lpips_problem
    from diffae_jax.evaluation.study import as_float
    from diffae_jax.inference.bundle import MANIFEST, write_recommended
    from diffae_jax.runtime.console import say
    from diffae_jax.runtime.hub import is_hub_address
    from diffae_jax.runtime.logs import LOGGER

    given = [(name, value) for name in TARGETS if (value := getattr(arguments, name)) is not None]
    target = budget.Target(given[0][0].removeprefix("target_"), given[0][1]) if given else None
    if arguments.out is not None:
        outputs.check_free(arguments.out, (".png",), overwrite=arguments.overwrite)
    saves = target is not None and not arguments.no_save
    if saves and isinstance(arguments.model, str):
        place = "on the Hub" if is_hub_address(arguments.model) else "part of the package"
        raise UserError(f"{arguments.model} is {place}, where settings cannot be stored. Add --no-save.")
    if saves and not (arguments.model / MANIFEST).exists():
        raise UserError(f"{arguments.model} is no bundle, which could store the settings. Give a bundle or --no-save.")
    settings = budget.candidates(arguments.steps or budget.STEPS, arguments.inversions, arguments.grids)
    model = load(arguments.model)
    lpips, problem = None, lpips_problem(model.image_shape)
    if not problem:
        lpips, problem = load_lpips(model.mesh)
    if problem and target is not None and target.metric == "lpips":
        raise UserError(f"LPIPS cannot be measured: {problem.rstrip('.')}. Use --target-mse.")
    source = held_out_images(model, arguments.data)
    images = as_float(source, choose(len(source), arguments.num_images, arguments.seed))
    LOGGER.setLevel(logging.WARNING)  # the lines below have the cost of inversions; `cli.run` restores the level
    say(f"Measuring up to {len(settings)} settings on {len(images):,} of {len(source):,} images.")

    def measure(choice: frontier.Choice, num_steps: int) -> budget.Cost:
        cost = budget.measure(model, images, choice, num_steps, lpips)
        say(
            f"  {budget.as_recommended(cost)}: MSE {cost.mse:.2e}, {cost.num_calls:.0f} network calls, "
            f"{cost.seconds:.2g} s"
        )
        return cost

    costs = budget.search(settings, target, measure)
    metric = "lpips" if target is not None and target.metric == "lpips" else "mse"
    print(f"\nSettings that no other one beats in network calls and {metric.upper()}, per image:")
    print(budget.as_table(budget.frontier(costs, metric)))
    try:
        chosen = None if target is None else budget.choose(costs, target)
    except UserError:
        draw(arguments.out, costs, metric)  # it shows how far away the target is
        raise
    draw(arguments.out, costs, metric, chosen)
    if chosen is None:
        print("To choose one, add --target-mse, --target-lpips or --seconds.")
        return
    recommended = budget.as_recommended(chosen)
    print(f"\nFor {budget.describe(target)}: {recommended}.")
    print(f"  diffae reconstruct {shown(str(arguments.model))} IMAGES {recommended.options} --out FOLDER")
    if saves:
        write_recommended(arguments.model, recommended)
        print(f"Stored in {shown(str(arguments.model))}: DiffAE and the commands use these settings if you give none.")


def draw(out: Path | None, costs: "list[Cost]", metric: str, chosen: "Cost | None" = None) -> None:
    """Draws all settings, if a file is given, and prints its path."""
    from diffae_jax.evaluation import budget

    if out is not None:
        budget.draw(out, costs, metric, chosen)
        print(f"Picture: {shown(str(out))}")


def held_out_images(model: "DiffAE", path: "AnyPath") -> "TransformedSource":
    """Opens images. Of the data that a model was trained on, returns the held-out images, if any.

    Raises UserError if they cannot be opened.
    """
    from diffae_jax.data.detect import DIGITS
    from diffae_jax.data.sources import TransformedSource
    from diffae_jax.data.splits import open_splits
    from diffae_jax.inference.encode_dataset import open_for
    from diffae_jax.runtime.console import say
    from diffae_jax.runtime.files import expand_home

    data = model.config.data
    if str(path) != DIGITS and not (data.path and _is_same(expand_home(data.path), path)):
        return open_for(model, path)
    rules = {} if str(path) == DIGITS else dict(held_out=data.held_out, held_out_share=data.held_out_share)
    _, _, held_out = open_splits(
        str(path), model.image_shape, id_column=data.id_column, include=data.include, exclude=data.exclude, **rules
    )
    if not len(held_out):
        say("The model was trained on these images and holds out none: errors on other images are larger.")
        return open_for(model, path)
    return TransformedSource(held_out, model.transform)


def _is_same(first: "AnyPath", second: "AnyPath") -> bool:
    """Whether two paths are the same, however they are spelled."""
    try:
        return first.resolve() == second.resolve()
    except (OSError, RuntimeError, ValueError):  # no path can be like this
        return first == second
