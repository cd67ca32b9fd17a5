"""Measures how fast images are read, and whether training steps wait for them.

    python -m benchmarks.data sources    the speed of each kind of source
    python -m benchmarks.data steps      steps of configs/digits.py and configs/ffhq64.py
    python -m benchmarks.data photos     large photographs, with and without DCT scaling
    python -m benchmarks.data files      a folder of many small image files: check, scan and resume
    python -m benchmarks.data            all of these

Most images are crops of two photographs of scikit-learn, written to a temporary folder. Speeds are
per second of processor time, summed over all threads and processes. Other work on the machine
hardly changes them.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil  # a dependency of Orbax
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_sample_images

from configs import digits, ffhq64
from diffae_jax.config import default
from diffae_jax.data.batches import on_devices, training_batches
from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.digits import digits as digit_images
from diffae_jax.data.inspect.scan import RECORD
from diffae_jax.data.run_images import open_data
from diffae_jax.data.sequences import SequenceSource
from diffae_jax.data.sources import Source, TransformedSource
from diffae_jax.data.transforms import Transform, pixels_of, resize_and_crop
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.sharding import make_mesh, split_batch
from diffae_jax.stages.autoencoder import autoencoder_program, describe_images
from diffae_jax.training.program import run_key

SIZE, TARGET = 256, 128  # of the stored images, and of those in a batch
VOLUME, TARGET_VOLUME = (64, 64, 64), (32, 32, 32)
NUM_IMAGES, NUM_VOLUMES = 256, 64
IN_BATCH = 8  # images
AHEAD = 8  # batches that a process reads ahead
SECONDS = 1.5  # of each speed measurement
PHOTO = (4000, 3000)  # width and height
ROUNDS = 3
SMALL, NUM_FOLDERS = (16, 16), 100  # of many small image files


def crops(count: int, size: int) -> np.ndarray:
    """Returns square crops of photographs, [count, size, size, 3]."""
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    images = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (rng.integers(0, have - size + 1) for have in photograph.shape[:2])
        images[i] = photograph[top : top + size, left : left + size]
    return images


def encoded(image: np.ndarray, **settings: Any) -> bytes:
    """Returns the content of an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, **settings)
    return file.getvalue()


def write_folder(folder: Path, images: np.ndarray, suffix: str, **settings: Any) -> Path:
    """Writes a file for each image."""
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i:05d}{suffix}").write_bytes(encoded(image, **settings))
    return folder


def write_hdf5(path: Path, images: np.ndarray) -> Path:
    """Writes one array with a compressed chunk for each image."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset(
            "images", data=images, chunks=(1, *images.shape[1:]), compression="gzip", compression_opts=1
        )
    return path


def write_lmdb(folder: Path, jpegs: list[bytes]) -> Path:
    """Writes encoded images as the official code does."""
    import lmdb

    with lmdb.open(str(folder), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        for i, jpeg in enumerate(jpegs):
            transaction.put(f"{SIZE}-{i:05d}".encode(), jpeg)
        transaction.put(b"length", str(len(jpegs)).encode())
    return folder


def write_zip(path: Path, jpegs: list[bytes]) -> Path:
    """Writes encoded images as StyleGAN and EDM do."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, jpeg in enumerate(jpegs):
            archive.writestr(f"00000/img{i:08d}.jpg", jpeg)
    return path


def write_tar(path: Path, jpegs: list[bytes]) -> Path:
    """Writes encoded images as WebDataset does."""
    with tarfile.open(path, "w") as archive:
        for i, jpeg in enumerate(jpegs):
            entry = tarfile.TarInfo(f"{i:06d}.jpg")
            entry.size = len(jpeg)
            archive.addfile(entry, io.BytesIO(jpeg))
    return path


def write_parquet(path: Path, jpegs: list[bytes]) -> Path:
    """Writes encoded images as Hugging Face does."""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"image": [{"bytes": jpeg, "path": None} for jpeg in jpegs]})
    rows.cast_column("image", datasets.Image()).to_parquet(path)
    return path


