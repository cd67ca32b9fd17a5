"""A trained model as one object."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from diffae_jax.config import from_json
from diffae_jax.diffusion.samplers import ddim_decode, ddim_encode
from diffae_jax.diffusion.schedule import ddim_grid
from diffae_jax.errors import UserError
from diffae_jax.models import DiffusionAutoencoder, abstract_model
from diffae_jax.training.checkpoint import load_ema
from diffae_jax.training.precision import COMPUTE_DTYPES, resolve_precision
from diffae_jax.training.sharding import make_mesh, on_host, replicated, split_batch, spread
from diffae_jax.training.state import TrainState, make_optimizer

BATCH_ELEMENTS = 2**22  # values of the images that one device works on at a time


def builder(config: ConfigDict, precision: str) -> Callable[[nnx.Rngs], DiffusionAutoencoder]:
    """Returns the function that makes the model of a config, computing in that precision."""
    settings = dict(image_shape=config.image_shape, remat=config.execution.remat, dtype=COMPUTE_DTYPES[precision])
    return lambda rngs: DiffusionAutoencoder(**settings, **config.model, rngs=rngs)


@partial(jax.jit, static_argnames="graphdef")
def _encode(params: Any, x_0: Array, *, graphdef: nnx.GraphDef) -> Array:
    return nnx.merge(graphdef, params).encode(x_0)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps"))
def _invert(params: Any, x_0: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int) -> Array:
    grid = ddim_grid(schedule, num_steps)
    return ddim_encode(nnx.merge(graphdef, params).noise_predictor(grid.t, z), x_0, grid)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps"))
def _decode(params: Any, x_T: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int) -> Array:
    grid = ddim_grid(schedule, num_steps)
    return ddim_decode(nnx.merge(graphdef, params).noise_predictor(grid.t, z), x_T, grid)


@partial(jax.jit, static_argnames="shape")
def _noise(seed: Array, indices: Array, *, shape: tuple[int, ...]) -> Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


class DiffAE:
    """A diffusion autoencoder with its averaged weights.

    Images are float [N, *spatial, C] in [-1, 1], z is [N, D], x_T is [N, *spatial, C]. Work is split over all devices
    and done in batches that fit them; each method compiles once per batch shape and number of steps.
    """

    def __init__(self, config: ConfigDict, params: Any, mesh: Mesh | None = None):
        self.config = config
        self.image_shape = tuple(config.image_shape)
        self.mesh = mesh or make_mesh()
        self.params = params
        precision = resolve_precision(config.train.precision)
        self._graphdef, _ = abstract_model(builder(config, precision))

    @classmethod
    def load(cls, path: str | Path, mesh: Mesh | None = None) -> "DiffAE":
        """Loads the averaged weights of the newest checkpoint of a run folder. Raises UserError where there is none."""
        path = Path(path)
        checkpoints = path / "autoencoder" / "checkpoints"
        if not (path / "config.json").exists() or not checkpoints.is_dir():
            raise UserError(f"{path} is not the folder of a trained run: it has no config.json with checkpoints.")
        config = from_json(path / "config.json")
        precision = resolve_precision(config.train.precision)
        _, params = abstract_model(builder(config, precision))
        optimizer = make_optimizer(config.train.learning_rate, config.train.weight_decay)
        abstract = jax.eval_shape(lambda params: TrainState.create(params, optimizer), params)
        mesh = mesh or make_mesh()
        whole = replicated(mesh)
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), abstract)
        return cls(config, load_ema(checkpoints, abstract), mesh)

    def encode(self, images: Shaped[Any, "n *shape"]) -> Float[np.ndarray, "n d"]:
        """Returns the semantic code z of each image (Sec. 3.2)."""
        self._check_images(images)
        if self.config.model.z_dim is None:
            raise UserError(f"{self.config.name} is a DDIM baseline: it has no encoder and no z.")
        return self._in_batches(partial(_encode, graphdef=self._graphdef), images)

    def invert(
        self, images: Shaped[Any, "n *shape"], z: Float[np.ndarray, "n d"] | None = None, num_steps: int = 100
    ) -> Float[np.ndarray, "n *shape"]:
        """Returns the stochastic code x_T of each image (Eq. 8), given z, by default its own."""
        self._check_images(images)
        z = self._own_z(images) if z is None else z
        self._check_z(z, len(images))
        return self._in_batches(self._sampler(_invert, num_steps), images, z)

    def decode(
        self,
        z: Float[np.ndarray, "n d"] | None,
        x_T: Float[np.ndarray, "n *shape"] | None = None,
        num_steps: int = 100,
        seed: int = 0,
    ) -> Float[np.ndarray, "n *shape"]:
        """Decodes z and x_T to images (Eq. 1); without x_T, image i gets noise that depends on seed and i alone."""
        if x_T is None:
            if z is None:
                raise UserError("decode needs z, x_T or both: they say how many images there are.")
            x_T = jax.device_get(_noise(seed, jnp.arange(len(z)), shape=self.image_shape))
        self._check_shape(x_T)
        self._check_z(z, len(x_T))
        return self._in_batches(self._sampler(_decode, num_steps), x_T, z)

    def reconstruct(
        self, images: Shaped[Any, "n *shape"], num_steps: int = 100, infer_x_T: bool = True, seed: int = 0
    ) -> Float[np.ndarray, "n *shape"]:
        """Encodes and decodes images, with the x_T that is theirs or with random ones (Sec. 5.4)."""
        z = self._own_z(images)
        if infer_x_T:
            return self.decode(z, self.invert(images, z, num_steps), num_steps)
        x_T = jax.device_get(_noise(seed, jnp.arange(len(images)), shape=self.image_shape))
        return self.decode(z, x_T, num_steps)

    def _own_z(self, images):
        return None if self.config.model.z_dim is None else self.encode(images)

    def _sampler(self, function, num_steps):
        return partial(function, graphdef=self._graphdef, schedule=self.config.train.schedule, num_steps=num_steps)

    def _check_shape(self, images):
        if tuple(images.shape[1:]) != self.image_shape or not len(images):
            raise UserError(
                f"An array of shape {tuple(images.shape)} was given where the model takes (N, *{self.image_shape}): "
                f"resize the images and put the channels last."
            )

    def _check_z(self, z, num_images):
        z_dim = self.config.model.z_dim
        given, taken = (None if z is None else tuple(np.shape(z))), (None if z_dim is None else (num_images, z_dim))
        if given != taken:
            raise UserError(f"This model decodes {num_images} images from z of shape {taken}, not {given}.")

    def _check_images(self, images):
        self._check_shape(images)
        low, high = np.min(images), np.max(images)
        if not (np.issubdtype(images.dtype, np.floating) and low >= -1.001 and high <= 1.001):
            raise UserError(
                f"Images must be floating point numbers in [-1, 1]; these are {images.dtype} from {low} to {high}: "
                f"for uint8 use diffae_jax.data.transforms.to_float."
            )

    def _in_batches(self, function, *arrays):
        """Applies `function(params, *arrays)` to batches of one size over all devices; returns one host array."""
        results = [on_host(function(self.params, *batch)) for batch in self._batches(*arrays)]
        return np.concatenate(results)[: len(arrays[0])]

    def _batches(self, *arrays) -> Iterator[list]:
        """Yields equal batches as global arrays, the last filled up by repeating its last sample."""
        devices = self.mesh.size
        n = len(arrays[0])
        largest = devices * max(1, BATCH_ELEMENTS // math.prod(self.image_shape))
        size = min(largest, -(-n // devices) * devices)
        sharding = split_batch(self.mesh)
        for start in range(0, n, size):
            rows = np.minimum(np.arange(start, start + size), n - 1)
            yield [None if array is None else spread(np.asarray(array)[rows], sharding) for array in arrays]
