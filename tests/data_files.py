"""Data sets of each kind that is read, made of arrays."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import lmdb
import nibabel
import numpy as np
from PIL import Image

COUNT = 12
SHAPE = (8, 10, 3)


def noise(*shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, np.dtype(dtype).newbyteorder("="), endpoint=True).astype(dtype)


def png(image, kind="png", **settings):
    """Returns an encoded image."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(image).squeeze()).save(file, kind, **settings)
    return file.getvalue()


def save_bomb(path):
    """Writes a small PNG that claims to have more pixels than may be read."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**16, 2**15, 8, 0, 0, 0, 0)
    parts = header, b"IDAT" + zlib.compress(bytes(100))
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def make_folder(path, images):
    for i, image in enumerate(images):
        file = path / "images" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return path / "images"


def make_npy(path, images):
    np.save(path / "images.npy", images)
    return path / "images.npy"


def make_npz(path, images):
    np.savez(path / "images.npz", images)
    return path / "images.npz"


def make_packed_npz(path, images):
    np.savez_compressed(path / "images.npz", images)
    return path / "images.npz"


def make_hdf5(path, images, **settings):
    with h5py.File(path / "images.h5", "w") as file:
        file.create_dataset("images", data=images, **settings)
    return path / "images.h5"


def make_chunked_hdf5(path, images):
    return make_hdf5(path, images, chunks=(2, *images.shape[1:]), compression="gzip")


def make_lmdb(path, images, resolution="8", digits=5):
    return make_keys(
        path / "images.lmdb",
        {f"{resolution}-{i:0{digits}d}": png(image) for i, image in enumerate(images)}
        | {"length": str(len(images)).encode()},
    )


def make_keys(path, content):
    """Writes a folder of LMDB."""
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in content.items():
            transaction.put(key.encode(), value)
    return path


def make_volumes(path, images):
    (path / "volumes").mkdir()
    for i, image in enumerate(images):
        np.save(path / "volumes" / f"{i:02d}.npy", image)
    return path / "volumes"


def make_nifti(path, images):
    """Writes images [N, H, W, C] as the volumes of a folder."""
    (path / "volumes").mkdir()
    for i, image in enumerate(images):
        save_nifti(path / "volumes" / f"{i:02d}.nii{'.gz' if i % 2 else ''}", image)
    return path / "volumes"


def save_nifti(path, volume, affine=None):
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path


def make_tfds(path, images, **settings):
    return prepare_tfds(path, {"train": images}, **settings)


def prepare_tfds(path, splits, features=None, examples=None, file_format="array_record", name="Made"):
    """Prepares a data set of TensorFlow Datasets without TensorFlow, from encoded images.

    `examples(i)` returns the features of image i that are not pictures.
    """
    import tensorflow_datasets as tfds

    made = {"image": tfds.features.Image(shape=(None, None, 3))} if features is None else features(tfds)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(made), disable_shuffling=True)

    def _split_generators(self, manager):
        return {split: self._generate_examples(images) for split, images in splits.items()}

    def _generate_examples(self, images):
        for i, image in enumerate(images):
            pictures = {name: io.BytesIO(png(image)) for name in made if isinstance(made[name], tfds.features.Image)}
            yield i, pictures | (examples(i) if examples else {})

    body = dict(_info=_info, _split_generators=_split_generators, _generate_examples=_generate_examples)
    with tfds.core.registered.skip_registration():
        kind = type(name, (tfds.core.GeneratorBasedBuilder,), body | {"VERSION": tfds.core.Version("1.0.0")})
    builder = kind(data_dir=path, file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_path)


def make_zip(path, entries, **settings):
    """Writes a zip of npy files under any names."""
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, array in entries:
            archive.writestr(name, npy(array))
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


MAKERS = {
    "folder": make_folder,
    "npy": make_npy,
    "npz": make_npz,
    "packed npz": make_packed_npz,
    "HDF5": make_hdf5,
    "chunked HDF5": make_chunked_hdf5,
    "LMDB": make_lmdb,
    "TFDS": make_tfds,
    "volumes": make_volumes,
    "NIfTI": make_nifti,
}
