"""Small data sets, one in each format, each with a label of every image where its format has room for it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lmdb
import nibabel
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

COUNT = 40  # images; of a batch of 16 they are two and a half
KINDS = np.arange(COUNT) % 2  # the label: what is right of the middle is bright


def pictures(*size: int) -> np.ndarray:
    """Noise of uint8 [COUNT, *size, 1], whose last half of the last axis is brighter where the label is 1."""
    images = np.random.default_rng(0).integers(0, 128, (COUNT, *size, 1), dtype=np.uint8)
    images[KINDS == 1, ..., size[-1] // 2 :, :] += 100
    return images


def encoded(image: np.ndarray, kind: str) -> bytes:
    """A grey image as the content of a file."""
    content = io.BytesIO()
    Image.fromarray(image[..., 0]).save(content, kind, quality=95)
    return content.getvalue()


def folder(path: Path) -> Path:
    """Image files in subfolders, a folder for each label."""
    for i, image in enumerate(pictures(10, 12)):
        file = path / "images" / ["dark", "light"][KINDS[i]] / f"{i}.{['png', 'bmp', 'webp', 'tif'][i % 4]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    return path / "images"


def npy(path: Path) -> Path:
    """An npy without an axis of channels."""
    np.save(path / "images.npy", pictures(8, 8)[..., 0])
    return path / "images.npy"


def npz(path: Path) -> Path:
    """Images and labels as np.savez writes them."""
    np.savez(path / "images.npz", images=pictures(8, 8), kind=KINDS)
    return path / "images.npz"


def hdf5(path: Path) -> Path:
    """Images and labels in HDF5, in chunks."""
    with h5py.File(path / "images.h5", "w") as file:
        file.create_dataset("x", data=pictures(8, 8), chunks=(4, 8, 8, 1), compression="gzip")
        file["kind"] = KINDS
    return path / "images.h5"


def official_lmdb(path: Path) -> Path:
    """The layout of the official code."""
    with lmdb.open(str(path / "images.lmdb"), map_size=2**24) as environment, environment.begin(write=True) as writer:
        for i, image in enumerate(pictures(12, 12)):
            writer.put(f"12-{i:05d}".encode(), encoded(image, "jpeg"))
        writer.put(b"length", str(COUNT).encode())
    return path / "images.lmdb"


class Shapes(tfds.core.GeneratorBasedBuilder):
    """A data set of TensorFlow Datasets that is made without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = tfds.features.ClassLabel(names=["dark", "light"])
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "kind": names}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, image in enumerate(pictures(8, 8)):
            yield i, {"image": encoded(image, "png"), "kind": int(KINDS[i])}  # to encode arrays it takes TensorFlow


def tfds_folder(path: Path) -> Path:
    """What TensorFlow Datasets prepares."""
    builder = Shapes(data_dir=path, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def nifti(path: Path) -> Path:
    """Volumes of 16 bits, packed."""
    (path / "scans").mkdir()
    for i, volume in enumerate(pictures(10, 10, 10)):
        image = nibabel.Nifti1Image(volume[..., 0].astype(np.int16) * 8 - 1000, np.eye(4))
        nibabel.save(image, path / "scans" / f"scan{i:02d}.nii.gz")
    return path / "scans"


def volumes(path: Path) -> Path:
    """Volumes as an npy each."""
    (path / "volumes").mkdir()
    for i, volume in enumerate(pictures(10, 10, 10)):
        np.save(path / "volumes" / f"{i:02d}.npy", volume[..., 0] / np.float32(255))
    return path / "volumes"


def signals(path: Path) -> Path:
    """Signals of one axis and two channels, which come first, as float64."""
    np.save(path / "signals.npy", np.moveaxis(np.repeat(pictures(24) / 100.0 - 0.7, 2, axis=-1), 2, 1))
    return path / "signals.npy"


MAKERS: dict[str, tuple[Callable[[Path], Any], tuple[int, ...], str]] = {  # and image_shape, and data.labels
    "folder": (folder, (8, 8, 1), "folders"),
    "npy": (npy, (8, 8, 1), ""),
    "npz": (npz, (8, 8, 1), ""),
    "hdf5": (hdf5, (8, 8, 1), ""),
    "lmdb": (official_lmdb, (8, 8, 1), ""),
    "tfds": (tfds_folder, (8, 8, 1), ""),
    "nifti": (nifti, (8, 8, 8, 1), ""),
    "volumes": (volumes, (8, 8, 8, 1), ""),
    "signals": (signals, (24, 2), ""),
    "digits": (lambda path: "digits", (8, 8, 1), ""),
}
