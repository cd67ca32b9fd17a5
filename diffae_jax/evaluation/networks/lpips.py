"""LPIPS v0.1 with AlexNet: a learned perceptual distance of two images (Zhang et al., 2018)."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from diffae_jax.evaluation.networks.weights import read_arrays
from diffae_jax.models.functional import Params, unflatten

MIN_SIZE = 31  # pixels per axis, of which one remains after the second pooling
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of red, green and blue in [-1, 1]
EPSILON = 1e-10
ALEXNET_CLASSIFIER = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}  # in the file, but unused


class Layer(NamedTuple):
    """A convolution of AlexNet that is followed by a ReLU."""

    place: int  # its index in the file's tensor names
    channels: int
    features: int
    window: int
    stride: int = 1
    padding: int = 1
    pooled: bool = False  # whether a 3x3 max-pooling with stride 2 comes first


LAYERS = (
    Layer(0, 3, 64, 11, stride=4, padding=2),
    Layer(3, 64, 192, 5, padding=2, pooled=True),
    Layer(6, 192, 384, 3, pooled=True),
    Layer(8, 384, 256, 3),
    Layer(10, 256, 256, 3),
)


class Features(nnx.Module):
    """A convolution with ReLU, and the LPIPS weight of each feature. Runs in float32."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        self.layer = layer
        shape = (layer.window, layer.window, layer.channels, layer.features)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(layer.features, jnp.float32))
        self.weight = nnx.Param(jnp.ones(layer.features, jnp.float32) / layer.features)

    def __call__(self, h: Float[Array, "n h w c"]) -> Float[Array, "n new_h new_w features"]:
        """Returns the activations."""
        layer = self.layer
        if layer.pooled:
            h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        h = lax.conv_general_dilated(
            h,
            self.kernel[...],
            (layer.stride,) * 2,
            [(layer.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return nnx.relu(h + self.bias[...])

    def difference(self, h: Float[Array, "n h w c"], other: Float[Array, "n h w c"]) -> Float[Array, "n"]:
        """Returns the weighted squared difference of normalized activations, as a mean."""
        return (jnp.square(_unit(h) - _unit(other)) * self.weight[...]).sum(-1).mean((1, 2))


def _unit(h: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return h / (jnp.sqrt(jnp.square(h).sum(-1, keepdims=True)) + EPSILON)


class LPIPS(nnx.Module):
    """The perceptual distance of pairs of images."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Features(layer, rngs=rngs) for layer in LAYERS])

    def __call__(self, images: Float[Array, "n h w 3"], others: Float[Array, "n h w 3"]) -> Float[Array, "n"]:
        """Returns the distance of each pair of RGB images in [-1, 1] of at least 31x31."""
        h, other = ((x - jnp.array(SHIFT, jnp.float32)) / jnp.array(SCALE, jnp.float32) for x in (images, others))
        distance = 0
        for layer in self.layers:
            h, other = layer(h), layer(other)
            distance += layer.difference(h, other)
        return distance


def alexnet_shapes() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors that are used from torchvision's AlexNet file."""
    kernels = {f"features.{x.place}.weight": (x.features, x.channels, x.window, x.window) for x in LAYERS}
    return kernels | {f"features.{layer.place}.bias": (layer.features,) for layer in LAYERS}


def alexnet_unused() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of that file's unused tensors: the classifier."""
    shapes = {f"classifier.{place}.weight": shape for place, shape in ALEXNET_CLASSIFIER.items()}
    return shapes | {f"classifier.{place}.bias": shape[:1] for place, shape in ALEXNET_CLASSIFIER.items()}


def linear_shapes() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors in the file of the LPIPS weights."""
    return {f"lin{i}.model.1.weight": (1, layer.features, 1, 1) for i, layer in enumerate(LAYERS)}


def read_lpips(alexnet: Path, linear: Path) -> Params:
    """Reads the weights of torchvision's AlexNet and of LPIPS v0.1, in float32.

    Raises UserError if a file holds anything else.
    """
    features = read_arrays(alexnet, alexnet_shapes(), alexnet_unused(), "AlexNet")
    weights = read_arrays(linear, linear_shapes(), {}, "LPIPS")
    flat = {}
    for i, layer in enumerate(LAYERS):
        kernel = features[f"features.{layer.place}.weight"].transpose(2, 3, 1, 0)
        flat[f"layers.{i}.kernel"] = np.ascontiguousarray(kernel, np.float32)
        flat[f"layers.{i}.bias"] = features[f"features.{layer.place}.bias"].astype(np.float32)
        flat[f"layers.{i}.weight"] = weights[f"lin{i}.model.1.weight"].reshape(-1).astype(np.float32)
    return unflatten(flat)
