"""Compares training on the digits 0 to 4 from nothing with fine-tuning a model of 5 to 9.

    python -m benchmarks.fine_tuning runs/fine_tuning --out docs

Trains both and measures them at several lengths, on held-out digits by unseen writers. Prints a
table and draws fine_tune.png. What is trained and measured is kept: the same command continues.
"""

import argparse
import json
from pathlib import Path

from diffae_jax.runtime.process import prepare_command

prepare_command()

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402

from configs.digits import get_config  # noqa: E402
from diffae_jax import DiffAE  # noqa: E402
from diffae_jax.data.formats.digits import DIGITS_HELD_OUT, all_digits  # noqa: E402
from diffae_jax.data.sources import Arrays  # noqa: E402
from diffae_jax.data.transforms import to_float  # noqa: E402
from diffae_jax.evaluation.metrics import frechet_distance, mse  # noqa: E402
from diffae_jax.evaluation.networks.feature_spaces import principal_space  # noqa: E402
from diffae_jax.stages.chain import run_stages  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SOURCE_LENGTH = 30_000  # images seen by the model of 5 to 9
PRIOR_LENGTH = 64_000  # z
FINE_TUNED, FROM_NOTHING = "from a model of 5 to 9", "from nothing"
LENGTHS = {FINE_TUNED: (1_000, 2_500), FROM_NOTHING: (1_000, 2_500, 5_000, 7_500)}  # images seen
MSES = {"mse": "MSE, inferred x_T", "mse_random": "MSE, random x_T"}
STEPS = 20
NUM_SAMPLES = 400
NUM_COMPONENTS = 32


def digits(low: int, high: int) -> tuple[Arrays, int]:
    """Returns the digits from `low` to `high`, and how many of the last ones are held out."""
    images = all_digits()
    rows = np.flatnonzero((low <= images.labels["digit"]) & (images.labels["digit"] <= high))
    held_out = int((rows >= len(images) - DIGITS_HELD_OUT).sum())
    return Arrays(images.images[rows], [images.ids[row] for row in rows]), held_out


def train(folder: Path, low: int, high: int, num_images: int, stages: list[str], init: Path | None = None) -> None:
    """Trains on some digits, or continues to a larger number of images."""
    images, held_out = digits(low, high)
    config = get_config()
    config.name, config.train.num_images = f"digits_{low}_to_{high}", num_images
    config.prior.num_latents = PRIOR_LENGTH
    config.data.update(path="", held_out=f"[-{held_out}:]")
    config.report.update(save_every=10_000, grid_every=1_000_000, health_every=1_000_000)
    run_stages(config, folder, stages, images=images, init=init)


def measure(folder: Path, num_images: int, *, is_last: bool) -> dict[str, float]:
    """Returns the errors of reconstructions and, for the last length, the distance of samples.

    Samples need a prior, which takes longer to train than a short fine-tuning.
    """
    images, held_out = digits(0, 4)
    images = to_float(images.images)
    training, unseen = images[:-held_out], images[-held_out:]
    if is_last:
        train(folder, 0, 4, num_images, ["latents", "prior"])
    model = DiffAE.load(folder)
    figures = {
        "mse": float(mse(model.reconstruct(unseen, STEPS), unseen).mean()),
        "mse_random": float(mse(model.reconstruct(unseen, STEPS, infer_x_T=False), unseen).mean()),
    }
    if is_last:
        space = principal_space(training, NUM_COMPONENTS)
        samples = model.sample(NUM_SAMPLES, seed=1, num_steps=STEPS, num_latent_steps=STEPS)
        figures["frechet"] = float(frechet_distance(space.features(samples), space.features(unseen)))
    return figures


def draw(figures: dict[str, dict[str, dict[str, float]]], file: Path) -> None:
    """Draws the errors against the number of images seen."""
    picture, axes = plt.subplots(1, len(MSES), figsize=(9, 3.2), layout="compressed")
    for ax, (key, title) in zip(axes, MSES.items(), strict=True):
        for name, by_length in figures.items():
            ax.plot([int(length) for length in by_length], [each[key] for each in by_length.values()], "o-", label=name)
        ax.set(title=title.replace("x_T", "$x_T$"), xlabel="images seen", yscale="log")
    axes[0].legend()
    picture.savefig(file, dpi=100)
    plt.close(picture)


def main() -> None:
    """Trains, measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="for the runs and the figures")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    arguments = parser.parse_args()
    source, results = arguments.folder / "digits_5_to_9", arguments.folder / "figures.json"
    train(source, 5, 9, SOURCE_LENGTH, ["autoencoder", "latents", "prior", "export"])
    figures = json.loads(results.read_text()) if results.exists() else {}
    for name, lengths in LENGTHS.items():
        folder, init = arguments.folder / name.replace(" ", "_"), source / "bundle" if name == FINE_TUNED else None
        by_length = figures.setdefault(name, {})
        for num_images in lengths:
            if str(num_images) not in by_length:
                train(folder, 0, 4, num_images, ["autoencoder"], init)
                by_length[str(num_images)] = measure(folder, num_images, is_last=num_images == lengths[-1])
                results.write_text(json.dumps(figures, indent=1))
    print(f"| start | images seen | {' | '.join(MSES.values())} | Frechet distance |\n|---|---|---|---|---|")
    for name, by_length in figures.items():
        for length, values in by_length.items():
            distance = f"{values['frechet']:.2f}" if "frechet" in values else ""
            print(f"| {name} | {int(length):,} | {values['mse']:.1e} | {values['mse_random']:.4f} | {distance} |")
    if arguments.out is not None:
        draw(figures, arguments.out / "fine_tune.png")


if __name__ == "__main__":
    main()
