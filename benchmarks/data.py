"""Measures how fast images come from their files to training, and whether a training step waits for them.

python -m benchmarks.data sources    how fast every kind of source is
python -m benchmarks.data steps      the steps of configs/digits.py and configs/ffhq64.py
python -m benchmarks.data photos     photographs many times larger than wanted, with and without DCT scaling
python -m benchmarks.data            all of these

The images are crops of the photographs of scikit-learn, written into a temporary folder. Seconds are those of the
processor, over all threads and processes: other work on the machine counts little, and a core of one's own has one.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil  # of Orbax
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_sample_images

from configs import digits, ffhq64
from diffae_jax.data.batches import on_devices, training_batches
from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.digits import digits as digit_images
from diffae_jax.data.sources import SequenceSource, Source, TransformedSource
from diffae_jax.data.transforms import Transform, pixels_of, resize_and_crop
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.sharding import make_mesh, split_batch
from diffae_jax.stages.autoencoder import autoencoder_program
from diffae_jax.training.program import run_key

SIZE, WANTED = 256, 128  # of the stored images and of those in a batch
VOLUME, WANTED_VOLUME = (64, 64, 64), (32, 32, 32)
NUM_IMAGES, NUM_VOLUMES = 256, 64
IN_BATCH = 8  # images
AHEAD = 8  # batches that a process reads ahead
SECONDS = 1.5  # for which each speed is measured
PHOTO = (4000, 3000)  # width and height
ROUNDS = 3


def crops(count: int, size: int) -> np.ndarray:
    """Returns squares [count, size, size, 3] cut out of photographs."""
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    images = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (rng.integers(0, have - size + 1) for have in photograph.shape[:2])
        images[i] = photograph[top : top + size, left : left + size]
    return images


def encoded(image: np.ndarray, **settings: Any) -> bytes:
    """Returns an image as the content of a file."""
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
    """Writes one array, each image a compressed chunk."""
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


def write_tfds(folder: Path, jpegs: Path) -> Path:
    """Prepares a data set of TensorFlow Datasets from image files."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """Pictures alone."""

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
    """Writes smooth volumes of 16 bits, as scanners do."""
    import nibabel

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM_VOLUMES):
        coarse = rng.normal(size=[length // 8 for length in VOLUME])
        smooth = resize_and_crop(np.kron(coarse, np.ones((8, 8, 8)))[..., None], VOLUME)[..., 0]
        values = (1000 + 300 * smooth + rng.normal(0, 10, VOLUME)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{i:05d}{suffix}")
    return folder


def sources(folder: Path) -> Iterator[tuple[str, Source]]:
    """Writes every kind of data set, one after the other, and yields what it is, and it opened and prepared."""
    images = crops(NUM_IMAGES, SIZE)
    transform = Transform((WANTED, WANTED, 3))

    def opened(path: Path) -> TransformedSource:
        return TransformedSource(open_images(path, transform.image_shape).source, transform)

    jpegs = write_folder(folder / "jpegs", images, ".jpg", format="JPEG", quality=90)
    yield "folder of JPEG", opened(jpegs)
    yield "folder of PNG", opened(write_folder(folder / "pngs", images, ".png", format="PNG"))
    np.save(folder / "images.npy", images)
    yield "npy", opened(folder / "images.npy")
    np.savez(folder / "images.npz", images=images)
    yield "npz, stored", opened(folder / "images.npz")
    yield "HDF5, chunks of an image, gzip", opened(write_hdf5(folder / "images.h5", images))
    contents = [path.read_bytes() for path in sorted(jpegs.iterdir())]
    yield "LMDB of JPEG", opened(write_lmdb(folder / "lmdb", contents))
    yield "TFDS of JPEG", opened(write_tfds(folder / "tfds", jpegs))
    yield "sequence of arrays", TransformedSource(SequenceSource(images, transform.image_shape), transform)
    for suffix in (".nii", ".nii.gz"):
        source = open_images(write_nifti(folder / f"volumes{suffix}", suffix), (*WANTED_VOLUME, 1)).source
        yield f"folder of {suffix}", TransformedSource(source, Transform((*WANTED_VOLUME, 1), intensity=(0.0, 2000.0)))


def processor_seconds() -> float:
    """Returns the time that this process and those that it started have computed for."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def speed(images: Source, num_workers: int) -> tuple[float, float]:
    """Returns images a second, and a second of the processor."""
    batches = training_batches(images, batch_size=IN_BATCH, seed=0, num_workers=num_workers)
    with contextlib.closing(batches):
        for _ in range((AHEAD + 2) * (1 + num_workers)):  # what was read ahead while processes began would flatter
            next(batches)
        count, begun, computed = 0, time.perf_counter(), processor_seconds()
        while time.perf_counter() - begun < SECONDS:
            count += len(next(batches)["image"])
        return count / (time.perf_counter() - begun), count / (processor_seconds() - computed)


