"""Measures how long a checkpoint takes to save, to check and to restore.

python -m benchmarks.checkpoints                    of the shape of configs/ffhq256.py, 2.7 GB
python -m benchmarks.checkpoints --config=digits
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from diffae_jax.config import from_file
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.runtime.console import quantity
from diffae_jax.runtime.sharding import make_mesh, replicated
from diffae_jax.training import manifest
from diffae_jax.training.checkpoint import Checkpoints
from diffae_jax.training.packing import Packing
from diffae_jax.training.state import TrainState, make_optimizer

ROUNDS = 3
WINDOW = {"count": 0, "sums": {}}


def seconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes, with the arrays that it returns."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def main() -> None:
    """Prints the medians of a few rounds, and the share of checking in restoring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ffhq256")
    config, whole = from_file(parser.parse_args().config), replicated(make_mesh())
    _, shapes = abstract_model(builder(config, "float32"))
    packing, rng, optimizer = Packing(shapes), np.random.default_rng(0), make_optimizer(1e-4)
    # all random: the zeros of a new optimizer would take no space on disk
    state = jax.tree.map(
        lambda a: jax.device_put(rng.standard_normal(a.shape, np.float32).astype(a.dtype), whole),
        jax.eval_shape(lambda params: TrainState.create(packing.pack(params), optimizer), shapes),
    )
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), state)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for step in range(1, ROUNDS + 1):
            path, checkpoints = Path(folder) / str(step), Checkpoints(Path(folder))
            measured = {
                "digests of the arrays": lambda: manifest.digest_arrays(state),
                "save, before training continues": lambda: checkpoints.save(step, state, WINDOW),  # noqa: B023
                "save, in the background": checkpoints.wait,
                "check": lambda: manifest.damage_of(path),  # noqa: B023
                "restore, with digests": lambda: checkpoints.restore(step, abstract),  # noqa: B023
            }
            for name, call in measured.items():
                times.setdefault(name, []).append(seconds(call))
            checkpoints.close()
        size = sum((path / name).stat().st_size for name in manifest.names_below(path))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{config.name}: {len(jax.tree.leaves(state)):,} arrays, {quantity(size, 'B')} on disk, {ROUNDS} rounds")
    for name, median in medians.items():
        print(f"  {name:30} {median:7.2f} s  ({min(times[name]):.2f} to {max(times[name]):.2f})")
    print(f"checking takes {medians['check'] / medians['restore, with digests']:.0%} of the time of restoring")


if __name__ == "__main__":
    main()
