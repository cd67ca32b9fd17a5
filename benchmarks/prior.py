"""Measures the training speed of the latent DDIM with one and with ten steps per call.

python -m benchmarks.prior             FFHQ of the paper: 10 layers of 2048, batches of 256
python -m benchmarks.prior --digits    configs/digits.py, small enough for host time to matter
"""

import argparse
import itertools
import statistics
import time

import jax
import numpy as np

from configs import digits, ffhq128
from diffae_jax.data.batches import batches_of_rows, on_devices
from diffae_jax.runtime.sharding import make_mesh, replicated, shard_array, split_batch
from diffae_jax.stages.prior import prior_program
from diffae_jax.training.program import run_key

ROUNDS = 5


def trainer(config, num_latents: int, steps_per_call: int, mesh):
    """Returns a function that runs a number of training steps and returns its speed."""
    config.execution.steps_per_dispatch = steps_per_call
    program = prior_program(config, mesh, num_latents)
    z = np.random.default_rng(0).normal(size=(num_latents, config.model.z_dim)).astype(np.float32)
    resident, key = shard_array(z, replicated(mesh)), run_key(0, mesh)
    rows = batches_of_rows(num_latents, batch_size=config.prior.batch_size, steps=steps_per_call, seed=0)
    rows = on_devices(rows, split_batch(mesh, axis=1))
    state = program.init(key)

    def train(num_steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for call in itertools.islice(rows, num_steps // steps_per_call):
            state, _ = program.step(state, (resident, call), key)
        jax.block_until_ready(state.step)
        return num_steps / (time.perf_counter() - began)

    train(steps_per_call)
    return train


def main() -> None:
    """Prints the medians over rounds in which the two settings alternate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--steps", type=int, help="training steps in a round, a multiple of 10")
    arguments = parser.parse_args()
    make_config, num_latents = (digits.get_config, 1437) if arguments.digits else (ffhq128.get_config, 70_000)
    num_steps = arguments.steps or (200 if arguments.digits else 10)
    mesh = make_mesh()
    trainers = {steps: trainer(make_config(), num_latents, steps, mesh) for steps in (1, 10)}
    rounds = [{steps: train(num_steps) for steps, train in trainers.items()} for _ in range(ROUNDS)]
    print(f"{jax.device_count()} {jax.devices()[0].device_kind}, {ROUNDS} rounds of {num_steps} steps, medians")
    for steps in trainers:
        print(f"{steps:3} steps per call: {statistics.median(speeds[steps] for speeds in rounds):.3g} steps/s")
    print(f"ratio 10 : 1 within a round: {statistics.median(speeds[10] / speeds[1] for speeds in rounds):.3f}")


if __name__ == "__main__":
    main()