def write_tfds(folder: Path, jpegs: Path) -> Path:
    """Prepares a data set of TensorFlow Datasets from image files."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """Pictures without labels."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            return ((path.name, {"image": path}) for path in sorted(jpegs.iterdir()))

    tfds.disable_progress_bar()
    builder = Pictures(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def write_nifti(folder: Path, suffix: str) -> Path:
    """Writes smooth 16-bit volumes, similar to those of scanners."""
    import nibabel

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM_VOLUMES):
        coarse = rng.normal(size=[length // 8 for length in VOLUME])
        smooth = resize_and_crop(np.kron(coarse, np.ones((8, 8, 8)))[..., None], VOLUME)[..., 0]
        values = (1000 + 300 * smooth + rng.normal(0, 10, VOLUME)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{i:05d}{suffix}")
    return folder


def write_zarr(path: Path, images: np.ndarray) -> Path:
    """Writes one array with a compressed chunk for each image."""
    import zarr

    zarr.create_array(path, data=images, chunks=(1, *images.shape[1:]))
    return path


def write_stack(path: Path, images: np.ndarray) -> Path:
    """Writes each image as a page, compressed with zlib."""
    import tifffile

    tifffile.imwrite(path, images, photometric="rgb", compression="zlib")
    return path


def write_dicom(folder: Path, images: np.ndarray) -> Path:
    """Writes a DICOM file with 16-bit gray values for each image, without compression."""
    import pydicom

    folder.mkdir()
    for i, image in enumerate(images):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        dataset.Rows, dataset.Columns = image.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PixelData = (image.astype(np.uint16).sum(axis=-1) * 80).astype(np.uint16).tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / f"{i:05d}.dcm", enforce_file_format=True)
    return folder


def sources(folder: Path) -> Iterator[tuple[str, Source]]:
    """Writes a data set of each kind in turn. Yields its name and its transformed images."""
    images = crops(NUM_IMAGES, SIZE)
    transform = Transform((TARGET, TARGET, 3))

    def opened(path: Path) -> TransformedSource:
        return TransformedSource(open_images(path, transform.image_shape).source, transform)

    jpegs = write_folder(folder / "jpegs", images, ".jpg", format="JPEG", quality=90)
    yield "folder of JPEG", opened(jpegs)
    yield "folder of PNG", opened(write_folder(folder / "pngs", images, ".png", format="PNG"))
    np.save(folder / "images.npy", images)
    yield "npy", opened(folder / "images.npy")
    np.savez(folder / "images.npz", images=images)
    yield "npz, stored", opened(folder / "images.npz")
    yield "HDF5, one image a chunk, gzip", opened(write_hdf5(folder / "images.h5", images))
    yield "Zarr, one image a chunk, zstd", opened(write_zarr(folder / "images.zarr", images))
    yield "TIFF stack, zlib", opened(write_stack(folder / "images.tif", images))
    scans = open_images(write_dicom(folder / "dicom", images), (TARGET, TARGET, 1)).source
    yield "folder of DICOM", TransformedSource(scans, Transform((TARGET, TARGET, 1), intensity=(0.0, 65535.0)))
    contents = [path.read_bytes() for path in sorted(jpegs.iterdir())]
    yield "LMDB of JPEG", opened(write_lmdb(folder / "lmdb", contents))
    yield "TFDS of JPEG", opened(write_tfds(folder / "tfds", jpegs))
    yield "zip of JPEG", opened(write_zip(folder / "images.zip", contents))
    yield "tar of JPEG", opened(write_tar(folder / "images.tar", contents))
    yield "Parquet of JPEG", opened(write_parquet(folder / "images.parquet", contents))
    yield "sequence of arrays", TransformedSource(SequenceSource(images, transform.image_shape), transform)
    for suffix in (".nii", ".nii.gz"):
        source = open_images(write_nifti(folder / f"volumes{suffix}", suffix), (*TARGET_VOLUME, 1)).source
        yield f"folder of {suffix}", TransformedSource(source, Transform((*TARGET_VOLUME, 1), intensity=(0.0, 2000.0)))


def processor_seconds() -> float:
    """Returns the processor time of this process and its children."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(time_of.user + time_of.system for time_of in times)


def speed(images: Source, num_workers: int) -> tuple[float, float]:
    """Returns the images per second of wall time, and per second of processor time."""
    batches = training_batches(images, batch_size=IN_BATCH, seed=0, num_workers=num_workers)
    with contextlib.closing(batches):
        for _ in range((AHEAD + 2) * (1 + num_workers)):  # batches read ahead during startup do not count
            next(batches)
        count, start, processor_start = 0, time.perf_counter(), processor_seconds()
        while time.perf_counter() - start < SECONDS:
            count += len(next(batches)["image"])
        return count / (time.perf_counter() - start), count / (processor_seconds() - processor_start)


def measure_sources(folder: Path) -> None:
    """Prints the speed of each kind of source."""
    print("images per second of processor time (of wall time), with threads, 1 and 2 worker processes")
    for name, images in sources(folder):
        speeds = [speed(images, num_workers) for num_workers in (0, 1, 2)]
        print(f"{name:32}" + "".join(f"{processor:8,.0f} ({wall:6,.0f})" for wall, processor in speeds), flush=True)


def measure_steps(name: str, config: ConfigDict, images: Source, batch_size: int, num_steps: int) -> None:
    """Prints the time of a step that waits for its batch, and of a step that reuses one batch.

    Both alternate in rounds. The batches that are read ahead are used up before each round.
    """
    config.train.batch_size = batch_size
    mesh = make_mesh()
    program, key = autoencoder_program(config, mesh), run_key(0, mesh)
    stream = training_batches(images, batch_size=batch_size, seed=0, flip=config.data.flip)
    batches = on_devices(stream, split_batch(mesh))
    same, state = next(batches), program.init(key)

    def steps(batch_of: Callable[[], Any]) -> tuple[float, float]:
        """Runs a round of steps. Returns the seconds per step, and the part spent on the batch."""
        nonlocal state
        waited, start = 0.0, time.perf_counter()
        for _ in range(num_steps):
            wait_start = time.perf_counter()
            batch = jax.block_until_ready(batch_of())
            waited += time.perf_counter() - wait_start
            state, _ = program.step(state, batch, key)
            jax.block_until_ready(state.step)
        return (time.perf_counter() - start) / num_steps, waited / num_steps

    steps(lambda: same)
    streamed, reused, waits = [], [], []
    with contextlib.closing(stream):
        for _ in range(ROUNDS):
            for _ in range(AHEAD + 2):
                next(batches)
            step, wait = steps(lambda: next(batches))
            streamed.append(step)
            waits.append(wait / step)
            reused.append(steps(lambda: same)[0])
    ratio = statistics.median(a / b for a, b in zip(streamed, reused, strict=True))
    print(
        f"{name}, batches of {batch_size}: {statistics.median(streamed) * 1e3:,.1f} ms per step, "
        f"{statistics.median(reused) * 1e3:,.1f} ms with the same batch, ratio within a round {ratio:.3f}; "
        f"{statistics.median(waits):.2%} of the time is spent waiting",
        flush=True,
    )


def photographs() -> list[bytes]:
    """Returns JPEGs with detail at every scale, similar to those of cameras."""
    rng = np.random.default_rng(0)
    jpegs = []
    for image in load_sample_images().images:
        large = np.asarray(Image.fromarray(image).resize(PHOTO, Image.Resampling.LANCZOS))
        noisy = np.clip(large + rng.normal(0, 6, (*large.shape[:2], 1)), 0, 255)
        jpegs.append(encoded(noisy.astype(np.uint8), format="JPEG", quality=90))
    return jpegs


def scaled_down(jpeg: bytes, target: int, factor: int | None) -> np.ndarray:
    """Returns a scaled and cropped JPEG, decoded at `factor` times the target size or larger.

    Without a factor, the JPEG is decoded at full size.
    """
    with Image.open(io.BytesIO(jpeg)) as image:
        if factor is not None:
            scale = factor * target / min(image.size)
            image.draft(None, tuple(round(length * scale) for length in image.size))
        return resize_and_crop(pixels_of(image), (target, target))


def measure_photos() -> None:
    """Prints the time to read large photographs, and what DCT scaling would save and change."""
    jpegs = photographs()
    print(f"JPEGs of {PHOTO[0]}x{PHOTO[1]}, decoded at a multiple of the target size or larger (-: full size)")
    for target in (128, 256):
        exact = [scaled_down(jpeg, target, None).astype(int) for jpeg in jpegs]
        for factor in (None, 1, 2, 3):
            seconds, images = [], []
            for jpeg in jpegs * 3:
                start = time.process_time()
                images.append(scaled_down(jpeg, target, factor))
                seconds.append(time.process_time() - start)
            differences = np.abs(np.stack(images[: len(jpegs)]) - np.stack(exact))
            print(
                f"{target:4} {factor or '-'} {statistics.median(seconds) * 1e3:6.0f} ms; differences of values: "
                f"mean {differences.mean():.2f}, maximum {differences.max()}"
            )


def write_many(folder: Path, count: int) -> Path:
    """Writes small PNG files, in subfolders. Many have the same content: encoding is slow."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *SMALL, 3), np.uint8)
    contents = [encoded(image, format="PNG") for image in noise]
    for number in range(NUM_FOLDERS):
        below = folder / f"{number:03d}"
        below.mkdir(parents=True)
        for i in range(number * count // NUM_FOLDERS, (number + 1) * count // NUM_FOLDERS):
            (below / f"{i:07d}.png").write_bytes(contents[i % NUM_IMAGES])
    return folder


def start_run(images: str, folder: str) -> None:
    """Does what a run does before it compiles its networks: opens the images and reads a batch."""
    config = default()
    config.data.path, config.image_shape, config.data.held_out_share = images, (*SMALL, 3), 0.02
    training, held_out = open_data(config, Path(folder), begun=(Path(folder) / RECORD).exists())
    describe_images(config, Path(folder), training, held_out)
    with contextlib.closing(training_batches(training, batch_size=64, seed=0)) as batches:
        next(batches)


def measure_files(folder: Path, count: int) -> None:
    """Prints the time and memory to check many image files, and to start and resume a run."""
    images, run = write_many(folder / "images", count), folder / "run"
    run.mkdir()
    start = [sys.executable, "-c", f"from benchmarks.data import start_run; start_run({str(images)!r}, {str(run)!r})"]
    shape = map(str, (*SMALL, 3))
    check = [sys.executable, "-m", "diffae_jax.cli", "data", str(images), "--image-shape", *shape]
    print(f"{count:,} files: seconds, seconds of processor time, and peak memory of each process")
    for name, command in (("first scan of a run", start), ("resumed run", start), ("diffae data", check)):
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{name} failed.")
        seconds = time.perf_counter() - begin
        print(
            f"{name:20} {seconds:7,.1f} {used.ru_utime + used.ru_stime:7,.1f} {used.ru_maxrss / 2**10:7,.0f} MiB",
            flush=True,
        )


def measure_all_steps(folder: Path) -> None:
    """Prints whether training steps of two configs wait for their batches."""
    enable_compilation_cache()
    training, _ = digit_images()
    measure_steps("configs/digits.py", digits.get_config(), TransformedSource(training, Transform((8, 8, 1))), 32, 25)
    config = ffhq64.get_config()
    jpegs = write_folder(folder, crops(NUM_IMAGES, SIZE), ".jpg", format="JPEG", quality=90)
    faces = TransformedSource(open_images(jpegs, config.image_shape).source, Transform(config.image_shape))
    measure_steps("configs/ffhq64.py", config, faces, 1, 1)


def main() -> None:
    """Runs the chosen measurements with images in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", nargs="?", choices=("sources", "steps", "photos", "files"))
    parser.add_argument("--count", type=int, default=100_000, help="image files, for the measurement `files`")
    arguments = parser.parse_args()
    measurement = arguments.measurement
    with tempfile.TemporaryDirectory() as folder:
        if measurement in ("sources", None):
            measure_sources(Path(folder))
        if measurement in ("steps", None):
            measure_all_steps(Path(folder) / "faces")
        if measurement in ("photos", None):
            measure_photos()
        if measurement in ("files", None):
            measure_files(Path(folder), arguments.count)


if __name__ == "__main__":
    main()
