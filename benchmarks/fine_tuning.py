"""Compares training on the digits 0 to 4 from nothing with starting from a model of 5 to 9.

    python -m benchmarks.fine_tuning runs/fine_tuning --out docs

Trains both models step by step, measures them at each length on held-out digits by unseen writers,
prints a table and draws fine_tune.png. What is trained and measured is kept, so the same command
continues.
"""

import argparse
import json
import shutil
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

LENGTHS = {"from nothing": (5_000, 10_000, 20_000, 30_000), "from digits 5 to 9": (1_000, 2_500, 5_000, 10_000)}
SOURCE_LENGTH = 40_000  # images seen by the model of 5 to 9
PRIOR_LENGTH = 128_000
STEPS = 20
NUM_SAMPLES = 400
NUM_COMPONENTS = 32
FROM_NOTHING, FINE_TUNED = LENGTHS


def digits(low: int, high: int) -> tuple[Arrays, int]:
    """Returns the digits from `low` to `high`, and how many of the last ones are held out."""
    images = all_digits()
    rows = np.flatnonzero((low <= images.labels["digit"]) & (images.labels["digit"] <= high))
    held_out = int((rows >= len(images) - DIGITS_HELD_OUT).sum())
    return Arrays(images.images[rows], [images.ids[row] for row in rows]), held_out


def train(folder: Path, low: int, high: int, num_images: int, stages: list[str], init: Path | None = None) -> None:
    """Trains, or trains further, on some digits."""
    images, held_out = digits(low, high)
    config = get_config()
    config.prior.num_latents = PRIOR_LENGTH
    config.name, config.train.num_images = f"digits_{low}_to_{high}", num_images
    config.data.update(path="", held_out=f"[-{held_out}:]")
    config.report.update(save_every=10_000, grid_every=1_000_000, health_every=1_000_000)
    run_stages(config, folder, stages, images=images, **({} if init is None else {"init": init}))


def measure(folder: Path, num_images: int, init: Path | None) -> dict[str, float]:
    """Returns the error of reconstructions and the Frechet distance of samples.

    z and the prior belong to this length, so they are trained in a copy of the run.
    """
    images, held_out = digits(0, 4)
    images = to_float(images.images)
    training, unseen = images[:-held_out], images[-held_out:]
    copy = folder.with_name(f"{folder.name}-{num_images}")
    if not copy.exists():
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("grids", "latents", "prior"))
    train(copy, 0, 4, num_images, ["latents", "prior"], init)
    model = DiffAE.load(copy)
    space = principal_space(training, NUM_COMPONENTS)
    samples = model.sample(NUM_SAMPLES, seed=1, num_steps=STEPS, num_latent_steps=STEPS)
    return {
        "mse": float(mse(model.reconstruct(unseen, STEPS), unseen).mean()),
        "frechet": float(frechet_distance(space.features(samples), space.features(unseen))),
    }


def main() -> None:
    """Trains, measures, prints and draws."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="for the runs and the figures")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    arguments = parser.parse_args()
    source = arguments.folder / "digits_5_to_9"
    train(source, 5, 9, SOURCE_LENGTH, ["autoencoder", "latents", "prior", "export"])
    results = arguments.folder / "results.json"
    figures = json.loads(results.read_text()) if results.exists() else {}
    for name, init in ((FINE_TUNED, source / "bundle"), (FROM_NOTHING, None)):
        folder = arguments.folder / name.replace(" ", "_")
        for num_images in LENGTHS[name]:
            if f"{name}, {num_images}" not in figures:
                train(folder, 0, 4, num_images, ["autoencoder"], init)
                figures[f"{name}, {num_images}"] = measure(folder, num_images, init)
                results.write_text(json.dumps(figures, indent=1))
                print(name, num_images, figures[f"{name}, {num_images}"], flush=True)


if __name__ == "__main__":
    main()
