"""Zarr stores: folders and zips of versions 2 and 3, with labels, groups and damage."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import zarr

from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.arrays import ArrayFile
from diffae_jax.data.inspect.infer_shape import infer_image_shape
from diffae_jax.data.splits import open_splits
from diffae_jax.runtime.errors import UserError
from tests.data.test_formats import HALF, IMAGES, all_of, damaged, is_refused, opened
from tests.data_files import COUNT, SHAPE, make_zarr, make_zipped_zarr, noise
from tests.messages import assert_is_one_sentence

BOTH = pytest.mark.parametrize("version", [2, 3])


def save(path, version=3, **arrays):
    """Writes named arrays; __ in names makes groups."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, values in arrays.items():
        array = group.create_array(
            name.replace("__", "/"),
            shape=values.shape,
            dtype=str if values.dtype.kind == "U" else values.dtype,
            chunks=(1, *values.shape[1:]),
        )
        array[...] = values
    return path


@BOTH
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", "f2", "?"])
def test_values_are_those_that_were_written_in_native_order(tmp_path, dtype, version):
    images = noise(4, *SHAPE).astype(dtype) if dtype in ("?", "f2") else noise(4, *SHAPE, dtype=dtype)
    source = opened(make_zarr(tmp_path, images, zarr_format=version))
    assert isinstance(source, ArrayFile)
    assert source[0].dtype == images.dtype.newbyteorder("=")
    np.testing.assert_array_equal(all_of(source), images)


@BOTH
def test_arrays_of_one_value_an_image_are_labels_or_ids(tmp_path, version):
    names = np.array([f"im\u00e4ge {i}" for i in range(COUNT)])
    digits = np.arange(COUNT, dtype=np.uint8)
    colors = np.array(["red", "gray"] * HALF)
    path = save(
        tmp_path / "a", version, images=IMAGES, names=names, digit=digits, color=colors, mean=np.zeros((COUNT, 2))
    )
    found = open_images(path, SHAPE)
    assert found.kind == "a Zarr store"
    assert found.notes == ["The images are the array images of the file."]
    assert list(found.source.ids) == names.tolist()
    assert found.source.labels.keys() == {"digit", "color"}
    np.testing.assert_array_equal(found.source.labels["digit"], digits)
    assert found.source.labels["color"].tolist() == colors.tolist()


def test_groups_are_parts(tmp_path):
    path = save(
        tmp_path / "a.zarr",
        train__images=IMAGES[:HALF],
        test__images=IMAGES[HALF:],
        train__label=np.arange(HALF),
        test__label=np.arange(HALF) + 50,
    )
    is_refused(path, r"has 2 arrays that may be the images \(test/images, train/images\)\. Choose one.*#test/images")
    is_refused(f"{path}#nothing", "has no array nothing. It has test/images, test/label, train/images and 1 more")
    _, training, held_out = open_splits(f"{path}#train/images", SHAPE, held_out="#test/images")
    np.testing.assert_array_equal(all_of(training), IMAGES[:HALF])
    np.testing.assert_array_equal(all_of(held_out), IMAGES[HALF:])
    np.testing.assert_array_equal(held_out.labels["label"], np.arange(HALF) + 50)


def test_store_with_one_array_has_no_parts(tmp_path):
    is_refused(
        f"{make_zarr(tmp_path, IMAGES)}#images", "has no array images. This store is a single array. Remove the #"
    )


def test_zip_may_have_the_folder_of_the_store_in_it(tmp_path):
    folder = make_zarr(tmp_path, IMAGES)
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    np.testing.assert_array_equal(all_of(opened(tmp_path / "a.zarr.zip")), IMAGES)


def test_chunks_of_shards_are_read(tmp_path):
    path = make_zarr(tmp_path, IMAGES, shards=(4, *SHAPE))
    found = open_images(path, SHAPE)
    np.testing.assert_array_equal(all_of(found.source), IMAGES)
    assert list(found.notes) == []


def test_chunks_of_many_images_are_told(tmp_path):
    (note,) = open_images(make_zarr(tmp_path, noise(64, *SHAPE), chunks=(64, *SHAPE)), SHAPE).notes
    assert note.startswith("Reading is slow: each chunk of the file holds 64 images")
    assert note.endswith("Write the store again to store one image per chunk.")


@BOTH
def test_missing_chunks_are_noted_or_refused(tmp_path, version):
    path = make_zarr(tmp_path, IMAGES, zarr_format=version, fill_value=7)
    metadata = ("zarr.json", ".zarray", ".zattrs")
    chunks = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in metadata)
    assert len(chunks) == COUNT
    for file in chunks[:3]:
        file.unlink()
    found = open_images(path, SHAPE)
    assert found.notes == [
        "3 of 12 chunks are not in the store and are read as 7. This is an error only if the store is incomplete."
    ]
    assert sum((image == 7).all() for image in all_of(found.source)) == 3
    for file in chunks[3:]:
        file.unlink()
    is_refused(path, r"has shape \(12, 8, 10, 3\), but no values were written to it\. Write the store again")


