"""A trained model as one object."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict

from diffae_jax import inference
from diffae_jax.bundle import MANIFEST, Bundle, read_bundle, write_bundle
from diffae_jax.config import check, check_num_steps, check_seed, from_json
from diffae_jax.data.latents import STATISTICS, LatentStatistics, read_statistics
from diffae_jax.errors import UserError, shown
from diffae_jax.files import told
from diffae_jax.models import abstract_model
from diffae_jax.models.functional import Params, digest, flatten, unflatten
from diffae_jax.networks import abstract_weights, builder, check_weights, prior_builder
from diffae_jax.probes import Probe
from diffae_jax.training.checkpoint import latest_step, load_ema
from diffae_jax.training.logging import is_main_process
from diffae_jax.training.precision import resolve_precision
from diffae_jax.training.sharding import make_mesh, on_host, replicated, split_batch, spread

BATCH_ELEMENTS = 2**22  # values of the images that one device works on at a time


class DiffAE:
    """A diffusion autoencoder with its averaged weights, and what was fitted to its z.

    Images are float [N, *spatial, C] in [-1, 1], z is [N, D], x_T is [N, *spatial, C]. Work is split over all devices
    and done in batches that fit them; each method compiles once per batch shape and number of steps.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Params,
        *,
        statistics: LatentStatistics | None = None,  # of z over the training images
        prior: Params | None = None,  # of the latent DDIM
        probes: dict[str, Probe] | None = None,
        origin: dict[str, Any] | None = None,  # what the model was made from: plain values, for people
        mesh: Mesh | None = None,
    ):
        if prior is not None and statistics is None:
            raise UserError("A latent DDIM works on normalised z: it needs the mean and deviation of z beside it.")
        rows = {"the statistics": statistics.mean} if statistics else {}
        rows |= {f"probe {shown(probe.name)}": probe.weights for probe in (probes or {}).values()}
        if rows and config.model.z_dim is None:
            raise UserError(
                f"{shown(config.name)} is a DDIM baseline: it has no z, so leave statistics and probes off."
            )
        for name, row in rows.items():
            if row.shape != (config.model.z_dim,):
                raise UserError(f"The z of this model has {config.model.z_dim} dimensions, and {name} {len(row)}.")
        self.config = config
        self.image_shape = tuple(config.image_shape)
        self.mesh = mesh or make_mesh()
        self.params = self._placed(params)
        self.statistics = statistics
        self.prior = None if prior is None else self._placed(prior)
        self.probes = dict(probes or {})
        self.origin = dict(origin or {})
        precision = resolve_precision(config.train.precision)
        self._graphdef, _ = abstract_model(builder(config, precision))
        if prior is not None:
            self._prior_graphdef, _ = abstract_model(prior_builder(config, precision))

    @classmethod
    def load(cls, path: str | Path, mesh: Mesh | None = None) -> "DiffAE":
        """Loads a bundle, or the averaged weights of the newest checkpoints of a run folder.

        Raises UserError for a path that is neither, for a bundle that is damaged or of a newer format, and for a run
        whose latents are those of another autoencoder.
        """
        path, mesh = Path(path), mesh or make_mesh()
        checkpoints = path / "autoencoder" / "checkpoints"
        with told(path):
            is_bundle = (path / MANIFEST).exists()
            is_run = (path / "config.json").exists() and checkpoints.is_dir()
        if is_bundle:
            return cls.from_bundle(read_bundle(path), mesh)
        if not is_run:
            raise UserError(
                f"{path} is neither a bundle nor the folder of a trained run: it has no {MANIFEST}, "
                f"and no config.json with checkpoints."
            )
        config = from_json(path / "config.json")
        check(config)
        expected = abstract_weights(config, mesh)
        params = load_ema(checkpoints, expected["autoencoder"])
        prior, statistics = None, None
        if (path / "latents" / STATISTICS).exists():
            statistics = read_statistics(path / "latents", digest(on_host(params)))
            if latest_step(path / "prior" / "checkpoints") is not None:
                prior = load_ema(path / "prior" / "checkpoints", expected["prior"])
        return cls(config, params, statistics=statistics, prior=prior, mesh=mesh)

    @classmethod
    def from_bundle(cls, bundle: Bundle, mesh: Mesh | None = None) -> "DiffAE":
        """Puts what a bundle holds on the devices. Raises UserError where its weights are not those of its config."""
        check(bundle.config)
        mesh = mesh or make_mesh()
        expected = abstract_weights(bundle.config, mesh)
        if not any(name.startswith("prior.") for name in bundle.weights):
            expected.pop("prior", None)
        check_weights(bundle.weights, flatten(expected))
        weights = unflatten(bundle.weights)
        return cls(
            bundle.config,
            weights["autoencoder"],
            statistics=bundle.statistics,
            prior=weights.get("prior"),
            probes=bundle.probes,
            origin=bundle.origin,
            mesh=mesh,
        )

    def save(self, path: str | Path) -> None:
        """Writes the model as a bundle. Raises UserError where the path holds anything but a bundle."""
        weights = flatten(self._weights_on_host())
        if is_main_process():
            write_bundle(Path(path), Bundle(self.config, weights, self.statistics, self.probes, self.origin))

    def digest(self) -> str:
        """Returns a SHA-256 of weights and statistics, which tells this model from another."""
        statistics = {} if self.statistics is None else {"statistics": dataclasses.asdict(self.statistics)}
        return digest(self._weights_on_host() | statistics)

    def encode(self, images: Shaped[Any, "n *shape"]) -> Float[np.ndarray, "n d"]:
        """Returns the semantic code z of each image (Sec. 3.2)."""
        self._check_images(images)
        if self.config.model.z_dim is None:
            raise UserError(f"{self.config.name} is a DDIM baseline: it has no encoder and no z.")
        return self._in_batches(partial(inference.encode, graphdef=self._graphdef), images)

    def invert(
        self, images: Shaped[Any, "n *shape"], z: Float[np.ndarray, "n d"] | None = None, num_steps: int = 100
    ) -> Float[np.ndarray, "n *shape"]:
        """Returns the stochastic code x_T of each image (Eq. 8), given z, by default its own."""
        self._check_images(images)
        z = self._own_z(images) if z is None else z
        self._check_z(z, len(images))
        return self._in_batches(self._sampler(inference.invert, num_steps), images, z)

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
            x_T = self._drawn_noise(len(z), seed)
        self._check_shape(x_T)
        self._check_z(z, len(x_T))
        return self._in_batches(self._sampler(inference.decode, num_steps), x_T, z)

    def reconstruct(
        self, images: Shaped[Any, "n *shape"], num_steps: int = 100, infer_x_T: bool = True, seed: int = 0
    ) -> Float[np.ndarray, "n *shape"]:
        """Encodes and decodes images, with the x_T that is theirs or with random ones (Sec. 5.4)."""
        z = self._own_z(images)
        if infer_x_T:
            return self.decode(z, self.invert(images, z, num_steps), num_steps)
        return self.decode(z, self._drawn_noise(len(images), seed), num_steps)

    def sample(
        self, num_images: int, seed: int = 0, num_steps: int = 100, num_latent_steps: int = 100
    ) -> Float[np.ndarray, "n *shape"]:
        """Draws new images (Sec. 4, 5.7): z from the latent DDIM, x_T from N(0, I). The DDIM baseline needs x_T alone.

        Image i depends on the seed and on i, not on how many there are or on the devices. Raises UserError for a model
        without latent DDIM.
        """
        if num_images < 1:
            raise UserError(f"At least one image has to be sampled, not {num_images}.")
        if self.config.model.z_dim is None:
            return self.decode(None, self._drawn_noise(num_images, seed), num_steps)
        if self.prior is None:
            raise UserError(
                f"{self.config.name} has no latent DDIM, and new images need z drawn from one: train it with "
                f"--stages=latents,prior, or import a checkpoint that has it (NAME_autoenc_latent)."
            )
        for steps in (num_steps, num_latent_steps):
            check_num_steps(steps)
        check_seed(seed)
        draw = partial(
            inference.sample,
            prior=self.prior,
            statistics=(self.statistics.mean, self.statistics.std),
            seed=seed,
            graphdefs=(self._graphdef, self._prior_graphdef),
            shape=self.image_shape,
            schedules=(self.config.train.schedule, self.config.prior.schedule),
            num_steps=(num_steps, num_latent_steps),
        )
        return self._in_batches(draw, np.arange(num_images))

    def _weights_on_host(self):
        """A collective: every process takes part."""
        return on_host({"autoencoder": self.params} | ({} if self.prior is None else {"prior": self.prior}))

    def _placed(self, params):
        """Puts weights on every device; those that a run has laid out over its mesh stay as they are."""
        whole = replicated(self.mesh)
        return jax.tree.map(
            lambda a: a if isinstance(getattr(a, "sharding", None), NamedSharding) else spread(a, whole), params
        )

    def _drawn_noise(self, num_images, seed):
        check_seed(seed)
        return jax.device_get(inference.noise(seed, jnp.arange(num_images), shape=self.image_shape))

    def _own_z(self, images):
        return None if self.config.model.z_dim is None else self.encode(images)

    def _sampler(self, function, num_steps):
        check_num_steps(num_steps)
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
