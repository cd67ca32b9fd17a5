"""The input of evaluation programs: model, models to compare with, images and settings."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from diffae_jax.data.pictures import save_picture, to_pil
from diffae_jax.data.sources import Source, Subset, choose, read
from diffae_jax.data.transforms import to_float
from diffae_jax.data.varied import choose_varied
from diffae_jax.evaluation.chunk_cache import ChunkCache
from diffae_jax.evaluation.networks.feature_spaces import FeatureSpace
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.files import AnyPath

NUM_PICTURES = 12  # images in a row of a picture
CHUNK = 256  # images in a chunk, at most
CHUNK_VALUES = 2**22  # pixel values in a chunk for each device, at most
SMALL = 2**24  # pixel values of a data set that is held in memory for classifiers, at most

Distance = Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "n"]]


class Networks(NamedTuple):
    """The networks of FID and LPIPS, and a note with the reason for each missing network."""

    inception: FeatureSpace | None = None
    lpips: Distance | None = None
    no_inception: tuple[str, ...] = ()
    no_lpips: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """The model, the images, the settings and the output folder of an evaluation."""

    model: DiffAE
    images: Source  # the images to measure: held-out images, if there are any
    training: Source | None  # the training images, if available
    settings: ConfigDict  # config.evaluation
    seed: int
    folder: AnyPath
    cache: ChunkCache
    networks: Networks
    baseline: DiffAE | None = None  # the DDIM baseline, without z
    others: tuple[DiffAE, ...] = ()  # models with a different size of z
    foreign: Source | None = None  # images of a different kind
    images_per_second: float | None = None  # speed of training, if known

    @cached_property
    def chosen(self) -> np.ndarray:
        """The indices of the measured images, at most `num_images` of them."""
        return choose_in_order(self.images, self.settings.num_images, self.seed)

    @property
    def has_z(self) -> bool:
        """Whether the model has a z. A DDIM baseline has none."""
        return self.model.config.model.z_dim is not None

    def chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """Yields the start and the stop of each chunk of `count` images."""
        size = max(1, min(CHUNK, self.model.mesh.size * CHUNK_VALUES // math.prod(self.model.image_shape)))
        for start in range(0, count, size):
            yield start, min(start + size, count)

    def read(self, start: int, stop: int) -> Float[np.ndarray, "n *shape"]:
        """Reads the measured images from `start` to `stop`, in [-1, 1]."""
        return as_float(self.images, self.chosen[start:stop])

    def is_small(self, count: int) -> bool:
        """Whether `count` images fit into memory together."""
        return count * math.prod(self.model.image_shape) <= SMALL

    def write_images(self, first: int, images: Float[np.ndarray, "n *shape"], *folders: str) -> None:
        """Writes generated images as PNG files into nested folders, if `keep_images` is set.

        `first` is the index of the first image, for its file name.
        """
        if not self.settings.keep_images or not is_main_process():
            return
        # folder names contain labels, which may contain any character
        folder = self.folder.joinpath("images", *(quote(name, safe=" ,") for name in folders))
        for i, picture in enumerate(to_pil(images), start=first):
            save_picture(folder / f"{i:06d}.png", picture)


def choose_in_order(images: Source, count: int, seed: int) -> Int[np.ndarray, "n"]:
    """Chooses images at random. Returns their indices.

    The first ones, which pictures show, vary. The others are in random order, because some
    programs measure only a part of the images, and neighbors often share a class.
    """
    chosen = choose(len(images), count, seed)
    first = choose_varied(Subset(images, chosen), NUM_PICTURES)
    others = np.random.default_rng(seed).permutation(np.delete(chosen, first))
    return np.concatenate([chosen[first], others])


def as_float(source: Source, indices: np.ndarray) -> Float[np.ndarray, "n *shape"]:
    """Reads the images of a source with these indices, in [-1, 1]."""
    return to_float(read(source, indices))


def encoded(model: DiffAE, images: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n d"] | None:
    """Returns the z of images, or None for a DDIM baseline. `invert` and `decode` accept both."""
    return None if model.config.model.z_dim is None else model.encode(images)
