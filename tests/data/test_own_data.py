"""Each kind of data set, from files to training: the same batches, and a few training steps."""

import itertools
import json
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pytest
import zarr
from PIL import Image

from diffae_jax import DiffAE
from diffae_jax.data.batches import on_devices, training_batches
from diffae_jax.data.latents import read_chunks
from diffae_jax.data.run_images import open_data
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import split_batch
from diffae_jax.stages import autoencoder, latents
from diffae_jax.stages.run_folder import RunFolder
from diffae_jax.training.program import run_key
from tests.data_files import (
    huggingface_rows,
    make_dicom,
    make_hdf5_files,
    make_lmdb,
    make_nifti,
    make_npy,
    make_tiff_stack,
    make_volumes,
    png,
    prepare_tfds,
    save_parquet,
    save_series,
    write_tar,
    write_zip,
)
from tests.environment import ROOT, environment
from tests.tiny import get_config

BATCH = 16
COUNT = 40  # images: two and a half batches
KINDS = np.arange(COUNT) % 2  # the label: whether the right half is brighter


def pictures(*size):
    """Returns uint8 noise [COUNT, *size, 1], brighter in the last half if the label is 1."""
    images = np.random.default_rng(0).integers(0, 128, (COUNT, *size, 1), dtype=np.uint8)
    images[KINDS == 1, ..., size[-1] // 2 :, :] += 100
    return images


def folder(path):
    for i, image in enumerate(pictures(10, 12)):
        kind = ["png", "bmp", "webp", "tiff"][i % 4]
        file = path / "images" / ["dark", "light"][KINDS[i]] / f"{i}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image, kind))
    return path / "images"


def npz(path):
    np.savez(path / "images.npz", images=pictures(8, 8), kind=KINDS)
    return path / "images.npz"


def hdf5(path):
    with h5py.File(path / "images.h5", "w") as file:
        file.create_dataset("x", data=pictures(8, 8), chunks=(4, 8, 8, 1), compression="gzip")
        file["kind"] = KINDS
    return path / "images.h5"


def tfds(path):
    def features(tfds):
        names = tfds.features.ClassLabel(names=["dark", "light"])
        return {"image": tfds.features.Image(shape=(8, 8, 1)), "kind": names}

    return prepare_tfds(path, {"train": pictures(8, 8)}, features, lambda i: {"kind": int(KINDS[i])})


def zip_of_images(path):
    files = {f"photos/{i:03d}.png": png(image) for i, image in enumerate(pictures(10, 12))}
    labels = [[name, int(kind)] for name, kind in zip(files, KINDS, strict=True)]
    return write_zip(path / "photos.zip", files | {"dataset.json": json.dumps({"labels": labels})})


def shards(path):
    (path / "shards").mkdir()
    for first in range(0, COUNT, 15):
        numbers = range(first, min(first + 15, COUNT))
        files = {f"{i:04d}.webp": png(pictures(8, 8)[i], "webp", lossless=True) for i in numbers}
        write_tar(path / "shards" / f"{first:06d}.tar", files | {f"{i:04d}.cls": str(KINDS[i]) for i in numbers})
    return path / "shards"


def parquet(path):
    import datasets

    names = datasets.ClassLabel(names=["dark", "light"])
    return save_parquet(path, huggingface_rows(pictures(8, 8), {"kind": names}, kind=KINDS.tolist()))


def nifti(path):
    return make_nifti(path, pictures(10, 10, 10)[..., 0].astype(np.int16) * 8 - 1000)


def zarr_store(path):
    group = zarr.create_group(path / "images.zarr")
    group.create_array("x", data=pictures(8, 8), chunks=(4, 8, 8, 1))
    group.create_array("kind", data=KINDS)
    return path / "images.zarr"


def x_rays(path):
    images = pictures(10, 12)[..., 0].astype(np.uint16) * 16
    return make_dicom(path, images, PatientSex=np.array(["F", "M"])[KINDS], BitsStored=[12] * COUNT)


def scans(path):
    for i, volume in enumerate(pictures(8, 8, 10)[..., 0].astype(np.int16) * 8):
        save_series(path / "scans" / f"patient {i:02d}", volume, RescaleSlope=1, RescaleIntercept=-1000)
    return path / "scans"


def stacks(path):
    (path / "stacks").mkdir()
    for i, volume in enumerate(pictures(8, 8, 10)[..., 0].astype(np.uint16) * 100):
        make_tiff_stack(path / "stacks", volume, f"{i:02d}.tif")
    return path / "stacks"


def signals(path):
    return make_npy(path, np.moveaxis(np.repeat(pictures(24) / 100.0 - 0.7, 2, axis=-1), 2, 1))  # channels first


def files_of_volumes(path):
    return make_hdf5_files(path, pictures(10, 10, 10).astype(np.uint16) * 100)


# Few shapes and types, as a training step is compiled for each. Volumes are small: convolutions
# over three axes are slow on a CPU.
DATA_SETS = {  # what makes each, image_shape, and data.labels
    "folder": (folder, (8, 8, 1), "folders"),
    "npy": (lambda path: make_npy(path, pictures(8, 8)[..., 0]), (8, 8, 1), ""),
    "npz": (npz, (8, 8, 1), ""),
    "hdf5": (hdf5, (8, 8, 1), ""),
    "lmdb": (lambda path: make_lmdb(path, pictures(12, 12), "12"), (8, 8, 1), ""),
    "tfds": (tfds, (8, 8, 1), ""),
    "zip": (zip_of_images, (8, 8, 1), ""),
    "shards": (shards, (8, 8, 1), ""),
    "parquet": (parquet, (8, 8, 1), ""),
    "nifti": (nifti, (4, 4, 4, 1), ""),
    "volumes": (lambda path: make_volumes(path, pictures(10, 10, 10)[..., 0] / 255), (4, 4, 4, 1), ""),
    "signals": (signals, (24, 2), ""),
    "hdf5 files": (files_of_volumes, (4, 4, 4, 1), ""),
    "zarr": (zarr_store, (8, 8, 1), ""),
    "dicom pictures": (x_rays, (8, 8, 1), ""),
    "dicom volumes": (scans, (4, 4, 4, 1), ""),
    "tiff pages": (lambda path: make_tiff_stack(path, pictures(8, 8)[..., 0]), (8, 8, 1), ""),
    "tiff volumes": (stacks, (4, 4, 4, 1), ""),
    "digits": (lambda path: "digits", (8, 8, 1), ""),
}


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """The path of each data set, made when it is asked for."""
    made = {}

    def path(name):
        if name not in made:
            made[name] = DATA_SETS[name][0](tmp_path_factory.mktemp(name))
        return made[name]

    return path


def config_of(name, path):
    config = get_config()
    config.image_shape, config.data.labels = DATA_SETS[name][1:]
    config.data.update(path=str(path), flip=False)
    config.train.num_images = 3 * BATCH
    return config


def stream(images, count, **settings):
    batches = training_batches(images, batch_size=BATCH, seed=3, flip=True, **settings)
    return [batch["image"] for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("name", DATA_SETS)
def test_batches_are_the_same_for_all_numbers_of_processes(name, data_sets, tmp_path):
    images, _ = open_data(config_of(name, data_sets(name)), tmp_path, begun=False)
    batches = stream(images, 4)
    assert {batch.shape for batch in batches} == {(BATCH, *DATA_SETS[name][1])}
    parts = [stream(images, 4, process_index=i, num_processes=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches)


# A worker takes seconds to start. These are opened in different ways, the others like one of them.
FOR_WORKERS = ("folder", "npy", "hdf5", "lmdb", "tfds", "zip", "parquet", "zarr", "dicom volumes", "tiff pages")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FOR_WORKERS else pytest.mark.long) for n in DATA_SETS]
)
def test_batches_are_the_same_for_all_numbers_of_workers(name, data_sets, tmp_path):
    images, _ = open_data(config_of(name, data_sets(name)), tmp_path, begun=False)
    batches = stream(images, 4)
    for num_workers in (1, 2) if name == "folder" else (1,):
        np.testing.assert_array_equal(stream(images, 4, num_workers=num_workers), batches)


