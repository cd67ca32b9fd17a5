"""The images that the page offers: sets of images, and the one that a person chose."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Shaped

from diffae_jax.data.sources import choose, read
from diffae_jax.data.transforms import Transform
from diffae_jax.demo.snippets import Origin, quoted
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.encode_dataset import open_for
from diffae_jax.inference.inputs import as_images
from diffae_jax.pretrained import examples
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import counted
from diffae_jax.runtime.files import AnyPath

MOST_IMAGES = 500  # of a set; the page draws a point for each
MOST_SET_BYTES = 2**28  # of the images of a set
ENCODE_BATCH = 32
WHERE = "# copy the uploaded files into the current folder, under the names below"
OPEN_FOR = "from diffae_jax.inference.encode_dataset import open_for"


@dataclasses.dataclass(frozen=True)
class ChosenImage:
    """One image, as the model takes it.

    Attributes:
        image: [*spatial, C], uint8, or float32 in [-1, 1].
        name: its name, for the page.
        origin: how code gets the image.
    """

    image: Shaped[np.ndarray, "*shape"]
    name: str
    origin: Origin

    @cached_property
    def digest(self) -> bytes:
        """A hash of the values."""
        return hashlib.sha256(np.ascontiguousarray(self.image)).digest()


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images, as the model takes them, with their z.

    Attributes:
        images: [N, *spatial, C], uint8, or float32 in [-1, 1].
        names: a name for each image.
        origins: how code gets each image.
        labels: by label name, an array with one value for each image.
        z: the latent codes, [N, D]; None for a DDIM baseline.
        origin: how code gets all images.
        note: what to say about the set, such as what was skipped.
    """

    images: Shaped[np.ndarray, "n *shape"]
    names: Sequence[str]
    origins: Sequence[Origin]
    labels: Mapping[str, np.ndarray]
    z: Float[np.ndarray, "n d"] | None
    origin: Origin
    note: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def at(self, index: int) -> ChosenImage:
        """Returns one of the images."""
        return ChosenImage(self.images[index], self.names[index], self.origins[index])

    def origin_of(self, rows: Iterable[int]) -> Origin:
        """Returns how code gets some of the images."""
        origins = [self.origins[row] for row in rows]
        expression = f"[{', '.join(origin.expression for origin in origins)}]"
        return Origin(expression, origins[0].setup, origins[0].imported)


def most_images(transform: Transform) -> int:
    """Returns how many images a set may have, as the transform of a model returns them."""
    num_bytes = math.prod(transform.image_shape) * np.dtype(transform.dtype).itemsize
    return max(1, min(MOST_IMAGES, MOST_SET_BYTES // num_bytes))


def distinct(names: Sequence[str]) -> list[str]:
    """Returns names of files. Equal names get numbers, such as a.png, a-2.png and a-3.png."""
    given: dict[str, None] = {}
    for name in names:
        stem, dot, suffix = name.partition(".")
        others = (f"{stem}-{number}{dot}{suffix}" for number in itertools.count(2))
        given[next(each for each in itertools.chain([name], others) if each not in given)] = None
    return list(given)


def uploaded_set(
    images: Shaped[np.ndarray, "n *shape"], names: Sequence[str], z: Float[np.ndarray, "n d"], note: str
) -> ImageSet:
    """Returns a set of images that were uploaded, whose names differ."""
    everything = Origin(f"[{', '.join(map(quoted, names))}]", WHERE)
    return ImageSet(images, names, list(map(uploaded_file, names)), {}, z, everything, note)


def uploaded_file(name: str) -> Origin:
    """Returns how code gets an uploaded image, from a file in the current folder."""
    return Origin(f"open_for(model, {quoted(name)})[0]", WHERE, (OPEN_FOR,))


def shipped_images(model: DiffAE, name: str) -> ImageSet:
    """Returns the example images that ship with a model of that name."""
    shipped = examples(name)
    images, _ = as_images(shipped.images, model.transform)
    setup, imported = f"images = examples({quoted(name)}).images", ("from diffae_jax.pretrained import examples",)
    origins = [Origin(f"images[{i}]", setup, imported) for i in range(len(images))]
    names = [f"image {i}" for i in range(len(images))]
    return ImageSet(images, names, origins, shipped.labels, encode(model, images), Origin("images", setup, imported))


def no_images(model: DiffAE) -> ImageSet:
    """Returns a set without images, for a model that comes without examples."""
    z_dim = model.config.model.z_dim
    images = np.zeros((0, *model.image_shape), model.transform.dtype)
    return ImageSet(images, [], [], {}, None if z_dim is None else np.zeros((0, z_dim), np.float32), Origin("[]"))


def images_at(model: DiffAE, path: str | AnyPath) -> ImageSet:
    """Reads and encodes the images at a path, at most `most_images` of them, chosen at random.

    Raises UserError if there are no images, or if the model cannot take them.
    """
    source = open_for(model, path)
    most = most_images(model.transform)
    rows = choose(len(source), most, seed=0)
    if len(rows) < len(source):
        say(f"The page shows {len(rows):,} of {counted(len(source), 'image')}, chosen at random.")
    images = read(source, rows)
    setup = f"source = open_for(model, {quoted(str(path))})"
    origins = [Origin(f"source[{row}]", setup, (OPEN_FOR,)) for row in rows]
    everything = Origin(
        f"read(source, choose(len(source), {most}, seed=0))",
        setup,
        (OPEN_FOR, "from diffae_jax.data.sources import choose, read"),
    )
    labels = {name: values[rows] for name, values in source.labels.items()}
    say(f"Encoding {counted(len(rows), 'image')}.")
    names = [source.ids[row] for row in rows]
    return ImageSet(images, names, origins, labels, encode(model, images), everything)


def encode(model: DiffAE, images: Shaped[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n d"] | None:
    """Returns the z of images, or None for a DDIM baseline.

    All batches have the same size, so that the encoder is compiled once.
    """
    if model.config.model.z_dim is None:
        return None
    z = []
    for start in range(0, len(images), ENCODE_BATCH):
        rows = np.minimum(np.arange(start, start + ENCODE_BATCH), len(images) - 1)
        z.append(model.encode(images[rows]))
    return np.concatenate(z)[: len(images)]
