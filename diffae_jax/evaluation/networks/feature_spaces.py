"""Feature spaces for comparing two sets of images, and LPIPS for pairs of images.

Both run in batches on all devices. Distances are called FID and KID only in the space of the
original Inception weights, which are checked by SHA-256. Two spaces need no weights file:
principal components, and a network with random weights.
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

INCEPTION_BATCH = 32  # images per device at a time: their activations take most of a GiB
WIDTHS = (32, 64, 128)  # of the layers of the random network


class FeatureSpace(NamedTuple):
    """A map from images (uint8, or float in [-1, 1]) to features. It names its distances."""

    name: str
    dim: int
    features: Callable[[Shaped[np.ndarray, "n *shape"]], Float[np.ndarray, "n d"]]
    frechet_name: str
    kernel_name: str


def _named(name: str, dim: int, features: Callable) -> FeatureSpace:
    """Returns a space whose distances are not comparable with published ones."""
    return FeatureSpace(name, dim, features, f"Frechet distance in {name}", f"kernel distance in {name}")


def inception_problem(image_shape: tuple[int, ...]) -> str:
    """Returns why Inception cannot take images of shape (*spatial, C), or an empty string."""
    if len(image_shape) == 3 and image_shape[-1] in (1, 3):
        return ""
    return f"it needs 2D images with 1 or 3 channels, but these have shape {image_shape}"


def lpips_problem(image_shape: tuple[int, ...]) -> str:
    """Returns why LPIPS cannot take images of shape (*spatial, C), or an empty string."""
    if problem := inception_problem(image_shape):
        return problem
    height, width, _ = image_shape
    if min(height, width) >= lpips.MIN_SIZE:
        return ""
    return f"it needs at least {lpips.MIN_SIZE}x{lpips.MIN_SIZE} pixels, but these are {height}x{width}"


def check_inception_images(image_shape: tuple[int, ...]) -> None:
    """Raises UserError if Inception cannot take images of shape (*spatial, C)."""
    if problem := inception_problem(image_shape):
        raise UserError(
            f"Inception cannot be used for these images: {problem}. Use principal components or random convolutions."
        )


def check_lpips_images(image_shape: tuple[int, ...]) -> None:
    """Raises UserError if LPIPS cannot take images of shape (*spatial, C)."""
    if problem := lpips_problem(image_shape):
        raise UserError(f"LPIPS cannot be used for these images: {problem}. Use MSE or SSIM.")


def as_rgb(images: Shaped[Array, "n h w c"]) -> Float[Array, "n h w 3"]:
    """Returns images as RGB in [-1, 1]. The channel of a gray image is repeated three times."""
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
    """Returns the map from images (uint8, or float in [-1, 1]) to 2048 Inception features."""
    graphdef, _ = abstract_model(lambda rngs: inception.InceptionV3(rngs=rngs))
    params, function = _on_devices(params, mesh), partial(_inception_features, graphdef=graphdef)
    image_size = batching.BATCH_ELEMENTS // INCEPTION_BATCH

    def features(images):
        check_inception_images(images.shape[1:])
        size = max(image_size, math.prod(images.shape[1:]))
        return batching.in_batches(function, params, mesh, size, images, what="features of Inception")

    return features


def lpips_distances(params: Params, mesh: Mesh) -> Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "n"]]:
    """Returns the map from pairs of images (uint8, or float in [-1, 1]) to their LPIPS."""
    graphdef, _ = abstract_model(lambda rngs: lpips.LPIPS(rngs=rngs))
    params, function = _on_devices(params, mesh), partial(_lpips_distances, graphdef=graphdef)

    def distances(images, others):
        check_lpips_images(images.shape[1:])
        if images.shape != others.shape:
            raise UserError(f"LPIPS needs two arrays of the same shape, not {images.shape} and {others.shape}.")
        size = 6 * math.prod(images.shape[1:3])  # two images with three channels
        return batching.in_batches(function, params, mesh, size, images, others, what="LPIPS")

    return distances


def load_inception(
    mesh: Mesh, path: str | Path | None = None, *, download: bool = False
) -> tuple[FeatureSpace | None, str]:
    """Returns the space of FID and KID, and an empty string.

    If the weights are not available, returns None and a sentence on how to get them. Raises
    UserError if the weights are not the published ones, see `weights.find`.
    """
    file = weights.find(weights.INCEPTION, path, download=download)
    if file is None:
        return None, weights.how_to_get(weights.INCEPTION)
    features = inception_features(inception.read_inception(file), mesh)
    return FeatureSpace("Inception", inception.NUM_FEATURES, features, "FID", "KID"), ""


def load_lpips(
    mesh: Mesh,
    alexnet: str | Path | None = None,
    linear: str | Path | None = None,
    *,
    download: bool = False,
) -> tuple[Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "n"]] | None, str]:
    """Returns LPIPS as a function of pairs of images, and an empty string.

    `alexnet` and `linear` are the paths of torchvision's AlexNet and of the weights of LPIPS v0.1.
    If the weights are not available, returns None and a sentence on how to get them. Raises
    UserError if the weights are not the published ones, see `weights.find`.
    """
    given = {weights.ALEXNET: alexnet, weights.LPIPS_LINEAR: linear}
    paths = {file: weights.find(file, path, download=download) for file, path in given.items()}
    missing = [file for file, path in paths.items() if path is None]
    if missing:
        return None, weights.how_to_get(*missing)
    return lpips_distances(lpips.read_lpips(*paths.values()), mesh), ""


def principal_space(images: Shaped[np.ndarray, "n *shape"], num_components: int = 32) -> FeatureSpace:
    """Returns the space of the first principal components of these images, on the host."""
    components = metrics.principal_components(to_float(images), num_components)
    dim = components(to_float(images[:1])).shape[1]
    return _named(f"{dim} principal components", dim, lambda others: components(to_float(others)))


class RandomNetwork(nnx.Module):
    """Random convolutions for images of any rank; the features are the means of all activations.

    Untrained features distinguish textures and shapes, but not in the way that people do.
    """

    def __init__(self, image_shape: tuple[int, ...], seed: int):
        self.rank = len(image_shape) - 1
        normal = np.random.RandomState(seed).standard_normal  # the same in every version of NumPy
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
    """Returns the space of a random network for images (*spatial, C). A seed fixes the network."""
    if not 2 <= len(image_shape) <= 4:
        raise UserError(f"Random convolutions need images with 1 to 3 spatial axes, not the shape {image_shape}.")
    graphdef, params = split(RandomNetwork(image_shape, seed))
    params, function = _on_devices(jax.device_get(params), mesh), partial(_random_features, graphdef=graphdef)
    size = WIDTHS[0] // 4 * math.prod(image_shape[:-1])  # the first activations are the largest

    def features(images):
        if images.shape[1:] != image_shape:
            raise UserError(f"These random convolutions need images of {image_shape}, not of {images.shape[1:]}.")
        return batching.in_batches(function, params, mesh, size, images, what="features of random convolutions")

    return _named("random convolutions", sum(WIDTHS), features)


def _on_devices(params: Params, mesh: Mesh) -> Params:
    return jax.tree.map(lambda array: shard_array(array, replicated(mesh)), params)
