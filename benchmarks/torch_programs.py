"""Training step, encoding and decoding in PyTorch, each as a function without arguments to time.

The training step does what ours does: t, noise and dropout are drawn, then follow loss, gradients,
clipping, Adam and EMA, whose decay is constant. The decoder calls the entire network at each step.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.torch_networks import DiffusionAutoencoder, load
from diffae_jax.diffusion.process import Process, image_process
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS, timesteps
from diffae_jax.models.functional import Params

EAGER = "eager"
CHANNELS_LAST, BFLOAT16, COMPILED = "channels-last", "bfloat16", "compiled"
OPTIONS = (CHANNELS_LAST, BFLOAT16, COMPILED)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run a network of PyTorch.

    Attributes:
        name: "eager", or options of `OPTIONS` joined by "+".
    """

    name: str

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Returns the variant of a name, for argparse."""
        if name != EAGER and not set(name.split("+")) <= set(OPTIONS):
            raise argparse.ArgumentTypeError(f"{name} is neither {EAGER} nor some of {', '.join(OPTIONS)} joined by +")
        return cls(name)

    def has(self, option: str) -> bool:
        """Tells whether an option of `OPTIONS` is on."""
        return option in self.name.split("+")

    @property
    def precision(self) -> str:
        """What the networks compute in. The weights are float32."""
        return BFLOAT16 if self.has(BFLOAT16) else "float32"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arrays that all programs take.

    Attributes:
        images: uint8 [N, H, W, C].
        x_T: float32 [N, H, W, C].
        z: float32 [N, D].
    """

    images: np.ndarray
    x_T: np.ndarray
    z: np.ndarray

    @classmethod
    def random(cls, config: ConfigDict, batch: int) -> "Inputs":
        """Draws inputs for a config."""
        rng, shape = np.random.default_rng(1), (batch, *config.image_shape)
        x_T, z = (rng.standard_normal(size, np.float32) for size in (shape, (batch, config.model.z_dim)))
        return cls(rng.integers(0, 256, shape, np.uint8), x_T, z)


def program(
    name: str, config: ConfigDict, params: Params, inputs: Inputs, variant: Variant, device: str
) -> Callable[[], Tensor]:
    """Returns a program as a function without arguments. A call waits for its result.

    Args:
        name: "train", "encode" or "decode".
        config: The config. Decoding takes `evaluation.num_code_steps` steps.
        params: Our weights.
        inputs: What the program takes.
        variant: How PyTorch runs it.
        device: "cpu" or "cuda".

    Returns:
        The function. It returns the loss, z [N, D], or the images [N, C, H, W].
    """
    network = DiffusionAutoencoder(config)
    load(network, params)
    network.to(device, memory_format=torch.channels_last if variant.has(CHANNELS_LAST) else torch.contiguous_format)

    def prepared(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        function = torch.autocast(device, torch.bfloat16, enabled=variant.has(BFLOAT16))(function)
        return torch.compile(function) if variant.has(COMPILED) else function

    def to_device(array: np.ndarray) -> Tensor:
        return on_device(array, device, channels_last=variant.has(CHANNELS_LAST))

    if name == "train":
        loss_fn = prepared(partial(loss_of, network, *process_of(config, device)))
        step = partial(train_step, network, *training_state(config, network), loss_fn, config.train.max_grad_norm)
        call = partial(draw_and_step, step, to_device(inputs.images))
    elif name == "encode":
        images = to_float(to_device(inputs.images))
        call = partial(torch.no_grad()(prepared(network.eval().encoder.forward)), images)
    else:
        predict = partial(torch.no_grad()(prepared(network.eval().unet.forward)), z=to_device(inputs.z))
        process = image_process(config)
        call = partial(ddim_decode, predict, to_device(inputs.x_T), process, config.evaluation.num_code_steps)

    def run() -> Tensor:
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def on_device(array: np.ndarray, device: str, *, channels_last: bool = False) -> Tensor:
    """Returns an array as a tensor, images with channels first."""
    if array.ndim != 4:
        return torch.from_numpy(array).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)


def to_float(images: Tensor) -> Tensor:
    """Scales uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def process_of(config: ConfigDict, device: str) -> tuple[Tensor, str]:
    """Returns abar [1000] and the parameterization of a config, as `loss_of` takes them."""
    process = image_process(config)
    return torch.tensor(process.abar, dtype=torch.float32, device=device), process.parameterization


def loss_of(network: nn.Module, abar: Tensor, parameterization: str, images: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Returns the mean loss for given time steps [N] and noise [N, C, H, W]: Eq. 6."""
    x_0, abar_t = to_float(images), abar[t][:, None, None, None]
    signal, noise = abar_t.sqrt(), (1 - abar_t).sqrt()
    target = eps if parameterization == "eps" else signal * eps - noise * x_0  # v
    return functional.mse_loss(network(x_0, signal * x_0 + noise * eps, t), target)


def training_state(config: ConfigDict, network: nn.Module) -> tuple[AveragedModel, torch.optim.Optimizer]:
    """Returns the network with the EMA weights, and the optimizer."""
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema_decay))
    average.n_averaged.fill_(1)  # the first step would otherwise copy the weights
    return average, torch.optim.Adam(network.parameters(), config.train.learning_rate, fused=True)


def train_step(
    network: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    max_grad_norm: float,
    images: Tensor,
    t: Tensor,
    eps: Tensor,
) -> Tensor:
    """Takes a training step for given time steps and noise, in place. Returns the loss."""
    optimizer.zero_grad()
    loss = loss_fn(images, t, eps)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
    optimizer.step()
    average.update_parameters(network)
    return loss.detach()


def draw_and_step(step: Callable[[Tensor, Tensor, Tensor], Tensor], images: Tensor) -> Tensor:
    """Takes a training step with random time steps and noise."""
    t = torch.randint(NUM_TIMESTEPS, (len(images),), device=images.device)
    return step(images, t, torch.randn_like(images, dtype=torch.float32))


def ddim_decode(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, process: Process, num_steps: int) -> Tensor:
    """Decodes x_T to images with DDIM, clipping each predicted x_0.

    Args:
        predict: The network: a function (x_t [N, C, H, W], t [N]) -> eps or v.
        x: x_T, [N, C, H, W].
        process: The diffusion process.
        num_steps: Number of steps.
    """
    t = timesteps(num_steps)
    abar = process.abar[t].tolist()
    for at, now, then in zip(t.tolist()[::-1], abar[::-1], [*abar[-2::-1], 1.0], strict=True):
        signal, noise = math.sqrt(now), math.sqrt(1 - now)
        output = predict(x, torch.full((len(x),), at, device=x.device)).float()
        x_0 = (x - noise * output) / signal if process.parameterization == "eps" else signal * x - noise * output
        x_0 = x_0.clamp(-1, 1)
        eps = (x - signal * x_0) / noise
        x = math.sqrt(then) * x_0 + math.sqrt(1 - then) * eps
    return x
