"""What the programs of an evaluation are given: the model, the models to compare it with, images, settings."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffae_jax.data.pictures import to_pil
from diffae_jax.data.sources import Source, choose, read
from diffae_jax.data.transforms import to_float
from diffae_jax.evaluation.chunk_cache import ChunkCache
from diffae_jax.evaluation.networks.feature_spaces import FeatureSpace
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.files import atomic_write

NUM_PICTURES = 12  # images in a row of a picture
CHUNK = 256  # images in memory at a time, fewer of large ones:
CHUNK_VALUES = 2**22  # so many values together, for each device
SMALL = 2**24  # values of all images, up to which they are held in memory for classifiers

Distance = Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "n"]]


class Networks(NamedTuple):
    """What FID and LPIPS are measured with, where it is at hand; a sentence where it is not: why, and how to get it."""

    inception: FeatureSpace | None = None
    lpips: Distance | None = None
    no_inception: tuple[str, ...] = ()
    no_lpips: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """What is measured, on what, and where the results go."""

    model: DiffAE
    images: Source  # what is measured: held out, where there are such
    training: Source | None  # what the model was trained on, where it is at hand
    settings: ConfigDict  # config.evaluation
    seed: int
    folder: Path
    cache: ChunkCache
    networks: Networks
    baseline: DiffAE | None = None  # the DDIM without z
    others: tuple[DiffAE, ...] = ()  # with a z of another size
    foreign: Source | None = None  # images of another kind
    images_per_second: float | None = None  # of training, where that is known

    @cached_property
    def chosen(self) -> np.ndarray:
        """The numbers of the images that are measured, at most `num_images` of them."""
        return choose(len(self.images), self.settings.num_images, self.seed)

    @property
    def has_z(self) -> bool:
        """Whether the model is no DDIM baseline."""
        return self.model.config.model.z_dim is not None

    def chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """Yields from and to which number so many images are worked on at a time."""
        size = max(1, min(CHUNK, self.model.mesh.size * CHUNK_VALUES // math.prod(self.model.image_shape)))
        for start in range(0, count, size):
            yield start, min(start + size, count)

    def read(self, start: int, stop: int) -> Float[np.ndarray, "n *shape"]:
        """Reads the measured images from one number to another."""
        return as_float(self.images, self.chosen[start:stop])

    def is_small(self, count: int) -> bool:
        """Whether so many images may be held in memory together."""
        return count * math.prod(self.model.image_shape) <= SMALL

    def keep_images(self, first: int, images: Float[np.ndarray, "n *shape"], *folders: str) -> None:
        """Writes generated images as PNG files into folders of these names, where that is asked for."""
        if not self.settings.keep_images or not is_main_process():
            return
        folder = self.folder.joinpath("images", *(quote(name, safe=" ,") for name in folders))  # labels are names, too
        for i, picture in enumerate(to_pil(images), start=first):
            with atomic_write(folder / f"{i:06d}.png") as scratch:
                picture.save(scratch)


def as_float(source: Source, numbers: np.ndarray) -> Float[np.ndarray, "n *shape"]:
    """Reads some images of a source, in [-1, 1]."""
    return to_float(read(source, numbers))


def encoded(model: DiffAE, images: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n d"] | None:
    """Returns z of images, as `invert` and `decode` take it; a DDIM baseline has none."""
    return None if model.config.model.z_dim is None else model.encode(images)
