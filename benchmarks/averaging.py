"""Compares averages of the weights while they are young: constant decays, and decays that rise.

    python -m benchmarks.averaging --config=digits --at 1000 5000 20000
    python -m benchmarks.averaging --config=photos32 --config.data.path=faces.zip --at 1000

Trains the autoencoder of a config once, which keeps all averages, and measures each at the given
numbers of steps: the MSE of reconstructions with random x_T, in [0, 1], and the correlation of
their neighboring pixels. It is 0 for noise. Held-out images are measured, if there are any.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from diffae_jax.runtime.process import prepare_command

prepare_command()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from diffae_jax import DiffAE  # noqa: E402
from diffae_jax.cli.train import parse  # noqa: E402
from diffae_jax.data.batches import on_devices, training_batches  # noqa: E402
from diffae_jax.data.run_images import open_data  # noqa: E402
from diffae_jax.data.sources import read  # noqa: E402
from diffae_jax.data.transforms import to_float  # noqa: E402
from diffae_jax.evaluation.metrics import mse  # noqa: E402
from diffae_jax.runtime.cpu import use_all_cores  # noqa: E402
from diffae_jax.runtime.sharding import make_mesh, on_host, split_batch  # noqa: E402
from diffae_jax.stages.autoencoder import autoencoder_program  # noqa: E402
from diffae_jax.training.program import run_key  # noqa: E402
from diffae_jax.training.step import ema_decay_at  # noqa: E402

STEPS = 20
NUM_IMAGES = 64
Decay = Callable[[jax.Array], jax.Array]  # of a step


def decays() -> dict[str, Decay]:
    """Returns the decays that are compared, by name."""
    made: dict[str, Decay] = {"the weights themselves": lambda step: 0.0 * step}
    for decay in (0.999, 0.9999):
        made[f"{decay}"] = lambda step, decay=decay: decay + 0.0 * step
        made[f"{decay}, rising"] = partial(ema_decay_at, ema_decay=decay)
    return made


def correlation_of_neighbors(images: np.ndarray) -> float:
    """Returns the correlation of pixels with those to their right, less the mean of each image."""
    images = images - images.mean((1, 2), keepdims=True)
    return float((images[:, :, 1:] * images[:, :, :-1]).mean() / np.square(images).mean())


def main() -> None:
    """Trains and prints a row for each average and length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=int, nargs="+", required=True, help="numbers of steps")
    arguments, flags = parser.parse_known_args()
    config = parse(flags).config
    use_all_cores(config)
    mesh, averages_by = make_mesh(), decays()
    with tempfile.TemporaryDirectory() as folder:
        training, held_out = open_data(config, Path(folder), begun=False)
    source = held_out if len(held_out) else training
    x_0 = to_float(read(source, range(min(NUM_IMAGES, len(source)))))
    program = autoencoder_program(config, mesh, training.transform.dtype, num_steps=max(arguments.at))
    state = program.init(run_key(config.seed, mesh))

    @partial(jax.jit, donate_argnums=0)
    def updated(averages, params, step):
        return {
            name: optax.incremental_update(params, average, 1 - averages_by[name](step))
            for name, average in averages.items()
        }

    averages = {name: jax.tree.map(jax.numpy.copy, state.params) for name in averages_by}
    batches = on_devices(
        training_batches(
            training,
            batch_size=config.train.batch_size,
            seed=config.seed,
            first_step=0,
            flip=config.data.flip,
            num_workers=config.execution.num_workers,
            process_index=0,
            num_processes=1,
        ),
        split_batch(mesh),
    )
    print("| steps | decay | MSE, random x_T | correlation of neighbors |\n|---|---|---|---|")
    print(f"| | the images | 0 | {correlation_of_neighbors(x_0):.2f} |")
    for step, batch in zip(range(max(arguments.at)), batches, strict=False):
        state, _ = program.step(state, batch, run_key(config.seed, mesh))
        averages = updated(averages, state.params, step)
        if step + 1 not in arguments.at:
            continue
        for name, average in averages.items():
            model = DiffAE(config, program.packing.unpack(on_host(average)), mesh=mesh)
            decoded = model.reconstruct(x_0, STEPS, infer_x_T=False)
            error, correlation = float(mse(decoded, x_0).mean()), correlation_of_neighbors(decoded)
            print(f"| {step + 1:,} | {name} | {error:.4f} | {correlation:.2f} |", flush=True)


if __name__ == "__main__":
    main()
