"""Checks that a network in PyTorch computes what ours computes, on random weights."""

import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from ml_collections import ConfigDict
from torch import Tensor

from benchmarks.torch_networks import DiffusionAutoencoder, in_their_layout, load
from benchmarks.torch_programs import Inputs, loss_of, on_device, process_of
from diffae_jax.config import check
from diffae_jax.config.differences import flat
from diffae_jax.data.transforms import to_float
from diffae_jax.diffusion.loss import diffusion_loss
from diffae_jax.diffusion.process import image_process
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.models.functional import Params, flatten, unflatten
from diffae_jax.runtime.errors import UserError, shown

# Norm of the difference between results, relative to the norm of the results. GPUs compute float32
# products with TF32.
TOLERANCES = {("float32", "cpu"): 1e-3, ("float32", "cuda"): 0.05, ("bfloat16", "cpu"): 0.1, ("bfloat16", "cuda"): 0.1}
# The same for the gradient of each weight. A bias before a normalization of single channels has
# no gradient but rounding errors, so a norm counts as at least this share of the largest one.
GRADIENT_TOLERANCE, LEAST_SHARE = 1e-3, 1e-3

# what the networks and the training step in PyTorch can do
SETTINGS = {
    "model.encoder.kind": "unet",
    "train.weighting": "uniform",
    "train.weight_decay": 0.0,
    "execution.num_microbatches": 1,
    "execution.remat": False,
}


def check_comparable(config: ConfigDict) -> None:
    """Raises UserError if a config is invalid, or if PyTorch here cannot do what it describes."""
    check(config)
    values = flat(config.to_dict())
    for key, expected in SETTINGS.items():
        if values[key] != expected:
            raise UserError(
                f"This comparison needs {key}={expected}, but {config.name} has {shown(values[key])}: set "
                f"--config.{key}={expected}."
            )
    if len(config.image_shape) != 3 or config.model.z_dim is None:
        raise UserError(
            f"This comparison needs an encoder and images with two spatial axes, but {config.name} has z_dim "
            f"{config.model.z_dim} and image_shape {tuple(config.image_shape)}: choose a different config."
        )


def random_weights(config: ConfigDict) -> Params:
    """Returns random weights of an autoencoder. None is zero, so every layer has an effect."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, np.float32)
        if name.endswith("kernel"):
            return noise / np.float32(math.sqrt(math.prod(shape[:-1])))
        return noise / 10 + name.endswith("scale")

    _, shapes = abstract_model(builder(config, "float32"))
    return unflatten({name: draw(name, leaf.shape) for name, leaf in flatten(shapes).items()})


def check_gradients(config: ConfigDict, params: Params) -> None:
    """Compares loss and gradients of two images, in float32 on the CPU, without dropout.

    Raises:
        UserError: They differ.
    """
    config = ConfigDict(config.to_dict())
    config.model.dropout = 0.0
    inputs, t = Inputs.random(config, 2), np.array([50, 700])
    loss, gradients = our_gradients(config, params, inputs, t)
    their_loss, their_gradients = gradients_of_torch(config, params, inputs, t)
    agree("loss", loss, their_loss, GRADIENT_TOLERANCE)
    least = LEAST_SHARE * max(float(gradient.norm()) for gradient in their_gradients.values())
    differences = [
        agree(f"gradient of {name}", gradient, their_gradients[name], GRADIENT_TOLERANCE, least)
        for name, gradient in in_their_layout(gradients).items()
    ]
    print(
        f"{config.name}: the gradients of {len(differences)} weights agree to {max(differences):.0e}", file=sys.stderr
    )


def our_gradients(config: ConfigDict, params: Params, inputs: Inputs, t: np.ndarray) -> tuple[jax.Array, Params]:
    """Returns the mean loss and its gradients for time steps t [N] and the noise `inputs.x_T`."""
    graphdef, _ = abstract_model(builder(config, "float32"))
    process = image_process(config)

    def mean_loss(params: Params) -> jax.Array:
        model, x_0 = nnx.merge(graphdef, params), jnp.asarray(to_float(inputs.images))
        network = partial(model.unet, z=model.encode(x_0))
        return diffusion_loss(process, network, x_0, jnp.asarray(t), jnp.asarray(inputs.x_T)).mean()

    with jax.default_device(jax.devices("cpu")[0]):
        return jax.jit(jax.value_and_grad(mean_loss))(params)


def gradients_of_torch(
    config: ConfigDict, params: Params, inputs: Inputs, t: np.ndarray
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what `our_gradients` returns, with the gradients by their names in PyTorch."""
    network = DiffusionAutoencoder(config)
    load(network, params)
    images, eps = on_device(inputs.images, "cpu"), on_device(inputs.x_T, "cpu")
    loss = loss_of(network, *process_of(config, "cpu"), images, torch.from_numpy(t), eps)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def agree(what: str, ours: jax.Array | np.ndarray, theirs: Tensor, tolerance: float, least: float = 0.0) -> float:
    """Returns the norm of the difference between two results, relative to their norm.

    Args:
        what: What they are, for the message.
        ours: Our result.
        theirs: The same from PyTorch. Images have channels first.
        tolerance: The largest difference that is accepted.
        least: Used instead of the norm of the results if that is smaller.

    Raises:
        UserError: They differ more.
    """
    expected = theirs.float().cpu().numpy()
    if expected.shape != ours.shape:
        expected = np.moveaxis(expected, 1, -1)
    difference = float(np.linalg.norm(np.asarray(ours) - expected) / max(np.linalg.norm(expected), least))
    if not difference <= tolerance:  # also if it is NaN
        raise UserError(
            f"JAX and PyTorch do not compute the same: {what} differs by {difference:.1e} of its norm, more than "
            f"{tolerance:.0e}. Their times are not comparable, so correct benchmarks/torch_networks.py first."
        )
    return difference
