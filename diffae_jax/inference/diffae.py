"""A trained model as one object."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped
from ml_collections import ConfigDict

from diffae_jax.config import check_num_steps
from diffae_jax.data.detect import transform_of
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.data.transforms import to_float
from diffae_jax.diffusion.process import image_process, latent_process
from diffae_jax.diffusion.samplers import DDIM_INVERSION, Sampler
from diffae_jax.inference import batching, editing, programs
from diffae_jax.inference.bundle import (
    Bundle,
    check_probe_name,
    write_bundle,
)
from diffae_jax.inference.checks import as_sampler, check_count, check_seed_or_traced, numbers_of_images, refuse_tracing
from diffae_jax.inference.editing import Strength
from diffae_jax.inference.inputs import as_codes, as_images
from diffae_jax.inference.loading import from_bundle, read_model
from diffae_jax.inference.weights import placed
from diffae_jax.models import DiffusionAutoencoder, abstract_model
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import Params, digest, flatten
from diffae_jax.probes import ClassProbe, Probe, components, describe, directions, fit
from diffae_jax.runtime.arrays import AnyArray, is_traced, is_tracing, refuse_traced
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.console import note, warn
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.process import forbid_forks
from diffae_jax.runtime.sharding import make_mesh, on_host, split_batch

Seed = int | Int[jax.Array, ""]

MAX_TRIES = 2**30  # z drawn for conditional samples


class Variations(NamedTuple):
    """Images of one z and several x_T, [N, variations, *spatial, C], with mean and standard deviation over these."""

    images: Float[AnyArray, "n variations *shape"]
    mean: Float[AnyArray, "n *shape"]
    std: Float[AnyArray, "n *shape"]


class DiffAE:
    """A diffusion autoencoder with its averaged weights, and what was fitted to its z.

    z is [N, D], x_T is [N, *spatial, C], images come back as float32 [N, *spatial, C] in [-1, 1]. They are taken as
    uint8 or float arrays, PIL images, paths of files or of data sets, and what was converted is said; see
    `inference.inputs.as_images`. Work is split over all devices and done in batches that fit them; each method compiles
    once per batch shape and number of steps.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Params,
        *,
        statistics: LatentStatistics | None = None,  # of z over the training images
        prior: Params | None = None,  # of the latent DDIM
        probes: dict[str, Probe | ClassProbe] | None = None,
        origin: dict[str, Any] | None = None,  # what the model was made from: plain values, for people
        mesh: Mesh | None = None,
    ):
        if is_traced(*jax.tree.leaves((params, prior))):
            raise UserError(
                "DiffAE holds weights that are known, not traced ones: to transform a function of the weights, call "
                "the programs of diffae_jax.inference.programs, which take them as an argument."
            )
        if prior is not None and statistics is None:
            raise UserError("A latent DDIM works on normalized z: it needs the mean and deviation of z beside it.")
        sizes = [("the statistics", len(statistics.mean))] if statistics else []
        sizes += [(f"probe {shown(probe.name)}", probe.z_dim) for probe in (probes or {}).values()]
        if sizes and config.model.z_dim is None:
            raise UserError(
                f"{shown(config.name)} is a DDIM baseline: it has no z, so leave statistics and probes off."
            )
        for name, size in sizes:
            if size != config.model.z_dim:
                raise UserError(f"The z of this model has {config.model.z_dim} dimensions, and {name} {size}.")
        enable_compilation_cache()
        self.config = config
        self.image_shape = tuple(config.image_shape)
        self.transform = transform_of(config)  # of files and PIL images
        self._told: set[str] = set()  # notes on converted images
        self.mesh = mesh or make_mesh()
        self.params = placed(params, self.mesh)
        self.statistics = statistics
        self.prior = None if prior is None else placed(prior, self.mesh)
        self.probes = dict(probes or {})
        self.origin = dict(origin or {})
        self.precision = resolve_precision(config.train.precision)
        self.graphdef, _ = abstract_model(builder(config, self.precision))
        if prior is not None:
            self.prior_graphdef, _ = abstract_model(prior_builder(config, self.precision))

    def __repr__(self) -> str:
        size, z_dim = "x".join(map(str, self.image_shape)), self.config.model.z_dim
        parts = [
            size,
            "no z" if z_dim is None else f"z of {z_dim}",
            *(["latent DDIM"] if self.prior is not None else []),
        ]
        parts += [f"probes {list_some(self.probes)}"] if self.probes else []
        return f"DiffAE({shown(self.config.name)}: {', '.join(parts)}; {self.precision} on {self.mesh.size} devices)"

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the arguments of the constructor, arrays on the host; another process has other devices."""
        weights = self._weights_on_host()
        return dict(
            config=self.config,
            params=weights["autoencoder"],
            statistics=self.statistics,
            prior=weights.get("prior"),
            probes=self.probes,
            origin=self.origin,
        )

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)

    @classmethod
    def load(cls, path: str | Path, mesh: Mesh | None = None, *, encoder: type[nnx.Module] | None = None) -> "DiffAE":
        """Loads a bundle, or the averaged weights of the newest checkpoints of a run folder.

        A model whose encoder is code of somebody's own names its class, and loading never imports a module because a
        file names it: such a file from elsewhere could then run anything that is installed here. So the module must
        have been imported before, or the class is given as `encoder`.

        Raises UserError for a path that is neither, for a bundle that is damaged or of a newer format, for a run whose
        latents are those of another autoencoder, and for an encoder that is not there.
        """
        mesh = mesh or make_mesh()
        return cls(**read_model(Path(path), mesh, encoder), mesh=mesh)

    @classmethod
    def from_bundle(cls, bundle: Bundle, mesh: Mesh | None = None) -> "DiffAE":
        """Puts what a bundle holds on the devices. Raises UserError where its weights are not those of its config."""
        mesh = mesh or make_mesh()
        return cls(**from_bundle(bundle, mesh), mesh=mesh)

    def save(self, path: str | Path) -> None:
        """Writes the model as a bundle. Raises UserError where the path holds anything but a bundle."""
        weights = flatten(self._weights_on_host())
        if is_main_process():
            write_bundle(Path(path), Bundle(self.config, weights, self.statistics, self.probes, self.origin))

    @property
    def network(self) -> DiffusionAutoencoder:
        """Encoder and UNet as one Flax module, for those who build on it."""
        return nnx.merge(self.graphdef, self.params)

    def digest(self) -> str:
        """Returns a SHA-256 of weights and statistics, which tells this model from another."""
        statistics = {} if self.statistics is None else {"statistics": dataclasses.asdict(self.statistics)}
        return digest(self._weights_on_host() | statistics)

    def encode(self, images: Any) -> Float[AnyArray, "n d"]:
        """Returns the semantic code z of each image (Sec. 3.2)."""
        self.check_has_encoder()
        return self._own_z(self._images(images))

    def invert(
        self, images: Any, z: Float[AnyArray, "n d"] | None = None, num_steps: int = 100
    ) -> Float[AnyArray, "n *shape"]:
        """Returns the stochastic code x_T of each image (Eq. 8), given z, by default its own."""
        check_num_steps(num_steps)
        images = self._images(images)
        z = self._own_z(images) if z is None else self._z(z, len(images))
        return self._inverted(images, z, num_steps)

    def decode(
        self,
        z: Float[AnyArray, "n d"] | None,
        x_T: Float[AnyArray, "n *shape"] | None = None,
        num_steps: int = 100,
        seed: Seed = 0,
        *,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Decodes z and x_T to images (Eq. 1); without x_T, image i gets noise that depends on seed and i alone.

        `sampler` is a key of `diffusion.samplers.SAMPLERS`, or a `Sampler` of one's own.

        Within `jax.grad`, `jax.jit` and `jax.vmap` it is a function of z and x_T like any other; the memory of its
        gradient grows with the square root of the steps.
        """
        check_num_steps(num_steps)
        z, x_T = self._codes(z, x_T, seed)
        program = self._walk(programs.decode, num_steps, as_sampler(sampler), remat=is_traced(z, x_T))
        return self._apply(program, x_T, z, what="decoding")

    def progress(
        self,
        z: Float[AnyArray, "n d"] | None,
        x_T: Float[AnyArray, "n *shape"] | None = None,
        num_steps: int = 100,
        seed: Seed = 0,
        *,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n steps *shape"]:
        """Returns, for each image that `decode` makes, the x_0 that each of its steps predicts (Fig. 6)."""
        check_num_steps(num_steps)
        z, x_T = self._codes(z, x_T, seed)
        return self._apply(
            self._walk(programs.progress, num_steps, as_sampler(sampler)), x_T, z, what="decoding", frames=num_steps
        )

    def reconstruct(
        self,
        images: Any,
        num_steps: int = 100,
        infer_x_T: bool = True,
        seed: Seed = 0,
        *,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Encodes and decodes images, with the x_T that is theirs or with random ones (Sec. 5.4)."""
        check_num_steps(num_steps)
        check_seed_or_traced(seed)
        refuse_traced("infer_x_T", infer_x_T)
        sampler = as_sampler(sampler)  # before the work
        images = self._images(images)
        z = self._own_z(images)
        x_T = self._inverted(images, z, num_steps) if infer_x_T else self.noise(np.arange(len(images)), seed)
        return self.decode(z, x_T, num_steps, sampler=sampler)

    def variations(
        self,
        images: Any,
        num_variations: int = 8,
        num_steps: int = 100,
        seed: Seed = 0,
        *,
        first: int = 0,
        sampler: str | Sampler = "ddim",
    ) -> Variations:
        """Decodes the z of each image with several random x_T: what z leaves open (Sec. 5.1, Fig. 3, App. D).

        `first` is the number of the first image: so many images can be done a part at a time, as with `sample`.
        """
        check_count("variation", num_variations)
        check_num_steps(num_steps)
        check_seed_or_traced(seed)
        sampler = as_sampler(sampler)
        z = self.encode(images)
        x_T = self.noise(numbers_of_images(first * num_variations, len(z) * num_variations), seed)
        decoded = self.decode(z[np.arange(len(x_T)) // num_variations], x_T, num_steps, sampler=sampler)
        decoded = decoded.reshape(len(z), num_variations, *self.image_shape)
        return Variations(decoded, decoded.mean(axis=1), editing.deviation(decoded))

    def interpolate(
        self,
        image_a: Any,
        image_b: Any,
        num_frames: int = 8,
        num_steps: int = 100,
        *,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "frames *shape"]:
        """Returns the way from one image to another: z on the line, x_T on the arc between theirs (Sec. 5.2).

        The first and the last frame are the reconstructions of the two images.
        """
        check_count("frame", num_frames)  # before the work
        check_num_steps(num_steps)
        sampler = as_sampler(sampler)
        pair = [self._images(image) for image in (image_a, image_b)]
        if any(len(image) != 1 for image in pair):
            raise UserError(f"interpolate takes one image and one other, not {len(pair[0])} and {len(pair[1])}.")
        both = (jnp if is_traced(*pair) else np).concatenate(list(map(to_float, pair)))
        z = self._own_z(both)
        z, x_T = self.path(z, self._inverted(both, z, num_steps), num_frames)
        return self.decode(z, x_T, num_steps, sampler=sampler)

    @staticmethod
    def path(
        z: Float[AnyArray, "2 d"] | None, x_T: Float[AnyArray, "2 *shape"], num_frames: int
    ) -> tuple[Float[AnyArray, "frames d"] | None, Float[AnyArray, "frames *shape"]]:
        """Returns codes from those of one image to those of another: z on the line, x_T on the arc (Sec. 5.2)."""
        forbid_forks()
        check_count("frame", num_frames)
        return editing.path(z, x_T, num_frames)

    def edit(
        self,
        images: Any,
        probe: str | Probe,
        strength: Strength | None = None,
        num_steps: int = 100,
        *,
        to: float | int | None = None,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Moves the z of images as `move` does, and decodes it with their own x_T (Sec. 5.3).

        Strength 0 gives exactly the reconstruction. Raises UserError as `move` does.
        """
        self.check_edit(probe, strength, to)
        check_num_steps(num_steps)
        sampler = as_sampler(sampler)
        images = self._images(images)
        z = self._own_z(images)
        x_T = self._inverted(images, z, num_steps)
        return self.decode(self.move(z, probe, strength, to=to), x_T, num_steps, sampler=sampler)

    def move(
        self,
        z: Float[AnyArray, "n d"],
        probe: str | Probe,
        strength: Strength | None = None,
        *,
        to: float | int | None = None,
    ) -> Float[AnyArray, "n d"]:
        """Moves z along a probe's direction (Sec. 5.3).

        `strength`, 0.3 unless given, is in units of sqrt(D) standard deviations of z; negative ones move away from
        the attribute. Instead, `to` moves each z until the probe reads that probability, or that value where its
        labels are numbers.

        Raises UserError for a probe that there is not, and for a value that the probe cannot reach.
        """
        probe = self.check_edit(probe, strength, to)
        return editing.moved(self._z(z), self.statistics, probe, strength, to)

    def fit_probe(
        self,
        name: str,
        z: Float[AnyArray, "n d"],
        labels: Any,
        *,
        kind: str | None = None,
        positive_unlabeled: bool = False,
        held_out: tuple[Float[AnyArray, "m d"], Any] | None = None,
    ) -> Probe | ClassProbe:
        """Fits a probe of labels [N] to z, as `probes.fit` does to normalized z, and keeps it (Appendix A.2).

        Raises UserError as that does, for a model without statistics of z, and within transformations of JAX.
        """
        refuse_tracing("fit_probe", z, labels, held_out, instead="and use the probe that it returns within them")
        self._check_new_name(name)
        z = self._normalized(z)
        held_out = held_out and (self._normalized(held_out[0]), held_out[1])
        probe = fit(name, z, labels, kind=kind, positive_unlabeled=positive_unlabeled, held_out=held_out)
        self.probes[name] = probe
        note(describe(probe))
        return probe

    def predict(self, z: Float[AnyArray, "n d"], probe: str | Probe | ClassProbe) -> Shaped[AnyArray, "n"]:
        """Returns what a probe, or that of a name, reads off each z: a probability, a value or the name of a class.

        Raises UserError for a probe that there is not, and for a model without statistics of z.
        """
        return self._probe(probe).predict(self._normalized(z))

    def principal_components(self, z: Float[AnyArray, "n d"], count: int) -> list[Probe]:
        """Returns the principal directions of normalized z, as `probes.components` does; they need no labels.

        Raises UserError as that does, and within transformations of JAX.
        """
        refuse_tracing("principal_components", z, instead="and use the probes that it returns within them")
        return components(self._normalized(z), count)

    def noise(self, numbers: Int[AnyArray, "n"], seed: Seed = 0) -> Float[AnyArray, "n *shape"]:
        """Draws the x_T that images of these numbers get, where `decode`, `reconstruct` and `sample` draw them."""
        check_seed_or_traced(seed)
        if np.ndim(numbers) != 1:
            raise UserError(f"The numbers of images must be one row, not an array of shape {np.shape(numbers)}.")
        draw, traced = partial(programs.noise, seed=seed, shape=self.image_shape), is_traced(seed)
        return self._apply(lambda _, numbers: draw(indices=numbers), numbers, what="drawing noise", traced=traced)

    def sample(
        self,
        num_images: int,
        seed: Seed = 0,
        num_steps: int = 100,
        num_latent_steps: int = 100,
        *,
        first: int = 0,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Draws new images (Sec. 4, 5.7): z from the latent DDIM, x_T from N(0, I). The DDIM baseline needs x_T alone.

        Image i depends on the seed and on i, not on how many there are or on the devices, and `first` is the i that is
        drawn first: so a great many can be drawn a part at a time. Raises UserError for a model without latent DDIM.
        """
        self._check_sampling(num_images, seed, num_steps, num_latent_steps)
        numbers = numbers_of_images(first, num_images)
        if self.config.model.z_dim is None:
            return self.decode(None, self.noise(numbers, seed), num_steps, sampler=sampler)
        draw = partial(
            programs.sample,
            prior=self.prior,
            statistics=(self.statistics.mean, self.statistics.std),
            seed=seed,
            graphdefs=(self.graphdef, self.prior_graphdef),
            shape=self.image_shape,
            processes=(image_process(self.config), latent_process(self.config)),
            sampler=as_sampler(sampler),
            num_steps=(num_steps, num_latent_steps),
        )
        return self._apply(draw, numbers, what="sampling", traced=is_traced(seed))

    def sample_class(
        self,
        num_images: int,
        probe: str | Probe,
        positive: bool = True,
        seed: Seed = 0,
        num_steps: int = 100,
        num_latent_steps: int = 100,
        max_tries: int = 1000,
        *,
        sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Draws new images of a probe's attribute, or, unless `positive`, of those without it (Sec. 5.6).

        z comes from the latent DDIM and is accepted where the probe gives it a probability of more than 0.5, with that
        probability. What is accepted are images of `sample` with the same seed, in their order. `max_tries` bounds how
        many z are drawn for each image wanted. Says the share that was accepted.

        Raises UserError for a model without latent DDIM, for a probe that is none of a class, where z run out, and
        within transformations of JAX.
        """
        refuse_tracing("sample_class", num_images, positive, seed, max_tries, instead="or use sample")
        check_num_steps(num_steps)
        sampler = as_sampler(sampler)
        z, numbers = self.sample_latents(num_images, probe, positive, seed, num_latent_steps, max_tries)
        return self.decode(z, self.noise(numbers, seed), num_steps, sampler=sampler)

    def sample_latents(
        self,
        num_latents: int,
        probe: str | Probe,
        positive: bool = True,
        seed: Seed = 0,
        num_latent_steps: int = 100,
        max_tries: int = 1000,
    ) -> tuple[Float[AnyArray, "n d"], Int[AnyArray, "n"]]:
        """Draws the z of `sample_class` alone, and returns with them the numbers that they have as images of `sample`.

        Raises UserError as that does.
        """
        forbid_forks()
        refuse_tracing(
            "sample_latents",
            num_latents,
            positive,
            seed,
            max_tries,
            instead="or use sample",
        )
        self._check_sampling(num_latents, seed, num_latent_steps)
        probe = self._direction(probe)
        if probe.kind != "binary":
            raise UserError(f"{shown(probe.name)} reads numbers; conditional samples need a probe of a class.")
        check_count("try", max_tries)
        if max_tries * num_latents >= MAX_TRIES:
            raise UserError(f"max_tries x images must be less than {MAX_TRIES:,}, not {max_tries * num_latents:,}.")
        sign = 1 if positive else -1
        z, numbers, accepted = on_host(
            programs.latents_of_class(
                self.prior,
                sign * probe.weights,
                np.float32(sign * probe.bias),
                seed,
                num_latents,
                max_tries * num_latents,
                graphdef=self.prior_graphdef,
                process=latent_process(self.config),
                num_steps=num_latent_steps,
                num_places=batching.padded(num_latents),
                split=split_batch(self.mesh),
            )
        )
        what = f"{'' if positive else 'not '}{shown(probe.name)}"
        if accepted < num_latents:
            raise UserError(
                f"{accepted:,} of {max_tries * num_latents:,} z drawn are {what}, and {num_latents:,} were wanted: ask "
                f"for fewer images or set a higher max_tries."
            )
        z, numbers = z[:num_latents], numbers[:num_latents]
        drawn = numbers[-1] + 1  # until there were enough; what the last batch held beyond depends on the devices
        note(f"{num_latents:,} of {drawn:,} z drawn are {what} ({num_latents / drawn:.1%}).")
        return self.statistics.denormalize(z), numbers

    def _check_new_name(self, name):
        check_probe_name(name)
        of_class = directions(self.probes).get(name)
        if of_class is not None and name not in self.probes:
            raise UserError(f"{shown(name)} is a class of a probe that is there already: give another name.")

    def _weights_on_host(self):
        """A collective: every process takes part."""
        return on_host({"autoencoder": self.params} | ({} if self.prior is None else {"prior": self.prior}))

    def _images(self, images):
        """Takes whatever people call images; says once what was converted. Traced arrays stay traced."""
        images, notes = as_images(images, self.transform)
        for told in notes:
            if told not in self._told:
                warn(f"Note: {told}")
                self._told.add(told)
        return images

    def _own_z(self, images):
        """Encodes what `_images` returned; a DDIM baseline has no z."""
        if self.config.model.z_dim is None:
            return None
        return self._apply(partial(programs.encode, graphdef=self.graphdef), images, what="encoding")

    def _inverted(self, images, z, num_steps):
        """Inverts what `_images` returned."""
        return self._apply(self._walk(programs.invert, num_steps, DDIM_INVERSION), images, z, what="inverting")

    def _z(self, z, count=None):
        """Checks z, of `count` images where that is known. Traced arrays stay traced."""
        name, z_dim = shown(self.config.name), self.config.model.z_dim
        if z is None and z_dim is not None:
            raise UserError(f"{name} needs z of {z_dim} numbers for each image.")
        if z is not None and z_dim is None:
            raise UserError(f"{name} is a DDIM baseline: it has no z, so give None.")
        if z is None:
            return None
        z = as_codes("z", z, (z_dim,))
        if count not in (None, len(z)):
            raise UserError(f"{count} images need as many z, not {len(z)}.")
        return z

    def _codes(self, z, x_T, seed):
        if x_T is None:
            if z is None:
                raise UserError("decode needs z, x_T or both: they say how many images there are.")
            z = self._z(z)
            x_T = self.noise(np.arange(len(z)), seed)
        else:
            x_T = as_codes("x_T", x_T, self.image_shape)
        return self._z(z, len(x_T)), x_T

    def _check_sampling(self, num_images, seed, *num_steps):
        check_count("image", num_images)
        check_seed_or_traced(seed)
        for steps in num_steps:
            check_num_steps(steps)
        if self.prior is None and self.config.model.z_dim is not None:
            raise UserError(
                f"{self.config.name} has no latent DDIM, and new images need z drawn from one: train it with "
                f"--stages=latents,prior, or import a checkpoint that has it (NAME_autoenc_latent)."
            )

    def check_has_encoder(self) -> None:
        """Raises UserError for a DDIM baseline."""
        if self.config.model.z_dim is None:
            raise UserError(f"{self.config.name} is a DDIM baseline: it has no encoder and no z.")

    def check_normalized(self) -> None:
        """Raises UserError for a model whose z cannot be normalized, as probes need it."""
        if self.config.model.z_dim is None:
            raise UserError(f"{shown(self.config.name)} is a DDIM baseline: it has no z that probes could read.")
        if self.statistics is None:
            raise UserError(
                f"{shown(self.config.name)} has no mean and deviation of z, and probes read normalized z: make them "
                f"with --stages=latents, or import a checkpoint with its latent.pkl."
            )

    def _normalized(self, z):
        self.check_normalized()
        return self.statistics.normalize(self._z(z))

    def check_edit(self, probe: str | Probe, strength: Strength | None, to: float | int | None) -> Probe:
        """Returns the direction of an edit. Raises UserError where it is not possible."""
        probe = self._direction(probe)
        editing.check_edit(probe, strength, to)
        return probe

    def _direction(self, probe):
        """Returns the one direction that a probe or its name stands for."""
        return editing.as_direction(self._probe(probe))

    def _probe(self, probe):
        self.check_normalized()
        return editing.as_probe(probe, self.probes, self.config.model.z_dim)

    def _walk(self, function, num_steps, sampler, **settings):
        """Returns a program that takes x along a sampler's steps."""
        process = image_process(self.config)
        settings |= dict(graphdef=self.graphdef, process=process, sampler=sampler, num_steps=num_steps)
        return partial(function, **settings)

    def _apply(self, function, *arrays, what, frames=1, traced=False):
        """Applies a program to arrays in batches over all devices or, where JAX is tracing, at once.

        `frames` is how many images it makes of each; `traced` says that JAX traces something else that it takes.
        """
        if traced or is_traced(*arrays) or is_tracing():
            return function(self.params, *arrays)
        image_size = frames * math.prod(self.image_shape)
        return batching.in_batches(function, self.params, self.mesh, image_size, *arrays, what=what)
