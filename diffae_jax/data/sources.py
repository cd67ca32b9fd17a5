"""Sources of images: random-access sequences of uint8 arrays with ids and labels."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from tqdm import tqdm

from diffae_jax.data.labels import read_labels
from diffae_jax.data.transforms import check_picture_shape, resize_and_crop
from diffae_jax.errors import UserError, name_some, shown

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DIGITS_SHAPE = (8, 8, 1)
DIGITS_HELD_OUT = 360  # the last fifth: other writers than the first four


@runtime_checkable
class Source(Protocol):
    """A sequence of uint8 images [*spatial, C]."""

    ids: Sequence[str]
    labels: Mapping[str, np.ndarray]  # one value an image, by name; missing ones are NaN or ""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images that lie in memory: `images` uint8 [N, *spatial, C]."""

    images: np.ndarray
    ids: Sequence[str]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files of any size, each resized and cropped to `image_shape` when it is read."""

    root: Path
    ids: Sequence[str]  # paths below root
    image_shape: tuple[int, int, int]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image. Raises UserError with the path of a file that cannot be read or is too small."""
        path = self.root / self.ids[index]
        with told_image(path), Image.open(path) as image:
            return resize_and_crop(image, self.image_shape)

    def size(self, index: int) -> tuple[int, int]:
        """Returns width and height of the image as the file has it. Raises UserError as reading it does."""
        path = self.root / self.ids[index]
        with told_image(path), Image.open(path) as image:
            return image.size


@contextlib.contextmanager
def told_image(name: str | Path) -> Iterator[None]:
    """Turns what Pillow says about an image file into a UserError with its name."""
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be read as an image ({shown(str(error))}): repair or remove it.") from error


def open_sources(
    kind: str, *, path: str, image_shape: tuple[int, ...], held_out_share: float, labels: str = ""
) -> tuple[Source, Source]:
    """Returns the training and the held-out images of a data set, with the labels of a table where one is named.

    Raises UserError with what is wrong with it.
    """
    if kind == "folder":
        if not path:
            raise UserError("No images were named: give their folder with --config.data.path=FOLDER.")
        return folder(path, image_shape, held_out_share, labels)
    if kind != "digits":
        raise UserError(f'data.kind must be "folder" or "digits", not "{kind}".')
    if labels:
        raise UserError("The digits have labels of their own: leave out --config.data.labels.")
    return digits(image_shape)


def digits(image_shape: tuple[int, ...] = DIGITS_SHAPE) -> tuple[Arrays, Arrays]:
    """Returns the 1,797 scanned digits of scikit-learn, 8x8x1, for training and, by other writers, held out.

    Raises UserError where they are to have another shape.
    """
    if tuple(image_shape) != DIGITS_SHAPE:
        raise UserError(f"The digits have image_shape={DIGITS_SHAPE}, not {tuple(image_shape)}.")
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    ids = [f"digit-{i:04d}" for i in range(len(images))]
    first = len(images) - DIGITS_HELD_OUT
    return (
        Arrays(images[:first], ids[:first], {"digit": data.target[:first]}),
        Arrays(images[first:], ids[first:], {"digit": data.target[first:]}),
    )


def folder(path: str, image_shape: tuple[int, ...], held_out_share: float, labels: str = "") -> tuple[Files, Files]:
    """Returns the images below a folder, the held-out ones chosen by a hash of their names.

    So an image stays on its side when others come or go. Raises UserError where the folder is missing or
    empty, for names that are not UTF-8, and for labels that are not of its images.
    """
    if not path:
        raise UserError("No images were named: give their folder.")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{path} is not a folder: give the folder of your images.")
    check_picture_shape(image_shape)
    ids = sorted(
        str((Path(parent) / name).relative_to(root))
        for parent, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and "/." not in f"/{(Path(parent) / name).relative_to(root)}"
    )
    if not ids:
        raise UserError(f"{path} holds no image files ({', '.join(IMAGE_SUFFIXES)}), nor do the folders in it.")
    check_names(ids)
    columns = read_labels(labels).of(ids) if labels else {}
    is_held_out = np.array([hash_share(name) < held_out_share for name in ids])

    def part(is_in):
        names = [name for name, is_here in zip(ids, is_in, strict=True) if is_here]
        return Files(root, names, tuple(image_shape), {name: values[is_in] for name, values in columns.items()})

    return part(~is_held_out), part(is_held_out)


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for names of files that are not UTF-8: hashes and tables of ids take nothing else."""
    bad = [name for name in names if any("\ud800" <= char <= "\udfff" for char in name)]
    if bad:
        raise UserError(
            f"{len(bad):,} of {len(names):,} images have names that are not UTF-8 ({name_some(bad)}): rename them."
        )


def hash_share(name: str) -> float:
    """Returns a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def fingerprint(*sources: Files) -> str:
    """Returns a hash of the names and sizes of all files of some sources: a copy of a folder has that of the folder."""
    digest = hashlib.sha256()
    for source in sources:
        for name in source.ids:
            digest.update(f"{name}\0{(source.root / name).stat().st_size}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def check_files(source: Files, show_progress: bool) -> None:
    """Reads every image once, so that a bad one is met before training. Raises UserError with the first bad path."""
    with ThreadPoolExecutor() as pool:
        reads = pool.map(lambda i: source[i] is None, range(len(source)))
        for _ in tqdm(reads, "checking images", len(source), unit=" images", disable=not show_progress, leave=False):
            pass


def choose(num_images: int, count: int, seed: int) -> np.ndarray:
    """Returns the numbers of at most `count` images, in order, chosen at random: neighbours may be of one kind."""
    if num_images <= count:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(seed).choice(num_images, count, replace=False))


def read(images: Source, numbers: Iterable[int] | Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n *shape"]:
    """Reads some images of a source."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(images.__getitem__, map(int, numbers))))