@pytest.fixture(scope="module")
def programs(one_device, compiled_quickly):
    """Training steps of the tiny model, compiled once for each shape and type of images."""
    compiled = {}

    def program(config, dtype):
        if (kind := (config.image_shape, dtype)) not in compiled:
            compiled[kind] = autoencoder.autoencoder_program(config, one_device, dtype)
        return compiled[kind]

    return program


@pytest.mark.parametrize("name", DATA_SETS)
def test_images_and_labels_of_each_format_are_counted(name, data_sets, tmp_path, capsys):
    config = config_of(name, data_sets(name))
    autoencoder.describe_images(config, tmp_path, *open_data(config, tmp_path, begun=False))
    said = capsys.readouterr().out
    assert f"{1437 if name == 'digits' else COUNT:,} to train on" in said
    if name in ("folder", "npz", "hdf5", "tfds", "zarr", "dicom pictures", "zip", "shards", "parquet"):
        starts = ("  kind", "  folder", "  PatientSex", "  label", "  cls")
        line = next(line for line in said.splitlines() if line.startswith(starts))
        assert line.count("(20)") == 2


# What steps get of the other formats, the tests above and below compare: arrays of these shapes.
# A folder is trained on in tests/stages/test_folder_of_images.py.
TRAINED = ("nifti",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in TRAINED else pytest.mark.long) for n in DATA_SETS])
def test_each_format_trains(name, data_sets, tmp_path, programs, one_device):
    config = config_of(name, data_sets(name))
    images, _ = open_data(config, tmp_path, begun=False)
    program, key = programs(config, images.transform.dtype), run_key(0, one_device)
    state, losses = program.init(key), []
    batches = training_batches(images, batch_size=BATCH, seed=0)
    for batch in itertools.islice(on_devices(batches, split_batch(one_device)), 3):
        state, metrics = program.step(state, batch, key)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3


