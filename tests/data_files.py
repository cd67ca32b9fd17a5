"""Data sets of each kind that is read, made of arrays."""

import contextlib
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
import lmdb
import nibabel
import numpy as np
import pydicom
import tifffile
import zarr
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


def make_image_zip(path, images):
    return write_zip(path / "images.zip", {f"images/{i:02d}.png": png(image) for i, image in enumerate(images)})


def write_zip(path, files, **settings):
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, images):
    return write_tar(path / "images.tar", {f"{i:02d}.png": png(image) for i, image in enumerate(images)})


def make_shards(path, images):
    """Writes shards of 5 images as WebDataset does."""
    (path / "shards").mkdir()
    for first in range(0, len(images), 5):
        files = {f"{i:04d}.png": png(images[i]) for i in range(first, min(first + 5, len(images)))}
        write_tar(path / "shards" / f"{first // 5:06d}.tar", files)
    return path / "shards"


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def make_parquet(path, images):
    return save_parquet(path, huggingface_rows(images))


def save_parquet(path, rows, name="images.parquet"):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        rows.to_parquet(path / name)
    return path / name


def make_arrow(path, images):
    """Writes a folder of two Arrow files."""
    return save_to_disk(path / "images", huggingface_rows(images), num_shards=2)


def save_to_disk(path, rows, **settings):
    with contextlib.redirect_stderr(io.StringIO()):
        rows.save_to_disk(path, **settings)
    return path


def huggingface_rows(images, features=(), name="image", **columns):
    """Returns a data set of Hugging Face. Columns without a feature have an inferred type."""
    import datasets

    made = datasets.Dataset.from_dict({name: [{"bytes": png(image), "path": None} for image in images], **columns})
    for column, feature in {name: datasets.Image(), **dict(features)}.items():
        made = made.cast_column(column, feature)
    return made


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


def make_hdf5_files(path, images):
    """Writes one HDF5 file for each image."""
    (path / "images").mkdir()
    for i, image in enumerate(images):
        with h5py.File(path / "images" / f"{i:02d}.h5", "w") as file:
            file["image"] = image
    return path / "images"


def make_zarr(path, images, name="images.zarr", **settings):
    """Writes images as the only array of a store, with one chunk per image."""
    chunks = (1, *images.shape[1:])
    zarr.create_array(path / name, data=np.asarray(images), **{"chunks": chunks} | settings)
    return path / name


def make_old_zarr(path, images):
    return make_zarr(path, images, zarr_format=2)


def make_zipped_zarr(path, images):
    with zipfile.ZipFile(path / "images.zarr.zip", "w") as archive:
        folder = make_zarr(path, images, "unpacked")
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path / "images.zarr.zip"


def make_tiff_stack(path, images, name="images.tif", **settings):
    """Writes images as the pages of a file."""
    settings = {"photometric": "rgb" if images.shape[-1] == 3 else "minisblack"} | settings
    tifffile.imwrite(path / name, images, **settings)
    return path / name


def make_dicom(path, images, **tags):
    """Writes a DICOM file for each image, [h, w, 3] or [h, w]."""
    (path / "dicom").mkdir(exist_ok=True)
    for i, image in enumerate(images):
        save_dicom(path / "dicom" / f"{i:02d}.dcm", image, **{name: values[i] for name, values in tags.items()})
    return path / "dicom"


def save_dicom(path, pixels, syntax=None, encoded=None, **tags):
    """Writes pixels [h, w], [h, w, 3] or, with `NumberOfFrames`, several frames as DICOM."""
    pixels = np.asarray(pixels)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    is_color = pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if is_color else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    if encoded is None:
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset["PixelData"].VR = "OW"
    else:
        dataset.PixelData = pydicom.encaps.encapsulate(encoded)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_series(folder, volume, series="1.2.3", spacing=2.0, **tags):
    """Writes the slices of a volume [slices, h, w] as DICOM files, the last one first."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(volume):
        place = dict(ImagePositionPatient=[-10, 5, 100 + spacing * i], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        name = folder / f"{len(volume) - i:02d}.dcm"
        save_dicom(name, pixels, SeriesInstanceUID=series, InstanceNumber=i + 1, **place | tags)
    return folder


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
    "zip": make_image_zip,
    "tar": make_tar,
    "tar shards": make_shards,
    "Parquet": make_parquet,
    "Arrow": make_arrow,
    "volumes": make_volumes,
    "NIfTI": make_nifti,
    "HDF5 files": make_hdf5_files,
    "Zarr": make_zarr,
    "old Zarr": make_old_zarr,
    "zipped Zarr": make_zipped_zarr,
    "TIFF stack": make_tiff_stack,
    "DICOM": make_dicom,
}
