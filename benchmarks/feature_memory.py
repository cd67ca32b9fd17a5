"""Prints the speed and the peak memory of Inception features, with random weights.

python -m benchmarks.feature_memory
"""

import time

import jax
import numpy as np

from benchmarks.import_official import peak_memory
from diffae_jax.evaluation.networks.feature_spaces import inception_features
from diffae_jax.evaluation.networks.inception import InceptionV3
from diffae_jax.models import abstract_model
from diffae_jax.runtime.sharding import make_mesh

NUM_IMAGES = 96


def main() -> None:
    """Computes the features of some images twice: first to compile, then to measure."""
    rng = np.random.default_rng(0)
    _, shapes = abstract_model(lambda rngs: InceptionV3(rngs=rngs))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.03, leaf.shape).astype(np.float32), shapes)
    features = inception_features(params, make_mesh())
    images = rng.uniform(-1, 1, (NUM_IMAGES, 64, 64, 3)).astype(np.float32)
    before = peak_memory()
    features(images)
    start = time.perf_counter()
    features(images)
    speed = NUM_IMAGES / (time.perf_counter() - start)
    print(f"{speed:.1f} images/s; peak memory {peak_memory() / 2**20:,.0f} MiB, {before / 2**20:,.0f} MiB before")


if __name__ == "__main__":
    main()