@pytest.mark.parametrize("name", [name for name in DATA_SETS if name != "digits"])
def test_networks_get_the_values_of_the_data(name, data_sets, tmp_path):
    """Compares images with the arrays that were written, if no image is scaled."""
    images, _ = open_data(config_of(name, data_sets(name)), tmp_path, begun=False)
    first, second = (images[images.ids.index(name)] for name in (images.ids[0], images.ids[1]))
    assert first.shape == DATA_SETS[name][1]
    assert not np.array_equal(first, second)
    if name in ("npy", "npz", "hdf5", "tfds", "zarr", "tiff pages", "shards", "parquet"):
        np.testing.assert_array_equal(first, pictures(8, 8)[0])
    if name == "signals":
        values = pictures(24) / 100.0 - 0.7
        low, high = values.min(), values.max()
        expected = 2 * (values[0] - low) / (high - low) - 1
        np.testing.assert_allclose(first, np.repeat(expected, 2, axis=-1), atol=1e-6)


def items():
    """What PyTorch calls a data set: a length and items, and no more."""
    gray = pictures(10, 10)[..., 0]

    class Items:  # within a function, so that worker processes get it without importing this module
        def __len__(self):
            return COUNT

        def __getitem__(self, index):
            return Image.fromarray(gray[index])

    return Items()


@pytest.mark.parametrize("images", [pictures(8, 8), list(pictures(10, 9)), items()], ids=["array", "list", "items"])
def test_python_sequences_give_the_same_batches_to_workers(images, tmp_path):
    sources, _ = open_data(config_of("npy", ""), tmp_path, images, begun=False)
    batches = stream(sources, 4)
    assert len(sources) == COUNT
    assert sources[COUNT - 1].shape == (8, 8, 1)
    np.testing.assert_array_equal(stream(sources, 4, num_workers=2), batches)


def test_python_sequence_is_trained_on_and_encoded(tmp_path, capsys, one_device, compiled_quickly):
    config = config_of("npy", "")
    with RunFolder(tmp_path, config):
        for stage in (autoencoder, latents):
            stage.run(config, tmp_path, one_device, items())
    assert f"Images: a sequence in memory, {COUNT} to train on, 0 held out." in capsys.readouterr().out
    model = DiffAE.load(tmp_path, one_device)
    z = np.concatenate([z for _, z in read_chunks(tmp_path / "latents", "training")])
    np.testing.assert_allclose(z, model.encode(list(map(items().__getitem__, range(COUNT)))), atol=1e-5)


