"""A trained model as one object, `DiffAE`."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
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

from diffae_jax.config import check, check_num_steps
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.data.transforms import to_float, transform_of
from diffae_jax.diffusion.inversion import Inversion, Method
from diffae_jax.diffusion.loop import Sampler
from diffae_jax.diffusion.process import image_process, latent_process
from diffae_jax.inference import batching, checks, counterfactual, editing, programs
from diffae_jax.inference.bundle import Bundle, check_probe_name, write_bundle
from diffae_jax.inference.card import Card, render
from diffae_jax.inference.checks import check_count, check_seed_or_traced, indices_of_images, refuse_tracing
from diffae_jax.inference.counterfactual import Counterfactual
from diffae_jax.inference.editing import Strength
from diffae_jax.inference.inputs import as_codes, as_images
from diffae_jax.inference.loading import from_bundle, read_model
from diffae_jax.inference.methods import as_inversion, as_round_trip, as_sampler, cost
from diffae_jax.inference.recommended import Recommended, with_defaults
from diffae_jax.inference.sharing import parse_name, push
from diffae_jax.inference.weights import count_parameters, placed
from diffae_jax.models import DiffusionAutoencoder, abstract_model
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import Params, digest, flatten
from diffae_jax.probes import ClassProbe, Probe, components, describe, directions, fit
from diffae_jax.runtime.arrays import AnyArray, is_traced, is_tracing, refuse_traced
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.console import note, warn
from diffae_jax.runtime.errors import UserError, counted, list_some, shown
from diffae_jax.runtime.files import AnyPath, expand_home
from diffae_jax.runtime.hub import check_installed, is_hub_address
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.process import forbid_forks
from diffae_jax.runtime.sharding import make_mesh, on_host, split_batch

Seed = int | Int[jax.Array, ""]

MAX_TRIES = 2**30  # z that one call of sample_latents may draw


class Variations(NamedTuple):
    """Several decodings of each image: one z, several x_T.

    Attributes:
        images: the decoded images, [N, num_variations, *spatial, C].
        mean: their mean over the variations, [N, *spatial, C].
        std: their standard deviation over the variations, [N, *spatial, C].
    """

    images: Float[AnyArray, "n variations *shape"]
    mean: Float[AnyArray, "n *shape"]
    std: Float[AnyArray, "n *shape"]


class DiffAE:
    """A trained diffusion autoencoder: encodes, reconstructs, edits and samples images.

    Examples:
        >>> model = DiffAE.load("runs/digits/bundle")
        >>> z = model.encode(images)
        >>> x_T = model.invert(images, z)
        >>> same = model.decode(z, x_T)

    **Methods, by task**

        load and save       load, from_bundle, save, push_to_hub, digest
        codes of an image   encode (image to z), invert (image and z to x_T), invert_with_report
        images from codes   decode, progress, noise (random x_T)
        both                reconstruct, variations, interpolate, path
        probes and edits    fit_probe, predict, edit, sweep, move, principal_components
        by gradients        counterfactual
        new images          sample, sample_class, sample_latents
        checks              check_has_encoder, check_normalized, check_edit

    **Shapes**

        images   [N, *spatial, C], with 1, 2 or 3 spatial axes
        z        [N, D], the latent code, which holds the content of an image
        x_T      [N, *spatial, C], the stochastic code, which holds the details that z leaves out

    **Images** as arguments may be a uint8 array, a float array in [-1, 1], a PIL image, a file
    path or an open file. A list, a column or an iterator of these works as well. So does the path
    of a data set, or a data set of PyTorch or Hugging Face: its labels are ignored. A single image
    may come without its first axis. Each kind of conversion is logged once as a warning. Methods
    return images as float32 in [-1, 1].

    **Batches.** A call may have any number of images. They are split into batches that fit the
    devices. JAX compiles a method once for each batch shape and number of steps.

    **JAX transformations.** Most methods also work on traced arrays, inside `jax.jit`, `jax.grad`
    and `jax.vmap`. There, the whole input is one batch. Methods that do not work there say so.

    **Recommended settings.** A bundle may hold the number of steps, inversion, sampler and grid
    that `diffae budget` chose. Calls that invert an image, or decode an x_T, use them if they name
    none of the four. This is logged once as a warning. In the arguments: "as recommended".

    **Errors.** All methods raise `UserError`, a `ValueError`, if an argument has a wrong shape,
    type or range.

    Attributes:
        config: the config that the model was trained with.
        image_shape: (*spatial, C).
        params: the EMA weights of the autoencoder.
        graphdef: the structure of the autoencoder, for `inference.programs`.
        statistics: mean and standard deviation of z over the training images, or None.
        prior: the EMA weights of the prior (latent DDIM), or None.
        probes: the fitted probes by name.
        origin: where the model comes from, such as its run and the number of images seen.
        card: what the model card says in addition, such as training data and results.
        recommended: the settings to invert and decode with, from `diffae budget`, or None.
        precision: the type that the networks compute in, such as "float32".
        mesh: the devices.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Params,
        *,
        statistics: LatentStatistics | None = None,
        prior: Params | None = None,
        probes: dict[str, Probe | ClassProbe] | None = None,
        origin: dict[str, Any] | None = None,
        card: Card | None = None,
        recommended: Recommended | None = None,
        mesh: Mesh | None = None,
    ):
        """Makes a model from weights in memory. To read a model from disk, use `DiffAE.load`.

        Args:
            config: the config that describes the networks.
            params: the weights of the autoencoder, as host arrays or on the devices.
            statistics: mean and standard deviation of z; needed for probes and for a prior.
            prior: the weights of the prior.
            probes: probes by name.
            origin: plain values that describe where the model comes from.
            card: what the model card says in addition.
            recommended: the settings to invert and decode with if a call names none.
            mesh: the devices; by default all.

        Raises:
            UserError: if the weights are traced, if a prior has no statistics, or if statistics or
                probes have a different number of dimensions than z.
        """
        checks.check_parts(config, params, prior, statistics, probes or {})
        enable_compilation_cache()
        self.config = config
        self.image_shape = tuple(config.image_shape)
        self.transform = transform_of(config)  # of files and PIL images
        self._logged_notes: set[str] = set()  # on converted images, and of costs
        self.mesh = mesh or make_mesh()
        self.params = placed(params, self.mesh)
        self.statistics = statistics
        self.prior = None if prior is None else placed(prior, self.mesh)
        self.probes = dict(probes or {})
        self.origin = dict(origin or {})
        self.card = card or Card()
        self.recommended = recommended
        self.precision = resolve_precision(config.train.precision)
        self.graphdef, _ = abstract_model(builder(config, self.precision))
        if prior is not None:
            self.prior_graphdef, _ = abstract_model(prior_builder(config, self.precision))

    def __repr__(self) -> str:
        """Describes the model in one line."""
        z_dim, seen = self.config.model.z_dim, self._images_seen()
        parts = ["x".join(map(str, self.image_shape)), "no z" if z_dim is None else f"z of {z_dim}"]
        parts += [] if seen is None else [f"trained on {counted(seen, 'image')}"]
        parts += [] if self.prior is None else ["prior"]
        parts += [f"probes {list_some(self.probes)}"] if self.probes else []
        count, platform = self.mesh.size, self.mesh.devices.flat[0].platform
        devices = counted(count, f"{platform} device")
        return f"DiffAE({shown(self.config.name)}: {', '.join(parts)}; {self.precision} on {devices})"

    def _images_seen(self) -> int | None:
        """Returns how many images the autoencoder was trained on, or None if that is unknown."""
        seen = self.origin.get("images_seen")
        # the count is that of the prior, which is trained last
        counts_latents = "imported_from" in self.origin and self.prior is not None
        return seen if type(seen) is int and 0 <= seen < 2**63 and not counts_latents else None

    def __getstate__(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as host arrays for a process with other devices."""
        weights = self._weights_on_host()
        return dict(
            config=self.config,
            params=weights["autoencoder"],
            statistics=self.statistics,
            prior=weights.get("prior"),
            probes=self.probes,
            origin=self.origin,
            card=self.card,
            recommended=self.recommended,
        )

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)

    # --- load and save ---------------------------------------------------------------------------

    @classmethod
    def load(
        cls, path: str | AnyPath, mesh: Mesh | None = None, *, encoder: type[nnx.Module] | None = None
    ) -> "DiffAE":
        """Loads a bundle, or the EMA weights of the newest checkpoints of a run folder.

        A model with a custom encoder stores the name of its class. Loading never imports a module
        that a file names, because that could run any installed code. Import the module first, or
        give the class as `encoder`.

        Args:
            path: a bundle or a run folder, on a disk or in a bucket, such as gs://BUCKET/NAME. Or
                the name of a model that ships with the package, such as digits: see
                `diffae_jax.pretrained`. Or a bundle on the Hugging Face Hub: hf://USER/NAME or
                hf://USER/NAME@REVISION. An existing path takes precedence over a name.
            mesh: the devices; by default all.
            encoder: the class of the model's custom encoder.

        Returns:
            The model, on the devices.

        Raises:
            UserError: if the path is none of these, if the bundle is damaged or has a newer
                format, if the run's latent codes belong to another autoencoder, if the encoder is
                not imported, or if the Hub cannot be reached.
        """
        mesh = mesh or make_mesh()
        return cls(**read_model(path, mesh, encoder), mesh=mesh)

    @classmethod
    def from_bundle(cls, bundle: Bundle, mesh: Mesh | None = None) -> "DiffAE":
        """Makes a model from a bundle in memory.

        Args:
            bundle: what `inference.bundle.read_bundle` returns.
            mesh: the devices; by default all.

        Returns:
            The model, on the devices.

        Raises:
            UserError: if the weights do not fit the config.
        """
        mesh = mesh or make_mesh()
        return cls(**from_bundle(bundle, mesh), mesh=mesh)

    def save(self, path: str | AnyPath) -> None:
        """Writes the model as a bundle: config, weights, statistics of z, probes and model card.

        Args:
            path: the folder to write. On a disk, an existing bundle is replaced atomically. In a
                bucket, there is no bundle while it is replaced.

        Raises:
            UserError: if the path holds anything but a bundle, or cannot be written.
        """
        if is_hub_address(path):
            raise UserError(f"{path} is on the Hub: use push_to_hub or diffae push instead.")
        bundle = self._as_bundle()
        if is_main_process():
            write_bundle(expand_home(path), bundle)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        branch: str | None = None,
        message: str = "",
    ) -> str | None:
        """Writes the model as a bundle to the Hugging Face Hub, in one commit.

        Needs the extra `hub` and a login with `hf auth login`. A missing repository is created. A
        card that was edited on the Hub is kept. The card states the license in
        `config.export.license`.

        Args:
            name: USER/NAME of the repository.
            private: whether a new repository is private; by default, the Hub decides. An existing
                one that differs is refused.
            branch: the branch to write to, which is created if it is missing; by default main.
            message: the commit message.

        Returns:
            The address of the commit; None in a process of a cluster that is not the main one.

        Raises:
            UserError: if the name is malformed, the repository holds anything but a bundle, the
                login is missing, or the Hub cannot be reached.
        """
        check_installed()
        address = parse_name(name, branch)
        check(self.config)
        bundle = self._as_bundle()
        if not is_main_process():
            return None
        with tempfile.TemporaryDirectory(prefix="diffae.") as scratch:
            folder = Path(scratch) / "bundle"
            write_bundle(folder, bundle, location=str(address))
            return push(folder, address, private=private, message=message)

    def _as_bundle(self) -> Bundle:
        weights = flatten(self._weights_on_host())
        return Bundle(self.config, weights, self.statistics, self.probes, self.origin, self.card, self.recommended)

    def digest(self) -> str:
        """Returns a hash of the weights and the statistics of z, which identifies the model.

        Returns:
            The SHA-256 hash as 64 hexadecimal digits.
        """
        statistics = {} if self.statistics is None else {"statistics": dataclasses.asdict(self.statistics)}
        return digest(self._weights_on_host() | statistics)

    def num_parameters(self) -> dict[str, int]:
        """Returns the number of parameters of each network.

        Returns:
            The numbers by name: "encoder", "UNet" and, if there is one, "prior".
        """
        return count_parameters(flatten({"autoencoder": self.params, "prior": self.prior or {}}))

    def card_text(self, location: str) -> str:
        """Returns the model card as Markdown.

        Args:
            location: the path or address of the model, for the examples in the card.

        Returns:
            The text of `README.md`. If someone has edited that file, this is the edited text.
        """
        if self.card.text is not None:
            return self.card.text
        return render(self.card, location, self.config, self.probes, self.origin, self.num_parameters())

    @property
    def network(self) -> DiffusionAutoencoder:
        """The autoencoder as a Flax NNX module."""
        return nnx.merge(self.graphdef, self.params)

    # --- codes and images ------------------------------------------------------------------------

    def encode(self, images: Any) -> Float[AnyArray, "n d"]:
        """Encodes images: image to z.

        Args:
            images: images in any form that `DiffAE` lists.

        Returns:
            The latent codes z, [N, D]. They are not normalized; see `statistics.normalize`.

        Raises:
            UserError: if the model is a DDIM baseline, which has no encoder.

        Source: Sec. 3.2.
        """
        self.check_has_encoder()
        return self._encode_arrays(self._images(images))

    def invert(
        self,
        images: Any,
        z: Float[AnyArray, "n d"] | None = None,
        num_steps: int | None = None,
        *,
        method: str | Method | None = None,
        grid: str | None = None,
        seed: Seed = 0,
        first: int = 0,
    ) -> Float[AnyArray, "n *shape"]:
        """Inverts images: image and z to x_T.

        Args:
            images: images in any form that `DiffAE` lists.
            z: their latent codes, [N, D]; by default `encode(images)`.
            num_steps: steps, 1 to 1,000; by default as recommended, or 100. Decode with as many.
            method: a name in `diffusion.inversion.INVERSIONS`, by default as recommended, or
                "ddim", which is the paper's: DDIM backwards. "exact" solves each step of DDIM, so
                that `decode` gives the image again almost exactly; a step takes several network
                calls. "gaussian" gives the x_T that is closest to N(0, I), for `decode` with
                sampler "heun".
            grid: a name in `diffusion.grids.GRIDS`: which time steps. By default "even", or
                "quadratic" for "gaussian". Decode with the same.
            seed: 0 to 2**31 - 1; by default 0. Only "gaussian" draws noise.
            first: the index of the first image, which its noise depends on; by default 0.

        Returns:
            The stochastic codes x_T, [N, *spatial, C].

        Source: Eq. 8.
        """
        return self.invert_with_report(images, z, num_steps, method=method, grid=grid, seed=seed, first=first).x_T

    def invert_with_report(
        self,
        images: Any,
        z: Float[AnyArray, "n d"] | None = None,
        num_steps: int | None = None,
        *,
        method: str | Method | None = None,
        grid: str | None = None,
        seed: Seed = 0,
        first: int = 0,
    ) -> Inversion:
        """Inverts images as `invert` does and returns the cost and the error of each.

        Args:
            images: images in any form that `DiffAE` lists.
            z: their latent codes, [N, D]; by default `encode(images)`.
            num_steps: as in `invert`.
            method: as in `invert`.
            grid: as in `invert`.
            seed: as in `invert`.
            first: as in `invert`.

        Returns:
            `Inversion(x_T, num_calls, residual)`: x_T [N, *spatial, C], the network calls of each
            image [N], and its largest error of a step [N], which only "exact" computes.

        Source: Eq. 8.
        """
        num_steps, method, _, grid = self._with_defaults(num_steps, inversion=method, grid=grid)
        check_seed_or_traced(seed)
        sampler = as_inversion(method, grid)
        images = self._images(images)
        z = self._encode_arrays(images) if z is None else self._z(z, len(images))
        return self._invert_arrays(images, z, num_steps, sampler, seed, first)

    def decode(
        self,
        z: Float[AnyArray, "n d"] | None,
        x_T: Float[AnyArray, "n *shape"] | None = None,
        num_steps: int | None = None,
        seed: Seed = 0,
        *,
        first: int = 0,
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Float[AnyArray, "n *shape"]:
        """Decodes codes to images: z and x_T to image.

        The function is differentiable in z and x_T. The memory that its gradient needs grows
        with the square root of the number of steps.

        Args:
            z: latent codes, [N, D]; None for a DDIM baseline.
            x_T: stochastic codes, [N, *spatial, C]; by default random. The random x_T of image i
                depends only on the seed and on i.
            num_steps: steps, 1 to 1,000; by default as recommended if x_T is given, or 100.
            seed: 0 to 2**31 - 1; by default 0. Of a random x_T and of a stochastic sampler.
            first: the index of the first image; by default 0. Calls with consecutive indices give
                the same images as one call.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`; by default as
                recommended if x_T is given, or "ddim".
            grid: a name in `diffusion.grids.GRIDS`; by default that of the sampler.

        Returns:
            The images, [N, *spatial, C], float32 in [-1, 1].

        Source: Eq. 1.
        """
        num_steps, _, sampler, grid = self._with_defaults(
            num_steps, sampler=sampler, grid=grid, is_inferred=x_T is not None
        )
        sampler = as_sampler(sampler or "ddim", grid)
        z, x_T, indices = self._codes(z, x_T, seed, first)
        return self._decode_arrays(z, x_T, num_steps, sampler, indices, seed)

    def progress(
        self,
        z: Float[AnyArray, "n d"] | None,
        x_T: Float[AnyArray, "n *shape"] | None = None,
        num_steps: int | None = None,
        seed: Seed = 0,
        *,
        first: int = 0,
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Float[AnyArray, "n steps *shape"]:
        """Decodes as `decode` does and returns the predicted image at every step.

        Args:
            z: latent codes, [N, D]; None for a DDIM baseline.
            x_T: stochastic codes, [N, *spatial, C]; by default random, as in `decode`.
            num_steps: steps, 1 to 1,000; by default as recommended if x_T is given, or 100.
            seed: 0 to 2**31 - 1; by default 0. Of a random x_T and of a stochastic sampler.
            first: the index of the first image, as in `decode`.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`; by default as
                recommended if x_T is given, or "ddim".
            grid: a name in `diffusion.grids.GRIDS`; by default that of the sampler.

        Returns:
            The predicted images x_0, [N, num_steps, *spatial, C]. The last step is the result of
            `decode`.

        Source: Fig. 6.
        """
        num_steps, _, sampler, grid = self._with_defaults(
            num_steps, sampler=sampler, grid=grid, is_inferred=x_T is not None
        )
        sampler = as_sampler(sampler or "ddim", grid)
        z, x_T, indices = self._codes(z, x_T, seed, first)
        program = self._program(programs.progress, num_steps, sampler)
        return self._walk(program, x_T, z, sampler, indices, seed, "decoding", frames=num_steps)

    def noise(self, numbers: Int[AnyArray, "n"], seed: Seed = 0) -> Float[AnyArray, "n *shape"]:
        """Draws random x_T from N(0, I), as `decode`, `reconstruct` and `sample` draw them.

        Args:
            numbers: an index for each image, [N]. Each x_T depends only on its index and the
                seed.
            seed: 0 to 2**31 - 1; by default 0.

        Returns:
            x_T, [N, *spatial, C].
        """
        check_seed_or_traced(seed)
        if np.ndim(numbers) != 1:
            raise UserError(f"`numbers` must hold image indices in the shape (N,), not {np.shape(numbers)}.")
        draw, traced = partial(programs.noise, seed=seed, shape=self.image_shape), is_traced(seed)
        return self._apply(
            lambda _, numbers: draw(indices=numbers), numbers, description="drawing noise", traced=traced
        )

    def reconstruct(
        self,
        images: Any,
        num_steps: int | None = None,
        infer_x_T: bool = True,
        seed: Seed = 0,
        *,
        inversion: str | Method | None = None,
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Float[AnyArray, "n *shape"]:
        """Reconstructs images: encodes, inverts and decodes them.

        Args:
            images: images in any form that `DiffAE` lists.
            num_steps: steps in each direction, 1 to 1,000; by default as recommended, or 100.
            infer_x_T: if True, decode each image's own x_T, for a near-exact reconstruction. If
                False, decode a random x_T, which shows what z holds.
            seed: 0 to 2**31 - 1; by default 0. Of a random x_T and of the inversion "gaussian".
            inversion: the method of inversion, "ddim", "exact" or "gaussian": see `invert`.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`. By default
                the one that suits the inversion: "ddim", or "heun" for "gaussian".
            grid: a name in `diffusion.grids.GRIDS`, for both directions; by default that of the
                sampler.

        Returns:
            The reconstructions, [N, *spatial, C], float32 in [-1, 1].

        Source: Sec. 5.4.
        """
        check_seed_or_traced(seed)
        refuse_traced("infer_x_T", infer_x_T)
        num_steps, inversion, sampler, grid = self._with_defaults(
            num_steps, inversion, sampler, grid, is_inferred=infer_x_T
        )
        if infer_x_T:
            inverter, sampler = as_round_trip(inversion, sampler, grid)  # before the work
        else:
            sampler = as_sampler(sampler or "ddim", grid)
        images = self._images(images)
        z = self._encode_arrays(images)
        if infer_x_T:
            x_T = self._invert_arrays(images, z, num_steps, inverter, seed).x_T
            return self.decode(z, x_T, num_steps, sampler=sampler)
        return self.decode(z, self.noise(np.arange(len(images)), seed), num_steps, seed, sampler=sampler)

    def variations(
        self,
        images: Any,
        num_variations: int = 8,
        num_steps: int = 100,
        seed: Seed = 0,
        *,
        first: int = 0,
        sampler: str | Sampler = "ddim",
        grid: str | None = None,
    ) -> Variations:
        """Decodes the z of each image with several random x_T, which shows what z leaves open.

        Args:
            images: images in any form that `DiffAE` lists.
            num_variations: variations of each image, at least 1; by default 8.
            num_steps: steps, 1 to 1,000; by default 100.
            seed: 0 to 2**31 - 1; by default 0.
            first: the index of the first image; by default 0. Calls with consecutive indices give
                the same images as one call.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`.
            grid: a name in `diffusion.grids.GRIDS`; by default that of the sampler.

        Returns:
            `Variations(images, mean, std)`: images [N, num_variations, *spatial, C], and their
            mean and standard deviation, [N, *spatial, C] each.

        Raises:
            UserError: if the model is a DDIM baseline, which has no encoder.

        Source: Sec. 5.1, Fig. 3, Appendix D.
        """
        check_count("variation", num_variations)
        check_num_steps(num_steps)
        check_seed_or_traced(seed)
        sampler = as_sampler(sampler, grid)
        z = self.encode(images)
        indices = indices_of_images(first * num_variations, len(z) * num_variations)
        z_of_each = z[np.arange(len(indices)) // num_variations]
        decoded = self._decode_arrays(z_of_each, self.noise(indices, seed), num_steps, sampler, indices, seed)
        decoded = decoded.reshape(len(z), num_variations, *self.image_shape)
        return Variations(decoded, decoded.mean(axis=1), editing.deviation(decoded))

    def interpolate(
        self,
        image_a: Any,
        image_b: Any,
        num_frames: int = 8,
        num_steps: int | None = None,
        *,
        inversion: str | Method | None = None,
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Float[AnyArray, "frames *shape"]:
        """Interpolates between two images: z on a straight line, x_T on an arc.

        Args:
            image_a: one image in any form that `DiffAE` lists.
            image_b: another image.
            num_frames: frames, at least 1; by default 8. The first and the last are the
                reconstructions of the two images.
            num_steps: steps in each direction, 1 to 1,000; by default as recommended, or 100.
            inversion: the method of inversion, "ddim", "exact" or "gaussian": see `invert`.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`. By default
                the one that suits the inversion: "ddim", or "heun" for "gaussian".
            grid: a name in `diffusion.grids.GRIDS`, for both directions; by default that of the
                sampler.

        Returns:
            The frames, [num_frames, *spatial, C], float32 in [-1, 1].

        Source: Sec. 5.2.
        """
        check_count("frame", num_frames)  # before the work
        num_steps, inversion, sampler, grid = self._with_defaults(num_steps, inversion, sampler, grid)
        inverter, sampler = as_round_trip(inversion, sampler, grid)
        pair = [self._images(image_a, one="image_a"), self._images(image_b, one="image_b")]
        both = (jnp if is_traced(*pair) else np).concatenate(list(map(to_float, pair)))
        z = self._encode_arrays(both)
        z, x_T = self.path(z, self._invert_arrays(both, z, num_steps, inverter).x_T, num_frames)
        return self.decode(z, x_T, num_steps, sampler=sampler)

    @staticmethod
    def path(
        z: Float[AnyArray, "2 d"] | None, x_T: Float[AnyArray, "2 *shape"], num_frames: int
    ) -> tuple[Float[AnyArray, "frames d"] | None, Float[AnyArray, "frames *shape"]]:
        """Returns the codes of `interpolate`: z on a straight line, x_T on an arc.

        Args:
            z: the latent codes of two images, [2, D]; None for a DDIM baseline.
            x_T: the stochastic codes of two images, [2, *spatial, C].
            num_frames: frames, at least 1.

        Returns:
            z, [num_frames, D], and x_T, [num_frames, *spatial, C].

        Source: Sec. 5.2.
        """
        forbid_forks()
        check_count("frame", num_frames)
        return editing.path(z, x_T, num_frames)

    # --- probes and edits ------------------------------------------------------------------------

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
        """Fits a probe of one label, keeps it in `probes`, and logs its score.

        Works only outside JAX transformations.

        Args:
            name: the name of the probe. A probe with the same name is replaced.
            z: latent codes, [N, D], as `encode` returns them.
            labels: a label for each z, [N] or [N, 1]: text, numbers or booleans. None, NaN, NA
                and empty text are left out.
            kind: "binary", "classes" or "continuous"; by default inferred from the labels. Two
                different values are binary; text and up to 50 whole numbers are classes.
            positive_unlabeled: if True, labels of 1 or True are positive and all other images
                count as negative.
            held_out: z [M, D] and labels [M] that the score is measured on; by default the score
                is cross-validated.

        Returns:
            A `Probe`, or a `ClassProbe` for labels of several classes.

        Raises:
            UserError: if the labels do not fit z or the kind, if the model has no statistics of z,
                or inside a JAX transformation.

        Source: Sec. 5.3, Appendix A.2.
        """
        refuse_tracing("fit_probe", z, labels, held_out, instead="and use the returned probe inside")
        self._check_new_name(name)
        z = self._normalized(z)
        held_out = held_out and (self._normalized(held_out[0]), held_out[1])
        probe = fit(name, z, labels, kind=kind, positive_unlabeled=positive_unlabeled, held_out=held_out)
        self.probes[name] = probe
        note(describe(probe))
        return probe

    def predict(self, z: Float[AnyArray, "n d"], probe: str | Probe | ClassProbe) -> Shaped[AnyArray, "n"]:
        """Predicts a label from z with a probe.

        Args:
            z: latent codes, [N, D], as `encode` returns them.
            probe: a probe, or the name of one in `probes`, such as "smile", "digit" or "digit=2".

        Returns:
            For each z, [N]: a probability in [0, 1] (binary), a value in the unit of the labels
            (continuous), or the name of a class (classes).

        Raises:
            UserError: if there is no such probe, or if the model has no statistics of z.
        """
        return self._probe(probe).predict(self._normalized(z))

    def edit(
        self,
        images: Any,
        probe: str | Probe,
        strength: Strength | None = None,
        num_steps: int | None = None,
        *,
        to: float | int | None = None,
        inversion: str | Method | None = None,
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Float[AnyArray, "n *shape"]:
        """Edits images: moves their z along a probe and decodes them with their own x_T.

        Args:
            images: images in any form that `DiffAE` lists.
            probe: a probe, or the name of one in `probes`, such as "smile" or "digit=2".
            strength: -1,000 to 1,000, in units of sqrt(D) standard deviations of z; by default
                0.3. 0 gives exactly the reconstruction, and negative values move away from the
                label.
            num_steps: steps in each direction, 1 to 1,000; by default as recommended, or 100.
            to: instead of a strength, what the probe predicts after the edit: a probability
                between 0 and 1 (binary), or a value in the unit of the labels (continuous).
            inversion: the method of inversion, "ddim", "exact" or "gaussian": see `invert`.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`. By default
                the one that suits the inversion: "ddim", or "heun" for "gaussian".
            grid: a name in `diffusion.grids.GRIDS`, for both directions; by default that of the
                sampler.

        Returns:
            The edited images, [N, *spatial, C], float32 in [-1, 1].

        Raises:
            UserError: if there is no such probe, if it has several classes, if the probe cannot
                reach `to`, or if the model has no statistics of z.

        Source: Sec. 5.3.
        """
        self.check_edit(probe, strength, to)
        num_steps, inversion, sampler, grid = self._with_defaults(num_steps, inversion, sampler, grid)
        inverter, sampler = as_round_trip(inversion, sampler, grid)
        images = self._images(images)
        z = self._encode_arrays(images)
        x_T = self._invert_arrays(images, z, num_steps, inverter).x_T
        return self.decode(self.move(z, probe, strength, to=to), x_T, num_steps, sampler=sampler)

    def sweep(
        self,
        images: Any,
        probe: str | Probe,
        strengths: Sequence[Strength],
        num_steps: int | None = None,
        *,
        inversion: str | Method | None = None,
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Float[AnyArray, "n strengths *shape"]:
        """Edits images with several strengths. Each image is inverted once.

        Args:
            images: images in any form that `DiffAE` lists.
            probe: a probe, or the name of one in `probes`, such as "smile" or "digit=2".
            strengths: at least one strength, as in `edit`.
            num_steps: as in `edit`.
            inversion: as in `edit`.
            sampler: as in `edit`.
            grid: as in `edit`.

        Returns:
            The edited images, [N, len(strengths), *spatial, C], float32 in [-1, 1].

        Raises:
            UserError: as `edit` does.

        Source: Sec. 5.3.
        """
        check_count("strength", len(strengths))
        for strength in strengths:
            self.check_edit(probe, strength, None)
        num_steps, inversion, sampler, grid = self._with_defaults(num_steps, inversion, sampler, grid)
        inverter, sampler = as_round_trip(inversion, sampler, grid)
        images = self._images(images)
        z = self._encode_arrays(images)
        x_T = self._invert_arrays(images, z, num_steps, inverter).x_T
        moved = (jnp if is_traced(z, *strengths) else np).stack([self.move(z, probe, each) for each in strengths], 1)
        image_of_each = np.arange(len(z) * len(strengths)) // len(strengths)
        decoded = self.decode(moved.reshape(-1, z.shape[1]), x_T[image_of_each], num_steps, sampler=sampler)
        return decoded.reshape(len(z), len(strengths), *self.image_shape)

    def move(
        self,
        z: Float[AnyArray, "n d"],
        probe: str | Probe,
        strength: Strength | None = None,
        *,
        to: float | int | None = None,
    ) -> Float[AnyArray, "n d"]:
        """Moves z along a probe, without decoding.

        Args:
            z: latent codes, [N, D], as `encode` returns them.
            probe: a probe, or the name of one in `probes`, such as "smile" or "digit=2".
            strength: -1,000 to 1,000, in units of sqrt(D) standard deviations of z; by default
                0.3.
            to: instead of a strength, what the probe predicts for the moved z: a probability
                between 0 and 1 (binary), or a value in the unit of the labels (continuous).

        Returns:
            The moved z, [N, D].

        Raises:
            UserError: if there is no such probe, if it has several classes, if the probe cannot
                reach `to`, or if the model has no statistics of z.

        Source: Sec. 5.3.
        """
        probe = self.check_edit(probe, strength, to)
        return editing.moved(self._z(z), self.statistics, probe, strength, to)

    def principal_components(self, z: Float[AnyArray, "n d"], count: int) -> list[Probe]:
        """Returns the principal directions of normalized z as probes. They need no labels.

        Works only outside JAX transformations.

        Args:
            z: latent codes, [N, D], as `encode` returns them.
            count: the number of components, 1 to min(N - 1, D).

        Returns:
            Continuous probes, the largest variance first. They are not added to `probes`.

        Raises:
            UserError: if the count is out of range, if the model has no statistics of z, or inside
                a JAX transformation.
        """
        refuse_tracing("principal_components", z, instead="and use the returned probes inside")
        return components(self._normalized(z), count)

    # --- counterfactuals -------------------------------------------------------------------------

    def counterfactual(
        self,
        images: Any,
        f: Callable[[jax.Array], jax.Array],
        target: Any,
        *,
        kind: str | None = None,
        on: str = "z",
        steps: int = 100,
        step_size: float | int = 0.05,
        penalty: float | int = 0.1,
        num_steps: int = 10,
        inversion: str | Method = "ddim",
        sampler: str | Sampler | None = None,
        grid: str | None = None,
    ) -> Counterfactual:
        """Changes images as little as possible until a function of the image reaches a target.

        Adam moves the codes of each image by the gradient of f through the decoder. Of all steps
        that reach the target, the one nearest to the start is taken, and bisection shortens its
        way. Works only outside JAX transformations.

        Args:
            images: images in any form that `DiffAE` lists.
            f: a function of images [N, *spatial, C], float32 in [-1, 1], that JAX can
                differentiate. It returns a value for each image, [N], or logits of K classes,
                [N, K]. The value of an image must not depend on the other images.
            target: a number, or one for each image, [N]. A value reaches it by coming at least
                that far from its value at the start. For logits: a class from 0 to K - 1, which
                must get the largest logit.
            kind: "continuous" (default for [N]), "binary" for probabilities [N] in [0, 1], which
                are compared by log odds, or "classes" (default for [N, K]).
            on: the codes to move: "z" (default) or "z and x_T".
            steps: steps of Adam, 1 to 10,000; by default 100.
            step_size: the first step in standard deviations of z, or of x_T; by default 0.05.
                Later steps become smaller, down to 0.
            penalty: the weight of the squared distance from the start, at least 0; by default 0.1.
                The shortfall of f has the weight 1 at the start. With 0, the first step that
                reaches the target is taken.
            num_steps: steps in each direction, 1 to 1,000; by default 10. The memory grows with
                its square root.
            inversion: the method of inversion, as in `reconstruct`.
            sampler: as in `reconstruct`.
            grid: as in `reconstruct`.

        Returns:
            `Counterfactual(images, reconstruction, z, x_T, f_before, f_after, distance, reached)`.
            A warning says how many images do not reach the target. Their result is the step that
            came closest to it.

        Raises:
            UserError: if JAX cannot differentiate f, if f or its gradient is not finite, if the
                gradient is 0 for all images, if the target does not fit f, if the model has no
                encoder or no statistics of z, or inside a JAX transformation.
        """
        refuse_tracing("counterfactual", images, target, instead="or take gradients of decode yourself")
        self.check_normalized()
        check_num_steps(num_steps)
        inverter, sampler = as_round_trip(inversion, sampler, grid)
        counterfactual.check_settings(on, steps, step_size, penalty)
        kind, num_classes = counterfactual.check_function(f, self.image_shape, kind)
        images = self._images(images)
        target = counterfactual.as_target(target, len(images), kind, num_classes)

        z = self._encode_arrays(images)
        x_T = self._invert_arrays(images, z, num_steps, inverter).x_T
        reconstruction = self.decode(z, x_T, num_steps, sampler=sampler)
        # compiled again for each call, because the weights that f uses may have changed
        start = jax.jit(partial(counterfactual.at_start, f=f, kind=kind))
        f_before, reached, gradient = self._apply(
            lambda _, *arrays: start(*arrays), reconstruction, target, description="evaluating f"
        )
        counterfactual.check_start(f_before, reached, gradient, kind)
        search = jax.jit(
            partial(
                counterfactual.search,
                f=f,
                kind=kind,
                on=on,
                decode=self._program(programs.decode, num_steps, sampler, remat=True),
            )
        )
        numbers = self.statistics.std, np.int32(steps), np.float32(step_size), np.float32(penalty)
        best, bad_step, bad_f = self._apply(
            lambda params, *arrays: search(params, *arrays, *numbers),
            *(z, x_T, target, f_before),
            description="counterfactuals",
            frames=counterfactual.GRADIENT_MEMORY,
        )
        counterfactual.check_finite(bad_step, bad_f)
        if text := counterfactual.not_reached(best.reached):
            warn(text)
        return Counterfactual(
            best.images,
            reconstruction,
            z + best.moves["z"] * self.statistics.std,
            x_T + best.moves.get("x_T", 0),
            f_before,
            best.f,
            best.distance,
            best.reached,
        )

    # --- new images ------------------------------------------------------------------------------

    def sample(
        self,
        num_images: int,
        seed: Seed = 0,
        num_steps: int = 100,
        num_latent_steps: int = 100,
        *,
        first: int = 0,
        sampler: str | Sampler = "ddim",
        grid: str | None = None,
        latent_sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Draws new images: z from the prior, x_T from N(0, I). A DDIM baseline needs only x_T.

        Args:
            num_images: images, at least 1.
            seed: 0 to 2**31 - 1; by default 0.
            num_steps: steps for each image, 1 to 1,000; by default 100.
            num_latent_steps: network calls for each z, 1 to 1,000; by default 100.
            first: the index of the first image; by default 0. Image i depends only on the seed
                and on i, so you can draw a large set in several calls.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`, for the
                images.
            grid: a name in `diffusion.grids.GRIDS`, for the images; by default that of the
                sampler.
            latent_sampler: as `sampler`, for z, on its own grid.

        Returns:
            The images, [num_images, *spatial, C], float32 in [-1, 1].

        Raises:
            UserError: if the model has no prior.

        Source: Sec. 4, Sec. 5.7.
        """
        self._check_sampling(num_images, seed, num_steps, num_latent_steps)
        samplers = as_sampler(sampler, grid), as_sampler(latent_sampler)
        indices = indices_of_images(first, num_images)
        if self.config.model.z_dim is None:
            return self._decode_arrays(None, self.noise(indices, seed), num_steps, samplers[0], indices, seed)
        draw = partial(
            programs.sample,
            prior=self.prior,
            statistics=(self.statistics.mean, self.statistics.std),
            seed=seed,
            graphdefs=(self.graphdef, self.prior_graphdef),
            shape=self.image_shape,
            processes=(image_process(self.config), latent_process(self.config)),
            samplers=samplers,
            num_steps=(num_steps, num_latent_steps),
        )
        return self._apply(draw, indices, description="sampling", traced=is_traced(seed))

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
        grid: str | None = None,
        latent_sampler: str | Sampler = "ddim",
    ) -> Float[AnyArray, "n *shape"]:
        """Draws new images that a probe accepts, by rejection sampling.

        A z from the prior is accepted with the probability p that the probe predicts, if p is
        above 0.5. The result is a subset of what `sample` draws with the same seed, in the same
        order. The share of accepted z is logged. Works only outside JAX transformations.

        Args:
            num_images: images, at least 1.
            probe: a binary probe, or the name of one in `probes`, such as "smile" or "digit=2".
            positive: if False, draw images that the probe rejects.
            seed: 0 to 2**31 - 1; by default 0.
            num_steps: steps for each image, 1 to 1,000; by default 100.
            num_latent_steps: network calls for each z, 1 to 1,000; by default 100.
            max_tries: the maximum number of z to draw for each image; by default 1,000.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`, for the
                images.
            grid: a name in `diffusion.grids.GRIDS`, for the images; by default that of the
                sampler.
            latent_sampler: as `sampler`, for z, on its own grid.

        Returns:
            The images, [num_images, *spatial, C], float32 in [-1, 1].

        Raises:
            UserError: if the model has no prior, if the probe is not binary, if `max_tries` is
                reached before enough z are accepted, or inside a JAX transformation.

        Source: Sec. 5.6.
        """
        refuse_tracing("sample_class", num_images, positive, seed, max_tries, instead="or use sample")
        check_num_steps(num_steps)
        sampler = as_sampler(sampler, grid)
        z, indices = self.sample_latents(
            num_images, probe, positive, seed, num_latent_steps, max_tries, sampler=latent_sampler
        )
        return self._decode_arrays(z, self.noise(indices, seed), num_steps, sampler, indices, seed)

    def sample_latents(
        self,
        num_latents: int,
        probe: str | Probe,
        positive: bool = True,
        seed: Seed = 0,
        num_latent_steps: int = 100,
        max_tries: int = 1000,
        *,
        sampler: str | Sampler = "ddim",
    ) -> tuple[Float[AnyArray, "n d"], Int[AnyArray, "n"]]:
        """Draws only the z of `sample_class`, without decoding.

        Args:
            num_latents: latent codes, at least 1.
            probe: a binary probe, or the name of one in `probes`, such as "smile" or "digit=2".
            positive: if False, draw z that the probe rejects.
            seed: 0 to 2**31 - 1; by default 0.
            num_latent_steps: network calls for each z, 1 to 1,000; by default 100.
            max_tries: the maximum number of z to draw for each requested z; by default 1,000.
            sampler: a name in `diffusion.samplers.SAMPLERS`, or your own `Sampler`, for z.

        Returns:
            z, [num_latents, D], and the index of each z among the images of `sample`,
            [num_latents].

        Raises:
            UserError: as `sample_class` does.

        Source: Sec. 5.6.
        """
        forbid_forks()
        refuse_tracing("sample_latents", num_latents, positive, seed, max_tries, instead="or use sample")
        self._check_sampling(num_latents, seed, num_latent_steps)
        sampler = as_sampler(sampler)
        probe = self._direction(probe)
        if probe.kind != "binary":
            raise UserError(
                f"Probe {shown(probe.name)} is continuous, and conditional sampling needs a binary one. Use a probe of "
                f"two values, or of one class, such as `digit=2`."
            )
        check_count("try", max_tries)
        if max_tries * num_latents >= MAX_TRIES:
            raise UserError(
                f"max_tries times the number of images must be less than {MAX_TRIES:,}, not "
                f"{max_tries * num_latents:,}."
            )
        sign = 1 if positive else -1
        z, indices, accepted = on_host(
            programs.latents_of_class(
                self.prior,
                sign * probe.weights,
                np.float32(sign * probe.bias),
                seed,
                num_latents,
                max_tries * num_latents,
                graphdef=self.prior_graphdef,
                process=latent_process(self.config),
                sampler=sampler,
                num_steps=num_latent_steps,
                num_places=batching.padded(num_latents),
                split=split_batch(self.mesh),
            )
        )
        label = f"{'' if positive else 'not '}{shown(probe.name)}"
        if accepted < num_latents:
            raise UserError(
                f"{accepted:,} of {max_tries * num_latents:,} z drawn are {label}, but {num_latents:,} were "
                f"requested. Request fewer images or set a higher max_tries."
            )
        z, indices = z[:num_latents], indices[:num_latents]
        # count z only to the last accepted one: the size of the last batch depends on the devices
        drawn = indices[-1] + 1
        note(f"{num_latents:,} of {drawn:,} z drawn are {label} ({num_latents / drawn:.1%}).")
        return self.statistics.denormalize(z), indices

    # --- checks ----------------------------------------------------------------------------------

    def check_has_encoder(self) -> None:
        """Raises UserError if the model is a DDIM baseline."""
        if self.config.model.z_dim is None:
            raise UserError(f"{self.config.name} is a DDIM baseline: it has no encoder and no z. Use a model with z.")

    def check_normalized(self) -> None:
        """Raises UserError if the model cannot normalize z, as probes and counterfactuals do."""
        if self.config.model.z_dim is None:
            raise UserError(
                f"{shown(self.config.name)} is a DDIM baseline: it has no encoder and no z. Use a model with z."
            )
        if self.statistics is None:
            raise UserError(
                f"{shown(self.config.name)} has no mean and standard deviation of z, which probes and "
                f"counterfactuals need. Compute them with --stages=latents, or import a checkpoint with its latent.pkl."
            )

    def check_edit(self, probe: str | Probe, strength: Strength | None, to: float | int | None) -> Probe:
        """Returns the probe of an edit. Raises UserError if it is not possible; see `edit`."""
        probe = self._direction(probe)
        editing.check_edit(probe, strength, to)
        return probe

    def _check_new_name(self, name):
        check_probe_name(name)
        of_class = directions(self.probes).get(name)
        if of_class is not None and name not in self.probes:
            raise UserError(f"{shown(name)} is already the name of a class of another probe. Use another name.")

    def _check_sampling(self, num_images, seed, *num_steps):
        check_count("image", num_images)
        check_seed_or_traced(seed)
        for steps in num_steps:
            check_num_steps(steps)
        if self.prior is None and self.config.model.z_dim is not None:
            raise UserError(
                f"{self.config.name} has no prior (latent DDIM), which draws the z of new images. Train it with "
                f"--stages=latents,prior, or import a checkpoint that has it (NAME_autoenc_latent)."
            )

    # --- arguments -------------------------------------------------------------------------------

    def _images(self, images, one=""):
        """Converts images to an array and logs each conversion once. Traced arrays stay traced.

        `one` names an argument that takes a single image.
        """
        images, notes = as_images(images, self.transform, one=one)
        for text in notes:
            self._log_once(warn, f"Note: {text}")
        return images

    def _log_once(self, log, text):
        if text not in self._logged_notes:
            log(text)
            self._logged_notes.add(text)

    def _z(self, z, count=None):
        """Checks z, and that there are `count` of them if given. Traced arrays stay traced."""
        name, z_dim = shown(self.config.name), self.config.model.z_dim
        if z is None and z_dim is not None:
            raise UserError(f"z is None, but {name} needs z of {z_dim} dimensions. Pass z=encode(images).")
        if z is not None and z_dim is None:
            raise UserError(f"{name} is a DDIM baseline, which has no z. Use z=None.")
        if z is None:
            return None
        z = as_codes("z", z, (z_dim,))
        if count not in (None, len(z)):
            raise UserError(f"There are {counted(count, 'image')} but {len(z)} z. Give one z for each image.")
        return z

    def _codes(self, z, x_T, seed, first):
        """Checks z and x_T, draws x_T if it is None, and returns them with the images' indices."""
        check_seed_or_traced(seed)
        if x_T is None:
            if z is None:
                raise UserError("decode needs z, x_T or both: they determine the number of images.")
            z = self._z(z)
            indices = indices_of_images(first, len(z))
            x_T = self.noise(indices, seed)
        else:
            x_T = as_codes("x_T", x_T, self.image_shape)
            indices = indices_of_images(first, len(x_T))
        return self._z(z, len(x_T)), x_T, indices

    def _normalized(self, z):
        self.check_normalized()
        return self.statistics.normalize(self._z(z))

    def _direction(self, probe):
        """Returns `probe`, or the probe of that name, which must have a single direction."""
        return editing.as_direction(self._probe(probe))

    def _probe(self, probe):
        self.check_normalized()
        return editing.as_probe(probe, self.probes, self.config.model.z_dim)

    def _with_defaults(self, num_steps, inversion=None, sampler=None, grid=None, *, is_inferred=True):
        """Returns what a call names, or the recommended settings if it names nothing.

        They were measured with x_T of images, so they are not used for random x_T.
        """
        recommended = self.recommended if is_inferred else None
        chosen, is_recommended = with_defaults(recommended, num_steps, inversion, sampler, grid)
        text = f"{recommended} (recommended by this model). Give num_steps to choose others."
        if is_recommended:
            self._log_once(warn, f"Note: {text}")
        return chosen

    # --- compiled functions ----------------------------------------------------------------------

    def _weights_on_host(self):
        """Returns the weights on the host. All processes must call it together."""
        return on_host({"autoencoder": self.params} | ({} if self.prior is None else {"prior": self.prior}))

    def _encode_arrays(self, images):
        """Encodes the result of `_images`. Returns None for a DDIM baseline."""
        if self.config.model.z_dim is None:
            return None
        return self._apply(partial(programs.encode, graphdef=self.graphdef), images, description="encoding")

    def _invert_arrays(self, images, z, num_steps, sampler, seed=0, first=0):
        """Inverts the result of `_images`. Returns an `Inversion`."""
        program = self._program(programs.invert, num_steps, sampler)
        indices = indices_of_images(first, len(images))
        inversion = self._walk(program, images, z, sampler, indices, seed, "inverting")
        if not is_traced(*inversion) and not np.isnan(inversion.residual).any():  # NaN: not computed
            self._log_once(note, cost(inversion))
        return inversion

    def _decode_arrays(self, z, x_T, num_steps, sampler, indices, seed):
        """Decodes the result of `_codes`."""
        program = self._program(programs.decode, num_steps, sampler, remat=is_traced(z, x_T))
        return self._walk(program, x_T, z, sampler, indices, seed, "decoding")

    def _walk(self, program, x, z, sampler, indices, seed, description, frames=1):
        """Applies a program that runs a sampler. Only a stochastic one needs indices and seed."""
        if not sampler.stochastic:
            return self._apply(program, x, z, description=description, frames=frames)
        program = partial(program, seed=seed)
        return self._apply(program, x, z, indices, description=description, frames=frames, traced=is_traced(seed))

    def _program(self, function, num_steps, sampler, **settings):
        """Returns one of `programs` for this network, a sampler and a number of steps."""
        process = image_process(self.config)
        settings |= dict(graphdef=self.graphdef, process=process, sampler=sampler, num_steps=num_steps)
        return partial(function, **settings)

    def _apply(self, function, *arrays, description, frames=1, traced=False):
        """Applies a program to arrays: in batches over all devices, or at once while JAX traces.

        `frames` is the number of images in memory for each input. `traced` is true if another
        argument of the program is traced.
        """
        if traced or is_traced(*arrays) or is_tracing():
            return function(self.params, *arrays)
        image_size = frames * math.prod(self.image_shape)
        return batching.in_batches(function, self.params, self.mesh, image_size, *arrays, what=description)