@BOTH
def test_what_is_no_store_is_refused(tmp_path, version):
    path = make_zarr(tmp_path, IMAGES, zarr_format=version)
    metadata = path / ("zarr.json" if version == 3 else ".zarray")
    of_no_type = metadata.read_text().replace("uint8", "u9").replace("|u1", "|q9")
    for text in ("", "{", "[]", '{"zarr_format": 9}', of_no_type):
        metadata.write_text(text)
        is_refused(path, r"images.zarr cannot be read as an array \(.*\)\. Repair or remove it")
    metadata.unlink()
    is_refused(path, "images.zarr cannot be read as an array")
    (tmp_path / "a.zarr.zip").write_bytes(b"no zip")
    is_refused(tmp_path / "a.zarr.zip", r"a.zarr.zip cannot be read as an array \(File is not a zip file\)")
    is_refused(save(tmp_path / "b.zarr", version), "has no array of images .* It has no arrays")


def test_beyond_all_measure_is_refused(tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2, 30_000, 30_000, 3), dtype="u1", chunks=(1, 1, 1, 3))
    array[0, 0, 0] = 1
    is_refused(tmp_path / "a.zarr", "a.zarr has 2,700,000,000 values per image")


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_pickled_objects_are_refused_before_they_are_read(tmp_path, place):
    path = make_zarr(tmp_path, IMAGES, zarr_format=2)
    metadata = json.loads((path / ".zarray").read_text())
    codec = {"id": "pickle"}
    (path / ".zarray").write_text(json.dumps(metadata | {place: [codec] if place == "filters" else codec}))
    with pytest.raises(UserError, match=r"cannot be read as an array .*pickle"):
        open_images(path, SHAPE)


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_images_or_a_sentence(tmp_path, version):
    path = make_zarr(tmp_path, IMAGES[:2], zarr_format=version)
    files = [file for file in path.rglob("*") if file.is_file()]
    rng, outcomes = np.random.default_rng(0), set()
    for _ in range(60):
        for file in files:
            content = file.read_bytes()
            file.write_bytes(damaged(content, rng))
            try:
                outcomes |= {image.ndim for image in all_of(opened(path))}
            except UserError as error:
                assert_is_one_sentence(error)
                outcomes.add("told")
            file.write_bytes(content)
    assert outcomes == {3, "told"}


def test_damaged_zip_is_refused(tmp_path):
    path = make_zipped_zarr(tmp_path, IMAGES)
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        is_refused(path, "images.zarr.zip cannot be read as an array")


def test_folder_of_stores_with_one_volume_each(tmp_path):
    volumes = noise(3, 9, 10, 11)
    for i, volume in enumerate(volumes):
        save(tmp_path / "scans" / f"{i}.zarr", image=volume, spacing=np.ones(3))
    found = open_images(tmp_path / "scans", (9, 10, 11, 1))
    assert (found.kind, found.source.ids) == ("a folder of volumes", ["0.zarr", "1.zarr", "2.zarr"])
    assert not found.notes
    np.testing.assert_array_equal(all_of(found.source), volumes[..., None])
    np.testing.assert_array_equal(all_of(opened(f"{tmp_path / 'scans'}#image", (9, 10, 11, 1))), volumes[..., None])
    np.testing.assert_array_equal(opened(tmp_path / "scans" / "1.zarr", (9, 10, 11, 1))[0], volumes[1, ..., None])
    assert infer_image_shape(tmp_path / "scans") == (8, 8, 8, 1)
    fingerprint = found.source.fingerprint()
    assert opened(shutil.copytree(tmp_path / "scans", tmp_path / "copy"), (9, 10, 11, 1)).fingerprint() == fingerprint
    shutil.rmtree(tmp_path / "scans" / "2.zarr" / "image" / "c" / "5")
    assert opened(tmp_path / "scans", (9, 10, 11, 1)).fingerprint() != fingerprint
    shutil.rmtree(tmp_path / "scans" / "2.zarr" / "image" / "c")
    is_refused(tmp_path / "scans", r"2.zarr has shape \(9, 10, 11\), but no values were written", (9, 10, 11, 1))
    is_refused(f"{tmp_path / 'scans'}#mask", "0.zarr has no array mask. It has image, spacing", (9, 10, 11, 1))


def test_without_zarr_the_extra_is_named(tmp_path, monkeypatch):
    path = make_zarr(tmp_path, IMAGES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    is_refused(path, r'images.zarr needs zarr: pip install "diffae_jax\[zarr\]"')