def test_generator_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is a generator\. It must have a length .* list\(images\)"):
        open_data(config_of("npy", ""), tmp_path, (image for image in pictures(8, 8)), begun=False)


@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.long), 2])  # two need what one needs
def test_order_after_every_position_is_the_rest_of_the_order(num_processes, data_sets, tmp_path):
    images, _ = open_data(config_of("folder", data_sets("folder")), tmp_path, begun=False)
    total = 4 * COUNT // BATCH
    settings = [dict(process_index=i, num_processes=num_processes) for i in range(num_processes)]
    whole = [stream(images, total, **setting) for setting in settings]
    for first_step in range(total):
        for setting, expected in zip(settings, whole, strict=True):
            rest = stream(images, total - first_step, first_step=first_step, **setting)
            np.testing.assert_array_equal(rest, expected[first_step:])


COMMANDS = """
encode BUNDLE SCANS --out z.npz
reconstruct BUNDLE SCANS --steps 5 --out again
sample BUNDLE --num 3 --steps 2 --out new.npy
edit BUNDLE SCANS/00.nii --probe light --strength 2 --steps 2 --out edited
"""


@pytest.mark.long  # volumes are also trained on by test_each_format_trains
def test_volumes_are_trained_reconstructed_sampled_and_edited_by_the_same_commands(tmp_path):
    scans = nifti(tmp_path)
    rows = [f"{i:02d},{kind}" for i, kind in enumerate(KINDS)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,light", *rows]))
    settings = dict(image_shape="(4, 4, 4, 1)", name="scans")
    settings |= {"data.path": scans, "data.labels": tmp_path / "labels.csv", "data.flip": False}
    settings |= {"data.held_out_share": 0.3, "train.num_images": 20 * BATCH}
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    stages = "--stages=autoencoder,latents,prior,probes,export"
    main = ["-m", "diffae_jax.main", f"--config={ROOT}/tests/tiny.py", "--workdir=run", stages, *arguments]
    lines = COMMANDS.replace("BUNDLE", "run/bundle").replace("SCANS", "volumes").strip().split("\n")
    code = f"from diffae_jax import cli\nfor line in {lines}: cli.run(line.split())"
    for call in (main, ["-c", code]):
        done = subprocess.run(
            [sys.executable, *call], cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    with np.load(tmp_path / "z.npz") as codes:
        assert codes["ids"].tolist() == [f"{i:02d}.nii{'.gz' * (i % 2)}" for i in range(COUNT)]
        assert codes["z"].shape == (COUNT, 8)
    values = pictures(10, 10, 10).astype(np.float64) * 8 - 1000
    files = [nibabel.load(tmp_path / "again" / f"{i:02d}.nii.gz") for i in range(COUNT)]
    again = np.stack([file.get_fdata()[..., None] for file in files])
    assert again.shape == (COUNT, 4, 4, 4, 1)
    for file in files:  # four voxels of 2.5 cover the ten of the input, whose first center is at 0
        np.testing.assert_allclose(file.affine, nibabel.affines.from_matvec(2.5 * np.eye(3), [0.75] * 3))
    halves = again[..., 2:, :].mean((1, 2, 3, 4)) - again[..., :2, :].mean((1, 2, 3, 4))
    assert halves[KINDS == 1].mean() > halves[KINDS == 0].mean() + 200  # of 800, in the units of the files
    new = np.load(tmp_path / "new.npy")
    assert new.shape == (3, 4, 4, 4, 1)
    assert values.min() <= new.min() < new.max() <= values.max()
    edited = nibabel.load(tmp_path / "edited" / "00.nii.gz").get_fdata()[..., None]
    assert (tmp_path / "edited" / "00.png").exists()
    assert edited[..., 2:, :].mean() != again[0][..., 2:, :].mean()
