"""Error, network calls and time of inversions and samplers, for each number of steps."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffae_jax.diffusion.samplers import SAMPLERS
from diffae_jax.evaluation.metrics import mse
from diffae_jax.evaluation.study import encoded
from diffae_jax.inference.diffae import DiffAE

Images = Float[np.ndarray, "n *shape"]


class Choice(NamedTuple):
    """A way to decode, or to invert and decode: names in `INVERSIONS`, `SAMPLERS` and `GRIDS`.

    Attributes:
        sampler: the sampler of images.
        grid: the time steps, in both directions.
        inversion: the method of inversion; None: only decoding.
    """

    sampler: str
    grid: str
    inversion: str | None = None

    @property
    def name(self) -> str:
        """The name in tables and pictures, such as "exact, quadratic"."""
        names = [self.inversion, self.sampler, self.grid]
        if self.inversion in ("ddim", "exact") and self.sampler == "ddim":
            names.remove("ddim" if self.inversion == "exact" else self.sampler)
        return ", ".join(filter(None, names))


RECONSTRUCTIONS = (
    Choice("ddim", "even", "ddim"),
    Choice("ddim", "quadratic", "ddim"),
    Choice("ddim", "even", "exact"),
    Choice("ddim", "quadratic", "exact"),
    Choice("heun", "quadratic", "gaussian"),
    Choice("dpmpp_2m", "quadratic", "gaussian"),
)
DECODINGS = (
    Choice("ddim", "even"),
    Choice("ddim", "quadratic"),
    Choice("dpmpp_2m", "log_snr"),
    Choice("dpmpp_2m", "quadratic"),
    Choice("heun", "quadratic"),
)
TARGET = Choice("heun", "quadratic")  # approximates the exact solution
NUM_TARGET_STEPS = 100
NUM_FRAMES = 8  # of an interpolation


class Point(NamedTuple):
    """What a choice reaches with a number of steps.

    Attributes:
        choice: the choice.
        num_steps: the steps, in each direction.
        errors: the mean squared error of each image, on the scale [0, 1], [N].
        num_calls: the network calls of each image, in both directions, [N].
        seconds: the time of an image after compilation, as a mean over the images.
        images: the decoded images, [N, *spatial, C].
        x_T: the inverted codes, [N, *spatial, C]; None without inversion.
    """

    choice: Choice
    num_steps: int
    errors: Float[np.ndarray, "n"]
    num_calls: Int[np.ndarray, "n"]
    seconds: float
    images: Images
    x_T: Images | None


def reconstruction(model: DiffAE, x_0: Images, choice: Choice, num_steps: int) -> Point:
    """Inverts and decodes images, and compares the results with the images.

    Args:
        model: the model.
        x_0: images in [-1, 1], [N, *spatial, C].
        choice: the inversion, sampler and grid.
        num_steps: the steps in each direction.

    Returns:
        The point. Its time leaves out encoding.
    """
    z, settings = encoded(model, x_0), dict(sampler=choice.sampler, grid=choice.grid)

    def both_ways():
        inversion = model.invert_with_report(x_0, z, num_steps, method=choice.inversion, grid=choice.grid)
        return inversion, model.decode(z, inversion.x_T, num_steps, **settings)

    (inversion, decoded), seconds = _timed(both_ways)
    num_calls = inversion.num_calls + calls_of_decoding(choice, num_steps)
    return Point(choice, num_steps, mse(decoded, x_0), num_calls, seconds / len(x_0), decoded, inversion.x_T)


def decoding(
    model: DiffAE, z: Float[np.ndarray, "n d"] | None, x_T: Images, target: Images, choice: Choice, num_steps: int
) -> Point:
    """Decodes codes, and compares the images with a target, such as `exact_decoding` returns.

    Args:
        model: the model.
        z: latent codes, [N, D]; None for a DDIM baseline.
        x_T: stochastic codes, [N, *spatial, C].
        target: the images to compare with, [N, *spatial, C].
        choice: the sampler and grid.
        num_steps: the steps.
    """
    images, seconds = _timed(lambda: model.decode(z, x_T, num_steps, sampler=choice.sampler, grid=choice.grid))
    num_calls = np.full(len(images), calls_of_decoding(choice, num_steps))
    return Point(choice, num_steps, mse(images, target), num_calls, seconds / len(images), images, None)


def exact_decoding(model: DiffAE, z: Float[np.ndarray, "n d"] | None, x_T: Images) -> Images:
    """Decodes with `NUM_TARGET_STEPS` steps of `TARGET`, which approximates the exact solution."""
    return model.decode(z, x_T, NUM_TARGET_STEPS, sampler=TARGET.sampler, grid=TARGET.grid)


def jumps(
    model: DiffAE, z: Float[np.ndarray, "n d"] | None, x_T: Images, choice: Choice, num_steps: int
) -> Float[np.ndarray, "pairs"]:
    """Measures how evenly an interpolation changes: 1 if all its frames are equally far apart.

    Args:
        model: the model.
        z: latent codes, [N, D]; None for a DDIM baseline. Each pair of neighbors is a path.
        x_T: their stochastic codes, [N, *spatial, C].
        choice: the sampler and grid.
        num_steps: the steps.

    Returns:
        The largest distance between neighboring frames divided by the mean one, for as many pairs
        as have N frames together. Compiled functions for N images are used again.
    """
    num_pairs = max(1, len(x_T) // NUM_FRAMES)
    paths = [model.path(None if z is None else z[[i, i + 1]], x_T[[i, i + 1]], NUM_FRAMES) for i in range(num_pairs)]
    codes, noise = (None if part[0] is None else np.concatenate(part) for part in zip(*paths, strict=True))
    frames = model.decode(codes, noise, num_steps, sampler=choice.sampler, grid=choice.grid)
    changes = np.diff(frames.reshape(num_pairs, NUM_FRAMES, -1), axis=1)
    distances = np.sqrt(np.square(changes).mean(-1))
    return distances.max(1) / distances.mean(1)


def calls_of_decoding(choice: Choice, num_steps: int) -> int:
    """Returns the network calls with which a choice decodes an image."""
    return SAMPLERS[choice.sampler].num_calls(num_steps)


def _timed(call: Callable):
    """Returns the result of a call and the seconds that it takes after compilation."""
    call()
    began = time.perf_counter()
    result = call()  # returns arrays on the host, so it has waited for the devices
    return result, time.perf_counter() - began
