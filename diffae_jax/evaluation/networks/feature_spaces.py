"""Spaces in which two sets of images are compared, and the perceptual distance of pairs, on all devices in batches.

The distances in a space bear the names FID and KID only where it is that of the original Inception, checked by its
SHA-256. Two spaces need no file: principal components, and a network of random weights.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from diffae_jax.data.transforms import to_float
from diffae_jax.evaluation import metrics
from diffae_jax.evaluation.networks import inception, lpips, weights
from diffae_jax.inference import batching
from diffae_jax.models import abstract_model, split
from diffae_jax.models.functional import Params
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import replicated, shard_array

INCEPTION_BATCH = 32  # images that one device works on at a time: their activations take most of a GiB
WIDTHS = (32, 64, 128)  # of the layers of the random network


class FeatureSpace(NamedTuple):
    """What maps images, uint8 or float in [-1, 1], to vectors, and what distances between sets of these are called."""

    name: str
    dim: int
    features: Callable[[Shaped[np.ndarray, "n *shape"]], Float[np.ndarray, "n d"]]
    frechet_name: str
    kernel_name: str


def _named(name: str, dim: int, features: Callable) -> FeatureSpace:
    """A space whose distances are not those that others report."""
    return FeatureSpace(name, dim, features, f"Frechet distance in {name}", f"kernel distance in {name}")


def check_inception_images(image_shape: tuple[int, ...]) -> None:
    """Raises UserError unless images of that shape, (*spatial, C), have features of Inception: gray or RGB pictures."""
    if len(image_shape) != 3 or image_shape[-1] not in (1, 3):
        raise UserError(
            f"Inception and LPIPS see [height, width, channels] with 1 or 3 channels, not images of {image_shape}: "
            f"use principal components or random convolutions for these."
        )


def check_lpips_images(image_shape: tuple[int, ...]) -> None:
    """Raises UserError unless images of that shape, (*spatial, C), can be given to LPIPS."""
    check_inception_images(image_shape)
    if min(image_shape[:2]) < lpips.SMALLEST:
        height, width, _ = image_shape
        raise UserError(
            f"LPIPS takes images of at least {lpips.SMALLEST}x{lpips.SMALLEST} pixels, of which AlexNet's poolings "
            f"leave one, not {height}x{width}: leave it out for these images."
        )


def as_rgb(images: Shaped[Array, "n h w c"]) -> Float[Array, "n h w 3"]:
    """Returns pictures as RGB in [-1, 1]; gray ones three times over."""
    images = to_float(images)
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


@partial(jax.jit, static_argnames="graphdef")
def _inception_features(params: Params, images: Array, *, graphdef: nnx.GraphDef) -> Array:
    return nnx.merge(graphdef, params)(inception.resize(as_rgb(images)))


@partial(jax.jit, static_argnames="graphdef")
def _lpips_distances(params: Params, images: Array, others: Array, *, graphdef: nnx.GraphDef) -> Array:
    return nnx.merge(graphdef, params)(as_rgb(images), as_rgb(others))


@partial(jax.jit, static_argnames="graphdef")
def _random_features(params: Params, images: Array, *, graphdef: nnx.GraphDef) -> Array:
    return nnx.merge(graphdef, params)(to_float(images))


def inception_features(params: Params, mesh: Mesh) -> Callable[[np.ndarray], Float[np.ndarray, "n 2048"]]:
    """Returns what maps pictures, uint8 or float in [-1, 1], to their 2048 features under these weights."""
    graphdef, _ = abstract_model(lambda rngs: inception.InceptionV3(rngs=rngs))
    params, function = _placed(params, mesh), partial(_inception_features, graphdef=graphdef)
    image_size = batching.BATCH_ELEMENTS // INCEPTION_BATCH

    def features(images):
        check_inception_images(images.shape[1:])
        size = max(image_size, math.prod(images.shape[1:]))
        return batching.in_batches(function, params, mesh, size, images, what="features of Inception")

    return features


def lpips_distances(params: Params, mesh: Mesh) -> Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "n"]]:
    """Returns what maps pairs of pictures, uint8 or float in [-1, 1], to their LPIPS under these weights."""
    graphdef, _ = abstract_model(lambda rngs: lpips.LPIPS(rngs=rngs))
    params, function = _placed(params, mesh), partial(_lpips_distances, graphdef=graphdef)

    def distances(images, others):
        check_lpips_images(images.shape[1:])
        if images.shape != others.shape:
            raise UserError(f"LPIPS takes as many pictures, of the same size: not {images.shape} and {others.shape}.")
        size = 6 * math.prod(images.shape[1:3])  # two pictures of three channels
        return batching.in_batches(function, params, mesh, size, images, others, what="LPIPS")

    return distances


def load_inception(
    mesh: Mesh, path: str | Path | None = None, *, download: bool = False
) -> tuple[FeatureSpace | None, str]:
    """Returns the space of FID and KID or, where its weights are not at hand, None and a sentence on how to get them.

    Raises UserError where they are not the published ones, see `weights.find`.
    """
    found = weights.find(weights.INCEPTION, path, download=download)
    if found is None:
        return None, weights.how_to_get(weights.INCEPTION)
    features = inception_features(inception.read_inception(found), mesh)
    return FeatureSpace("Inception", inception.NUM_FEATURES, features, "FID", "KID"), ""


def load_lpips(
    mesh: Mesh,
    alexnet: str | Path | None = None,
    linear: str | Path | None = None,
    *,
    download: bool = False,
) -> tuple[Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "n"]] | None, str]:
    """Returns LPIPS of pairs of pictures or, where its weights are not at hand, None and how to get them.

    `alexnet` and `linear` are paths of torchvision's AlexNet and of the weights of LPIPS v0.1. Raises UserError where
    they are not the published ones, see `weights.find`.
    """
    files = {weights.ALEXNET: alexnet, weights.LPIPS_LINEAR: linear}
    found = {file: weights.find(file, path, download=download) for file, path in files.items()}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        return None, weights.how_to_get(*missing)
    return lpips_distances(lpips.read_lpips(*found.values()), mesh), ""


def principal_space(images: Shaped[np.ndarray, "n *shape"], num_components: int = 32) -> FeatureSpace:
    """The space of the first principal components of these images, of any rank, on the host; see `metrics`."""

    components = metrics.principal_components(to_float(images), num_components)
    dim = components(to_float(images[:1])).shape[1]
    return _named(f"{dim} principal components", dim, lambda others: components(to_float(others)))


class RandomNetwork(nnx.Module):
    """Convolutions of random weights that halve an image of any rank; features are the means of all activations.

    Untrained features tell textures and shapes apart, though not as people see them.
    """

    def __init__(self, image_shape: tuple[int, ...], seed: int):
        self.rank = len(image_shape) - 1
        normal = np.random.RandomState(seed).standard_normal  # whose numbers no version of numpy may change
        shapes = [(3,) * self.rank + widths for widths in itertools.pairwise((image_shape[-1], *WIDTHS))]
        kernels = (normal(shape) * np.sqrt(2 / math.prod(shape[:-1])) for shape in shapes)
        self.kernels = nnx.List([nnx.Param(jnp.asarray(kernel, jnp.float32)) for kernel in kernels])

    def __call__(self, images: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
        """Returns the features of images in [-1, 1]."""
        h, spatial = images, "DHW"[-self.rank :]
        layout, means = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"), []
        for kernel in self.kernels:
            stride = (2,) * self.rank if means else (1,) * self.rank
            h = lax.conv_general_dilated(
                h, kernel[...], stride, "SAME", dimension_numbers=layout, precision=lax.Precision.HIGHEST
            )
            h = nnx.relu(h)
            means.append(h.mean(range(1, h.ndim - 1)))
        return jnp.concatenate(means, axis=-1)


def random_space(image_shape: tuple[int, ...], mesh: Mesh, seed: int = 0) -> FeatureSpace:
    """The space of a network of random weights, for images (*spatial, C) of any rank; the same for the same seed."""
    if not 2 <= len(image_shape) <= 4:
        raise UserError(f"Random convolutions see images of 1 to 3 axes and channels, not of shape {image_shape}.")
    graphdef, params = split(RandomNetwork(image_shape, seed))
    params, function = _placed(jax.device_get(params), mesh), partial(_random_features, graphdef=graphdef)
    size = WIDTHS[0] // 4 * math.prod(image_shape[:-1])  # the first activations are the largest

    def features(images):
        if images.shape[1:] != image_shape:
            raise UserError(f"These random convolutions see images of {image_shape}, not of {images.shape[1:]}.")
        return batching.in_batches(function, params, mesh, size, images, what="features of random convolutions")

    return _named("random convolutions", sum(WIDTHS), features)


def _placed(params: Params, mesh: Mesh) -> Params:
    return jax.tree.map(lambda array: shard_array(array, replicated(mesh)), params)