def measure_sources(folder: Path) -> None:
    """Prints the speed of every kind of source."""
    print("images a second of the processor (and of the clock), with threads, 1 and 2 worker processes")
    for name, images in sources(folder):
        speeds = [speed(images, num_workers) for num_workers in (0, 1, 2)]
        print(f"{name:32}" + "".join(f"{computed:8,.0f} ({wall:6,.0f})" for wall, computed in speeds), flush=True)


def measure_steps(name: str, config: ConfigDict, images: Source, batch_size: int, num_steps: int) -> None:
    """Prints how long a step takes that waits for its batch, and one that is given the same again.

    They take turns in rounds. At the start of one the batches that are read ahead lie ready, so they are used up first.
    """
    config.train.batch_size = batch_size
    mesh = make_mesh()
    program, key = autoencoder_program(config, mesh), run_key(0, mesh)
    stream = training_batches(images, batch_size=batch_size, seed=0, flip=config.data.flip)
    batches = on_devices(stream, split_batch(mesh))
    same, state = next(batches), program.init(key)

    def steps(batch_of: Callable[[], Any]) -> tuple[float, float]:
        """Takes a round of steps; returns seconds a step in all, and of those the seconds until its batch was there."""
        nonlocal state
        waited, begun = 0.0, time.perf_counter()
        for _ in range(num_steps):
            asked = time.perf_counter()
            batch = jax.block_until_ready(batch_of())
            waited += time.perf_counter() - asked
            state, _ = program.step(state, batch, key)
            jax.block_until_ready(state.step)
        return (time.perf_counter() - begun) / num_steps, waited / num_steps

    steps(lambda: same)
    fed, alone, waits = [], [], []
    with contextlib.closing(stream):
        for _ in range(ROUNDS):
            for _ in range(AHEAD + 2):
                next(batches)
            step, wait = steps(lambda: next(batches))
            fed.append(step)
            waits.append(wait / step)
            alone.append(steps(lambda: same)[0])
    ratio = statistics.median(one / other for one, other in zip(fed, alone, strict=True))
    print(
        f"{name}, batches of {batch_size}: {statistics.median(fed) * 1e3:,.1f} ms a step, "
        f"{statistics.median(alone) * 1e3:,.1f} ms of the same batch, ratio within a round {ratio:.3f}; "
        f"{statistics.median(waits):.2%} of the time is waited",
        flush=True,
    )


def photographs() -> list[bytes]:
    """Returns JPEGs as cameras make them: of detail at every scale."""
    rng = np.random.default_rng(0)
    found = []
    for image in load_sample_images().images:
        large = np.asarray(Image.fromarray(image).resize(PHOTO, Image.Resampling.LANCZOS))
        noisy = np.clip(large + rng.normal(0, 6, (*large.shape[:2], 1)), 0, 255)
        found.append(encoded(noisy.astype(np.uint8), format="JPEG", quality=90))
    return found


def scaled_down(jpeg: bytes, wanted: int, factor: int | None) -> np.ndarray:
    """Returns a JPEG scaled and cropped; with a factor, decoded at so many times the wanted size or more."""
    with Image.open(io.BytesIO(jpeg)) as image:
        if factor is not None:
            scale = factor * wanted / min(image.size)
            image.draft(None, tuple(round(length * scale) for length in image.size))
        return resize_and_crop(pixels_of(image), (wanted, wanted))


def measure_photos() -> None:
    """Prints what large photographs take, and what DCT scaling in the decoder would save and change."""
    jpegs = photographs()
    print(f"JPEGs of {PHOTO[0]}x{PHOTO[1]}, decoded at at least so many times the wanted size (-: whole)")
    for wanted in (128, 256):
        exact = [scaled_down(jpeg, wanted, None).astype(int) for jpeg in jpegs]
        for factor in (None, 1, 2, 3):
            seconds, images = [], []
            for jpeg in jpegs * 3:
                begun = time.process_time()
                images.append(scaled_down(jpeg, wanted, factor))
                seconds.append(time.process_time() - begun)
            differences = np.abs(np.stack(images[: len(jpegs)]) - np.stack(exact))
            print(
                f"{wanted:4} {factor or '-'} {statistics.median(seconds) * 1e3:6.0f} ms; differences of values: "
                f"mean {differences.mean():.2f}, greatest {differences.max()}"
            )


def measure_all_steps(folder: Path) -> None:
    """Prints whether the steps of two configs wait."""
    enable_compilation_cache()
    training, _ = digit_images()
    measure_steps("configs/digits.py", digits.get_config(), TransformedSource(training, Transform((8, 8, 1))), 32, 25)
    config = ffhq64.get_config()
    jpegs = write_folder(folder, crops(NUM_IMAGES, SIZE), ".jpg", format="JPEG", quality=90)
    faces = TransformedSource(open_images(jpegs, config.image_shape).source, Transform(config.image_shape))
    measure_steps("configs/ffhq64.py", config, faces, 1, 1)


def main() -> None:
    """Measures what was asked for, with images in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("sources", "steps", "photos"))
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as folder:
        if what in ("sources", None):
            measure_sources(Path(folder))
        if what in ("steps", None):
            measure_all_steps(Path(folder) / "faces")
        if what in ("photos", None):
            measure_photos()


if __name__ == "__main__":
    main()
