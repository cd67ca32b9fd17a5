"""Each format returns the images that were written, and one line for damaged or odd files."""

import io
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.formats import npy as npy_files
from diffae_jax.data.formats.arrays import arrays_of
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.sequences import SequenceSource
from diffae_jax.data.sources import Source, Subset, TransformedSource, read
from diffae_jax.data.transforms import Transform
from diffae_jax.runtime.errors import UserError
from tests.data_files import (
    COUNT,
    MAKERS,
    SHAPE,
    make_hdf5,
    make_keys,
    make_lmdb,
    make_zip,
    noise,
    png,
    prepare_tfds,
    save_nifti,
)
from tests.environment import ROOT
from tests.messages import assert_is_one_sentence

IMAGES = noise(COUNT, *SHAPE)


def opened(path, image_shape=SHAPE):
    return open_images(path, image_shape).source


def all_of(source):
    return [source[i] for i in range(len(source))]


def call_is_refused(call, message):
    """Asserts that a call is refused in one sentence."""
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert_is_one_sentence(refusal.value)


def is_refused(path, message, image_shape=SHAPE):
    call_is_refused(lambda: all_of(opened(path, image_shape)), message)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns the path of the same images in a format."""
    folder, paths = tmp_path_factory.mktemp("made"), {}

    def make(kind):
        if kind not in paths:
            (folder / kind).mkdir()
            paths[kind] = MAKERS[kind](folder / kind, IMAGES)
        return paths[kind]

    return make


# --- what every format does ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_images_are_those_that_were_written(made, kind):
    source = opened(made(kind))
    assert isinstance(source, Source)
    assert len(source) == len(source.ids) == len(set(source.ids)) == COUNT
    np.testing.assert_array_equal(all_of(source), IMAGES)
    assert source.labels == {}
    assert all(str(made(kind)) in source.name(i) for i in range(COUNT))
    assert len({source.name(i) for i in range(COUNT)}) == COUNT


@pytest.mark.parametrize("kind", MAKERS)
def test_what_goes_to_workers_holds_nothing_that_is_open(made, kind):
    source = opened(made(kind))
    unread = pickle.dumps(source)
    source[0]
    assert pickle.dumps(source) == unread
    assert len(unread) < 2000 + COUNT * 50
    np.testing.assert_array_equal(all_of(pickle.loads(unread)), IMAGES)


def test_threads_of_a_worker_read_the_right_images_at_once(made, tmp_path):
    sources = [opened(made(kind)) for kind in MAKERS]
    sources += [Subset(source, np.arange(COUNT)) for source in sources]
    rows = np.random.default_rng(0).integers(COUNT, size=200)
    (tmp_path / "sources").write_bytes(pickle.dumps((sources, rows)))
    program = """if True:
        import pickle, sys
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np
        sys.setswitchinterval(1e-5)
        sources, rows = pickle.load(open(sys.argv[1], "rb"))
        with ThreadPoolExecutor(16) as pool:
            found = [np.stack(list(pool.map(source.__getitem__, rows.tolist()))) for source in sources]
        np.save(sys.argv[2], np.stack(found))"""
    arguments = [tmp_path / "sources", tmp_path / "found.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, cwd=ROOT)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), np.stack([IMAGES[rows]] * len(sources)))


@pytest.mark.parametrize("kind", MAKERS)
def test_fingerprint_is_of_the_images_and_not_of_their_place(made, tmp_path, kind):
    before = opened(made(kind))
    fingerprint = before.fingerprint()
    copy = tmp_path / "elsewhere" / made(kind).parent.name / made(kind).name
    (shutil.copytree if made(kind).is_dir() else shutil.copy)(made(kind), copy.parent.mkdir(parents=True) or copy)
    assert opened(copy).fingerprint() == fingerprint
    changed = IMAGES.copy()
    changed[5, 0, 0, 0] += 1
    if kind == "folder":  # of files names and sizes count
        changed[5] = 0
    if kind not in ("volumes", "NIfTI", "HDF5 files", "TIFF stack", "DICOM"):  # of which names and sizes count
        assert opened(MAKERS[kind](tmp_path, changed)).fingerprint() != fingerprint
    (tmp_path / "fewer").mkdir()
    assert opened(MAKERS[kind](tmp_path / "fewer", IMAGES[:-1])).fingerprint() != fingerprint


@pytest.mark.parametrize("kind", ["npy", "npz", "packed npz", "HDF5", "chunked HDF5"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", ">f4", "<f8", "f2", "<i4", "?"])
def test_arrays_have_the_numbers_that_were_written_in_native_order(tmp_path, kind, dtype):
    images = noise(4, *SHAPE).astype(dtype) if dtype == "?" else noise(4, *SHAPE, dtype=dtype)
    found = all_of(opened(MAKERS[kind](tmp_path, images)))
    assert found[0].dtype == images.dtype.newbyteorder("=")
    assert found[0].dtype.isnative
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("kind", ["npy", "npz", "HDF5", "volumes"])
@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((32,), (32, 1)),
        ((32, 1), (32, 1)),
        ((32, 2), (32, 2)),
        ((2, 32), (32, 2)),
        ((6, 8), (6, 8, 1)),
        ((3, 6, 8), (6, 8, 3)),
        ((4, 6, 8), (6, 8, 3)),  # channels that pictures may have
        ((5, 6, 8), (6, 8, 5)),
        ((6, 8, 4), (6, 8, 5)),  # wrong channels, which the transform reports
        ((4, 6, 8), (4, 6, 8, 1)),
        ((2, 4, 6, 8), (4, 6, 8, 2)),
        ((4, 6, 8, 2), (4, 6, 8, 2)),
    ],
    ids=str,
)
def test_arrays_of_any_rank_with_channels_anywhere_or_none(tmp_path, kind, shape, image_shape):
    images = noise(3, *shape)
    rank, channels = len(image_shape) - 1, image_shape[-1]
    expected = images[..., None] if len(shape) == rank else images
    if len(shape) == rank + 1 and (shape[0] == channels or shape[0] in (3, 4)) and shape[-1] != channels:
        expected = np.moveaxis(images, 1, -1)
    np.testing.assert_array_equal(all_of(opened(MAKERS[kind](tmp_path, images), image_shape)), expected)


# --- pictures ------------------------------------------------------------------------------------


def palette(transparent):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    if transparent:
        image.info["transparency"] = 2
    return image


def of_modes():
    """Returns pictures of each mode by name: the PIL image, and the expected array."""
    gray, color, clear = noise(8, 8), noise(8, 8, 3), noise(8, 8, 4)
    bits = gray > 127
    index = np.arange(64).reshape(8, 8) % 4
    paints = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[index]
    deep = noise(8, 8, dtype=np.uint16)
    floats = noise(8, 8, dtype=np.float32)
    two = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(clear[..., 3])])
    return {
        "gray.png": (Image.fromarray(gray), gray[..., None]),
        "color.png": (Image.fromarray(color), color),
        "clear.png": (Image.fromarray(clear), clear),
        "bits.png": (Image.fromarray(bits), bits[..., None] * np.uint8(255)),
        "bits.tif": (Image.fromarray(bits), bits[..., None] * np.uint8(255)),
        "palette.png": (palette(False), paints),
        "holes.png": (palette(True), np.dstack([paints, np.where(index == 2, 0, 255).astype(np.uint8)])),
        "two.png": (two, np.dstack([gray, gray, gray, clear[..., 3]])),
        "deep.png": (Image.fromarray(deep), deep[..., None]),
        "deep.tif": (Image.fromarray(deep), deep[..., None]),
        "other-end.tif": (Image.fromarray(deep.astype(">u2")), deep[..., None]),
        "float.tiff": (Image.fromarray(floats), floats[..., None]),
        "color.bmp": (Image.fromarray(color), color),
        "color.TIF": (Image.fromarray(color), color),
        "color.webp": (Image.fromarray(color), color),
        "clear.webp": (Image.fromarray(clear), clear),
    }


@pytest.mark.parametrize("name", of_modes())
def test_picture_of_each_mode(tmp_path, name):
    image, expected = of_modes()[name]
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    (found,) = all_of(opened(tmp_path))
    assert found.dtype == expected.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_each_mode_is_near_what_was_saved(tmp_path, mode):
    Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode).save(tmp_path / "a.jpeg", quality=95)
    (found,) = all_of(opened(tmp_path))
    assert found.dtype == np.uint8
    expected = (
        np.array([200, 100, 50])
        if mode != "L"
        else [np.asarray(Image.new("RGB", (1, 1), (200, 100, 50)).convert("L"))[0, 0]]
    )
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=4)
    assert found.shape == (16, 16, 1 if mode == "L" else 3)


@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_are_turned_as_their_camera_says(tmp_path, tag):
    upright = noise(6, 8, 3)
    stored = {  # the stored pixels of an upright image, by EXIF tag
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[tag]
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(opened(tmp_path)[0], upright)


def test_folder_is_read_with_those_in_it_but_nothing_hidden_nor_twice(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    names = "b.png", "a/c.JPG", "a/b/d.webp", ".hidden.png", ".git/e.png", "a/._f.png", "notes.txt", "a/g.heic"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(noise(8, 8, 3)))
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "h.png").write_bytes(png(noise(8, 8, 3)))
    (root / "in").symlink_to(outside)
    (root / "again").symlink_to(outside / "deep")
    (outside / "deep" / "circle").symlink_to(root)
    (root / "a" / "self").symlink_to(".")
    source = opened(root)
    assert sorted(source.ids) == ["a/b/d.webp", "a/c.JPG", "again/h.png", "b.png"]
    assert file_paths(TransformedSource(Subset(source, np.array([1])), Transform(SHAPE))) == [root / source.ids[1]]
    (root / "lost.png").symlink_to("nowhere.png")
    is_refused(root, "lost.png is missing")
    call_is_refused(lambda: opened(root).fingerprint(), "lost.png is missing")


def test_pipe_and_folder_named_like_images(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "a.png").write_bytes(png(noise(8, 8, 3)))
    assert opened(tmp_path).ids == ["folder.png/a.png"]
    os.mkfifo(tmp_path / "pipe.png")
    is_refused(tmp_path, "pipe.png is not a file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folder_that_may_not_be_read_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(png(noise(8, 8, 3)))
    (tmp_path / "closed").mkdir(mode=0)
    is_refused(tmp_path, r"closed cannot be read \(Permission denied\)\. Check its permissions")


def test_content_counts_and_not_the_name(tmp_path):
    image = noise(8, 8, 3)
    (tmp_path / "a.jpg").write_bytes(png(image))
    np.testing.assert_array_equal(opened(tmp_path)[0], image)
    (tmp_path / "a.jpg").write_text("no image")
    is_refused(tmp_path, r"a.jpg cannot be read as an image \(cannot identify .*\)\. Repair or remove it")


def test_programs_in_postscript_are_no_images(tmp_path):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    is_refused(tmp_path, r"a.png cannot be read as an image \(cannot identify")  # and not: there is no Ghostscript


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_picture_that_was_cut_off_is_told(tmp_path, name, share):
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    is_refused(tmp_path, f"{name} cannot be read as an image .*. Repair or remove it")


def test_names_that_are_not_utf8_are_told(tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(png(noise(8, 8, 3)))
    (tmp_path / "caf\u00e9.png").write_bytes(png(noise(8, 8, 3)))
    is_refused(tmp_path, r"1 of 2 images has a name not in UTF-8 \(caf\\udce9.png\)\. Rename them")
    is_refused(tmp_path / "caf\udce9.png", "1 of 1 image has a name not in UTF-8")


def test_one_file_is_a_source_of_one_image(tmp_path):
    (tmp_path / "a.png").write_bytes(png(IMAGES[0]))
    source = opened(tmp_path / "a.png")
    assert source.ids == ["a.png"]
    np.testing.assert_array_equal(read(source, [0]), IMAGES[:1])
    (tmp_path / "b").write_bytes(png(IMAGES[0]))
    np.testing.assert_array_equal(opened(tmp_path / "b")[0], IMAGES[0])
    is_refused(tmp_path / "a.png", "1, 3 or 4 channels", (8, 8, 8, 1))


# --- npy and npz ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4"])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_stay_on_the_disk(tmp_path, kind, dtype, order):
    images = np.asarray(noise(4, *SHAPE, dtype=dtype), order=order)
    source = opened(MAKERS[kind](tmp_path, images))
    np.testing.assert_array_equal(all_of(source), images)
    assert isinstance(source._opened, np.memmap)


def test_array_larger_than_memory_is_read_in_a_moment(tmp_path):
    shape = (60_000, 512, 512, 3)  # 47 GB, of which the disk holds nothing
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, dict(descr="|u1", fortran_order=False, shape=shape))
        file.truncate(file.tell() + int(np.prod(shape)))
    source = opened(tmp_path / "a.npy", shape[1:])
    assert len(source) == shape[0]
    assert not source[shape[0] - 1].any()


def test_packed_array_that_memory_does_not_hold_is_told(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", IMAGES)
    monkeypatch.setattr(npy_files, "memory", lambda: 2 * IMAGES.nbytes - 1)
    is_refused(
        tmp_path / "a.npz",
        r"arr_0 in .*a.npz would take 0.0 GiB, more than half of the memory.*uncompressed with np.savez",
    )
    monkeypatch.setattr(npy_files, "memory", lambda: 2 * IMAGES.nbytes)
    np.testing.assert_array_equal(all_of(opened(tmp_path / "a.npz")), IMAGES)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_python_objects_are_not_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    array = np.array([Hostile()] * 5, object).reshape(5, 1, 1, 1)
    (np.savez if name == "a.npz" else np.save)(tmp_path / name, array)
    is_refused(tmp_path / name, "Python objects in dtype|has no array of images .* and type object")
    if name == "a.npz":
        is_refused(f"{tmp_path / name}#arr_0", "holds values of object, not numbers")
        np.savez(tmp_path / name, images=IMAGES, ids=np.array([Hostile()] * COUNT, object))
        assert opened(tmp_path / name).ids[0] == "0"
        np.savez(tmp_path / name, a=np.array([Hostile()], object))
        call_is_refused(
            lambda: arrays_of(tmp_path / name)["a"].array(), "a.npz cannot be read as an array .Object arrays cannot"
        )
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("dtype", ["S3", "U2", "complex64", "M8[s]", "u1,f4"])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_of_other_than_numbers_are_told(tmp_path, kind, dtype):
    path = MAKERS[kind](tmp_path, np.zeros((3, *SHAPE), dtype))
    message = "holds values of .*, not numbers" if kind == "npz" else "no array of images .* It has one array of"
    is_refused(path if kind == "npy" else f"{path}#arr_0", message)


def with_header(header, version=(1, 0), values=b"\0" * 64):
    text = header.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


DAMAGED = {
    "of more than there is": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 8, 10, 3)}\n"),
    "negative": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 10, 3)}\n"),
    "of no type": with_header("{'descr': '|q9', 'fortran_order': False, 'shape': (1, 2, 3, 4)}\n"),
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "header that is cut off": b"\x93NUMPY\x01\x00\xff\xff{'descr'",
    "version 9": b"\x93NUMPY\x09\x00\x10\x00{'descr'",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("kind", ["npy", "npz", "packed npz", "volume"])
def test_headers_that_are_damaged_are_told(tmp_path, kind, name):
    path = tmp_path / ("a.npz" if "npz" in kind else "a.npy")
    if "npz" in kind:
        method = zipfile.ZIP_STORED if kind == "npz" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.npy", DAMAGED[name])
    else:
        path.write_bytes(DAMAGED[name])
    is_refused(tmp_path if kind == "volume" else path, r"a\.np[yz] cannot be read as an array .*\. Repair or remove it")


@pytest.mark.parametrize("kind", ["npy", "npz", "packed npz", "HDF5", "chunked HDF5"])
@pytest.mark.parametrize("cut", [1, 100, 1500, 2500])
def test_array_file_that_was_cut_off_is_told(tmp_path, kind, cut):
    path = MAKERS[kind](tmp_path, IMAGES)
    path.write_bytes(path.read_bytes()[:-cut])
    is_refused(path, f"{path.name}.*Repair or remove it")


def test_odd_npz_are_told(tmp_path):
    path = tmp_path / "a.npz"
    make_zip(path, [("x.npy", IMAGES)])
    content = bytearray(path.read_bytes())
    content[6] |= 1  # flags of the entry and of its place in the directory
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    is_refused(path, r"a.npz cannot be read as an array \(.*encrypted.*\)\. Repair or remove it")
    make_zip(path, [("notes.txt", IMAGES)])
    is_refused(path, "holds no arrays. It holds notes.txt")
    make_zip(path, [])
    is_refused(path, "holds no arrays. It holds no files")
    path.write_text("no zip")
    is_refused(path, r"a.npz cannot be read as an array \(File is not a zip file\)")


# --- labels and ids in npz and HDF5 files --------------------------------------------------------


def save_arrays(path, **arrays):
    """Writes named arrays as npz or HDF5; in that, __ in names makes groups."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array.astype("S") if array.dtype.kind == "U" else array
    return path


BOTH = pytest.mark.parametrize("suffix", [".npz", ".h5"])
NAMES = np.array([f"im\u00e4ge {i}" for i in range(COUNT)])
HALF = COUNT // 2


@BOTH
def test_arrays_of_one_value_an_image_are_labels_or_ids(tmp_path, suffix):
    columns = dict(
        digit=np.arange(COUNT, dtype=np.uint8),
        column=np.arange(COUNT, dtype=np.int32)[:, None],
        weight=np.arange(COUNT, dtype=np.float32) / 2,
        flag=np.arange(COUNT) % 2 == 0,
        color=np.array(["red", "gray"] * HALF, "S4"),
        other=np.arange(COUNT + 1),
        mean=np.zeros((COUNT, 2)),
        scale=np.float64(3),
    )
    source = opened(save_arrays(tmp_path / f"a{suffix}", images=IMAGES, IDs=np.arange(100, 100 + COUNT), **columns))
    assert list(source.ids) == [str(100 + i) for i in range(COUNT)]
    assert set(source.labels) == {"digit", "column", "weight", "flag", "color"}
    assert {name: values.dtype.kind for name, values in source.labels.items()} == dict(
        digit="i", column="i", weight="f", flag="i", color="O"
    )
    for name, values in source.labels.items():
        expected = [text.decode() for text in columns["color"]] if name == "color" else columns[name].reshape(-1)
        np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(all_of(source), IMAGES)


@BOTH
def test_text_is_read_as_ids(tmp_path, suffix):
    names = NAMES if suffix == ".npz" else np.array([name.encode() for name in NAMES])
    source = opened(save_arrays(tmp_path / f"a{suffix}", images=IMAGES, file_names=names))
    assert list(source.ids) == NAMES.tolist()
    names = np.where(np.arange(COUNT) == 3, names[4], names)
    is_refused(save_arrays(tmp_path / f"a{suffix}", images=IMAGES, ids=names), "has the same id twice in ids")


@BOTH
def test_labels_go_with_the_images_of_their_split(tmp_path, suffix):
    path = save_arrays(
        tmp_path / f"a{suffix}",
        images_train=IMAGES[:HALF],
        images_test=IMAGES[HALF:],
        labels_train=np.arange(HALF),
        labels_test=np.arange(HALF) + 50,
        train_weight=np.arange(HALF) / 2,
        age=np.arange(HALF),
    )
    is_refused(
        path,
        rf"has 2 arrays that may be the images \(images_test, images_train\)\. Choose one, for example .*a\{suffix}#im",
    )
    training, held_out = (opened(f"{path}#images_{split}") for split in ("train", "test"))
    assert training.labels.keys() == {"labels", "weight", "age"}
    assert held_out.labels.keys() == {"labels", "age"}
    np.testing.assert_array_equal(training.labels["labels"], np.arange(HALF))
    np.testing.assert_array_equal(held_out.labels["labels"], np.arange(HALF) + 50)
    np.testing.assert_array_equal(all_of(held_out), IMAGES[HALF:])
    assert training.fingerprint() != held_out.fingerprint()


@BOTH
def test_images_are_the_array_of_the_shape_that_is_wanted(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    others = dict(small=IMAGES[:, :4, :4], masks=IMAGES[..., 0], flat=IMAGES.reshape(COUNT, -1))
    found = open_images(save_arrays(path, **others, images=IMAGES), SHAPE)
    assert found.notes == ["The images are the array images of the file."]
    np.testing.assert_array_equal(all_of(found.source), IMAGES)
    np.testing.assert_array_equal(all_of(opened(f"{path}#masks", (8, 10, 1))), IMAGES[..., :1])
    is_refused(f"{path}#nothing", r"has no array nothing\. It has flat, images, masks and 1 more")
    is_refused(f"{path}#flat", r"Each image of .*#flat has shape \(240,\), but .* needs 2 spatial axes")
    is_refused(
        path, r"no array of images that fits --config.image_shape=\(4, 4, 4, 4, 4\)\. It has .*\(12, 8, 10", (4,) * 5
    )
    is_refused(
        save_arrays(tmp_path / f"none{suffix}", images=IMAGES[:0]),
        r"none.* holds no images\. Its shape is \(0, 8, 10, 3",
    )


def test_npy_has_no_parts(made):
    is_refused(f"{made('npy')}#images", "has no array images. An npy file is a single array. Remove the #")


# --- HDF5 ----------------------------------------------------------------------------------------


def test_groups_have_labels_of_their_own(tmp_path):
    path = save_arrays(
        tmp_path / "a.hdf5",
        train__images=IMAGES[:HALF],
        test__images=IMAGES[HALF:],
        train__label=np.arange(HALF),
        test__label=np.arange(HALF) + 50,
        age=np.arange(HALF),
    )
    is_refused(
        path,
        r"has 2 arrays that may be the images \(test/images, train/images\)\. Choose one, for example .*#test/images",
    )
    source = opened(f"{path}#test/images")
    assert source.labels.keys() == {"label"}
    np.testing.assert_array_equal(source.labels["label"], np.arange(HALF) + 50)
    np.testing.assert_array_equal(all_of(source), IMAGES[HALF:])


@pytest.mark.parametrize("kind", ["fixed", "variable"])
def test_text_of_hdf5(tmp_path, kind):
    path = make_hdf5(tmp_path, IMAGES)
    with h5py.File(path, "a") as file:
        dtype = h5py.string_dtype("utf-8", 20 if kind == "fixed" else None)
        file.create_dataset("names", data=[name.encode() for name in NAMES], dtype=dtype)
        file.create_dataset("color", data=[b"red", b"gr\xfcn"] * HALF, dtype=h5py.string_dtype("ascii", 4))
        file.create_dataset("place", (COUNT,), h5py.ref_dtype)
    source = opened(path)
    assert list(source.ids) == NAMES.tolist()
    assert source.labels["color"].tolist() == ["red", "gr\ufffdn"] * HALF
    assert source.labels.keys() == {"color"}
    with h5py.File(path, "a") as file:
        file["names"][0] = b"\xff"
    is_refused(path, r"images.h5 cannot be read as an array \('utf-8' codec .*")


def test_what_lies_elsewhere_is_not_read(tmp_path):
    secret = make_hdf5(tmp_path, IMAGES)
    (tmp_path / "secret.bin").write_bytes(IMAGES.tobytes())
    layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
    layout[:] = h5py.VirtualSource(secret, "images", IMAGES.shape)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", IMAGES.shape, "u1", external=[(str(tmp_path / "secret.bin"), 0, IMAGES.nbytes)])
        file.create_dataset("never", IMAGES.shape, "u1")
        file.create_dataset("label", (COUNT,), "u1", external=[(str(tmp_path / "secret.bin"), 0, COUNT)])
        file["images"] = IMAGES
        file["soft"] = h5py.SoftLink("/images")
        file["linked"] = h5py.ExternalLink(str(secret), "images")
        file["empty"] = h5py.Empty("f")
    for name in ("virtual", "external"):
        is_refused(f"{path}#{name}", f"#{name} is stored in other files, which are not read")
    is_refused(f"{path}#never", r"#never has shape \(12, 8, 10, 3\), but no values were written")
    for name in ("soft", "linked", "empty"):
        is_refused(f"{path}#{name}", f"has no array {name}. It has external, images, label and 2 more")
    source = opened(f"{path}#images")
    assert source.labels == {}
    np.testing.assert_array_equal(all_of(source), IMAGES)


def test_what_is_no_hdf5_is_told(tmp_path):
    (tmp_path / "a.h5").write_text("no HDF5")
    is_refused(tmp_path / "a.h5", r"a.h5 cannot be read as an array \(.*signature not found\)\)\. Repair or remove it")
    with h5py.File(tmp_path / "a.h5", "w"):
        pass
    is_refused(tmp_path / "a.h5", "has no array of images .* It has no arrays")
    h5py.File(tmp_path / "a.h5", "w").create_dataset("a", data=np.zeros((4, 8, 10, 3), "c8"))
    is_refused(tmp_path / "a.h5", r"It has a of shape \(4, 8, 10, 3\) and type complex64")


# --- LMDB ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "digits"), [("256", 5), ("None", 7), ("128", 7), ("a-b", 5)])
def test_keys_of_the_official_code(tmp_path, resolution, digits):
    path = make_lmdb(tmp_path, IMAGES, resolution, digits)
    source = opened(path)
    np.testing.assert_array_equal(all_of(source), IMAGES)
    assert source.name(3) == f"{resolution}-{3:0{digits}d} of {path}"
    for other in (path / "data.mdb", shutil.copy(path / "data.mdb", tmp_path / "one.lmdb")):
        np.testing.assert_array_equal(all_of(opened(other)), IMAGES)


@pytest.mark.parametrize(("size", "chosen"), [(8, "16"), (16, "16"), (17, "32"), (32, "32"), (64, "128"), (200, "128")])
def test_resolution_that_is_large_enough_is_read(tmp_path, size, chosen):
    content = {f"{side}-{i:05d}": png(np.full((side, side), i, np.uint8)) for side in (16, 32, 128) for i in range(2)}
    source = opened(make_keys(tmp_path / "a.lmdb", content | {"length": b"2"}), (size, size, 1))
    assert source.name(0).startswith(f"{chosen}-00000")
    assert source[1].shape == (int(chosen), int(chosen), 1)
    assert (source[1] == 1).all()


PICTURES = {f"8-{i:05d}": png(image) for i, image in enumerate(IMAGES)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PICTURES, "is not an LMDB of the official code: it lacks the key length. Its first keys are b'8-00000'"),
        ({"length": b"12"}, "it lacks images. Its first keys are b'length'"),
        ({}, "it lacks images. Its first keys are none"),
        ({"image-a": b"x", "image-b": b"y"}, "it lacks images. Its first keys are b'image-a', b'image-b'"),
        ({**PICTURES, "length": b"13"}, "lacks image 8-00012 of its 13 images. Copy the file again"),
        ({**PICTURES, "length": b"0"}, "holds no images"),
        ({**PICTURES, "length": b"twelve"}, "is damaged: its length is b'twelve', not a number"),
        ({**PICTURES, "length": b"-1"}, "is damaged: its length is .*, not a number"),
        ({**PICTURES, "length": b""}, "is damaged: its length is .*, not a number"),
        ({**PICTURES, "length": "\u0661\u0662".encode()}, "is damaged: its length is .*, not a number"),
        ({**PICTURES, "length": b"999999999"}, "lacks image 8-999999998 of its 999,999,999 images"),
        ({**PICTURES, "length": b"9" * 10**4}, "is damaged: its length is .*, not a number"),
        ({**PICTURES, "length": b"12", "8-00005": b"junk"}, "8-00005 of .* cannot be read as an image"),
        ({**PICTURES, "length": b"12", "8-00005": b""}, "8-00005 of .* cannot be read as an image"),
        ({**PICTURES, "length": b"12", "8-00005": PICTURES["8-00005"][:-60]}, "8-00005 of .* cannot be read"),
        (
            {name: image for name, image in PICTURES.items() if name != "8-00005"} | {"length": b"12"},
            "lacks image 8-00005 of its 12 images",
        ),
    ],
)
def test_lmdb_of_another_layout_or_damaged_is_told(tmp_path, content, message):
    is_refused(make_keys(tmp_path / "a.lmdb", content), message)


def test_lmdb_that_is_none_or_was_cut_off_is_told_before_the_process_could_die(tmp_path, made):
    content = (made("LMDB") / "data.mdb").read_bytes()
    file = tmp_path / "a.mdb"
    for length in (0, 1, 100, 4095, 4096, 5000, 8191, 8192, 8193, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        is_refused(file, r"a.mdb (cannot be read as LMDB|is incomplete: it has [\d,]+ of [\d,]+ bytes)")
    (tmp_path / "b.lmdb").write_bytes(b"no LMDB" * 10_000)
    is_refused(tmp_path / "b.lmdb", "cannot be read as LMDB")
    is_refused(made("LMDB"), "1, 3 or 4 channels", (8, 10, 2))


# --- TensorFlow Datasets -------------------------------------------------------------------------


def of_labels(tfds):
    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "digit": tfds.features.ClassLabel(num_classes=COUNT),
        "attributes": {"smile": np.bool_, "age": np.float32, "id": np.int64},
        "id": np.int64,
        "text": tfds.features.Text(),
        "box": tfds.features.BBoxFeature(),
    }


def with_labels(i):
    import tensorflow_datasets as tfds

    return {
        "label": i % 2,
        "digit": i,
        "attributes": {"smile": i % 3 == 0, "age": i / 2, "id": 2 * i},
        "id": i + 100,
        "text": "a",
        "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
    }


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    splits = {"train": IMAGES[:8], "test": IMAGES[8:]}
    return prepare_tfds(tmp_path_factory.mktemp("tfds"), splits, of_labels, with_labels, name="Labeled")


def test_features_are_images_and_labels(labeled):
    found = open_images(labeled, SHAPE)
    assert found.kind == "a data set of TensorFlow Datasets"
    assert found.notes == ["Only the split train is read. Other splits: test."]
    source = found.source
    np.testing.assert_array_equal(all_of(source), IMAGES[:8])
    assert source.labels.keys() == {"label", "digit", "smile", "age", "attributes/id", "id"}
    assert source.labels["label"].tolist() == ["cat", "dog"] * 4
    np.testing.assert_array_equal(source.labels["digit"], np.arange(8))
    np.testing.assert_array_equal(source.labels["smile"], np.arange(8) % 3 == 0)
    np.testing.assert_array_equal(source.labels["age"], np.arange(8) / 2)
    np.testing.assert_array_equal(source.labels["attributes/id"], np.arange(8) * 2)
    np.testing.assert_array_equal(source.labels["id"], np.arange(8) + 100)
    assert {values.dtype.kind for values in source.labels.values()} == set("ifO")


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("train", slice(0, 8)),
        ("test", slice(8, None)),
        ("train[:3]", slice(0, 3)),
        ("train[5:]", slice(5, 8)),
        ("train[-2:]", slice(6, 8)),
        ("train[:50%]", slice(0, 4)),
        ("test[1:3]", slice(9, 11)),
    ],
)
def test_splits_and_their_slices(labeled, part, rows):
    source = opened(f"{labeled}#{part}")
    np.testing.assert_array_equal(all_of(source), IMAGES[rows])
    assert len(source.labels["label"]) == len(source)
    assert source.fingerprint() == opened(f"{labeled}#{part}").fingerprint()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("validation", "has no split validation. It has test, train"),
        ("train+test", r"has no split train\+test\. It has test, train"),
        ("train[a:b]", r"has no part train\[a:b\] \(.*\)\. Write a slice as in train"),
        ("train[:", r"has no part train\[: \(.*\)\. Write a slice as in train"),
        ("train[3:3]", r"The split train\[3:3\] of .* holds no images"),
        ("train[5:3]", r"The split train\[5:3\] of .* holds no images|has no part"),
        ("train[:300%]", r"has no part train\[:300%\]"),
    ],
)
def test_splits_that_there_are_not_are_told(labeled, part, message):
    is_refused(f"{labeled}#{part}", message)


def test_other_features_than_one_image_are_told(tmp_path, labeled):
    is_refused(
        labeled,
        "has no feature that may be the image. Its features are attributes, box, digit and 4 more",
        (4,) * 5,
    )
    two = lambda tfds: {name: tfds.features.Image(shape=(None, None, 3)) for name in ("left", "right")}  # noqa: E731
    path = prepare_tfds(tmp_path, {"train": IMAGES[:1]}, two, name="Two")
    is_refused(path, "has several features that may be the image. Its features are left, right. Call one of them image")


def test_what_tensorflow_alone_reads_says_how_to_prepare_it(tmp_path, labeled):
    copy = shutil.copytree(labeled, tmp_path / "labeled" / "1.0.0")
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    is_refused(
        copy, 'is prepared as tfrecord, which only TensorFlow reads. Install .* "tfds build labeled --file_format=arr'
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", ""),
        ("dataset_info.json", "{"),
        ("dataset_info.json", "[]"),
        ("dataset_info.json", '{"name": 3}'),
        ("dataset_info.json", '{"unknown": 3}'),
        ("features.json", ""),
        ("features.json", "[]"),
        ("features.json", '{"pythonClassName": "os.system"}'),
        ("features.json", None),
    ],
)
def test_prepared_data_set_that_is_damaged_is_told(tmp_path, labeled, name, content):
    copy = shutil.copytree(labeled, tmp_path / "labeled" / "1.0.0")
    path = copy / name.replace("made", "labeled")
    path.unlink() if content is None else path.write_text(content)
    is_refused(copy, "1.0.0.* (cannot be read|has no|is prepared as)")


def test_records_that_are_missing_or_damaged_are_told(tmp_path, made):
    copy = shutil.copytree(made("TFDS"), tmp_path / "made" / "1.0.0")
    (records,) = copy.glob("*.array_record*")
    content, rng = bytearray(records.read_bytes()), np.random.default_rng(0)
    records.write_bytes(b"junk")
    is_refused(copy, r"Image 0 of .*1.0.0 \(train\) cannot be read as an image \(ArrayRecord file should be")
    filled = np.flatnonzero(np.frombuffer(content, np.uint8))
    for _ in range(100):  # of places that hold something
        changed = content.copy()
        for place in rng.choice(filled, 3):
            changed[place] ^= rng.integers(1, 256)
        records.write_bytes(changed[: rng.integers(len(changed))] if rng.random() < 0.3 else changed)
        try:
            np.testing.assert_array_equal(all_of(opened(copy)), IMAGES)
        except UserError as error:
            assert_is_one_sentence(error)
    records.unlink()
    is_refused(copy, "array_record-00000-of-00001 is missing. Check the path")
    shutil.rmtree(copy)
    is_refused(copy, "1.0.0 is missing. Check the path")


def test_names_of_data_sets_that_are_not_there_are_told():
    is_refused(
        "no_such_data_set", "no_such_data_set is missing. Check the path. TensorFlow Datasets has no data set of"
    )
    is_refused(
        "mnist", 'mnist is not prepared in .*. Install .* run "tfds build mnist --file_format=array_record" once'
    )


# --- volumes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_nifti_has_the_numbers_that_were_written(tmp_path, name, dtype):
    volume = noise(4, 5, 6, dtype=dtype)
    source = opened(save_nifti(tmp_path / name, volume), (4, 5, 6, 1))
    assert source[0].dtype == (np.float32 if np.dtype(dtype).kind == "f" else dtype)
    np.testing.assert_array_equal(source[0], volume[..., None].astype(source[0].dtype))


def test_nifti_is_turned_to_the_usual_orientation_and_scaled(tmp_path):
    volume = noise(4, 5, 6, dtype=np.int16)
    turned = np.diag([-1.0, 1, 1, 1])[[2, 0, 1, 3]]  # x of the array is -z, y is... of the body
    save_nifti(tmp_path / "a.nii", volume, turned)
    axes = nibabel.orientations.io_orientation(turned)
    found = opened(tmp_path, (6, 4, 5, 1))[0][..., 0]
    expected = volume
    for axis, (_, flip) in enumerate(axes):
        expected = np.flip(expected, axis) if flip < 0 else expected
    np.testing.assert_array_equal(found, expected.transpose(np.argsort(axes[:, 0])))
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    image.to_filename(tmp_path / "a.nii")
    found = opened(tmp_path, (4, 5, 6, 1))[0][..., 0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, nibabel.load(tmp_path / "a.nii").get_fdata())


def test_volumes_and_pictures_in_one_folder(tmp_path):
    volumes = noise(3, 4, 5, 6)
    for name in ("b.png", "c.jpg"):
        (tmp_path / name).write_bytes(png(IMAGES[0]))
    np.save(tmp_path / "a.npy", volumes[0])
    save_nifti(tmp_path / "d.nii", volumes[1])
    (tmp_path / "e").mkdir()
    save_nifti(tmp_path / "e" / "f.nii.gz", volumes[2])
    found = open_images(tmp_path, (4, 5, 6, 1))
    assert (found.kind, found.notes) == (
        "a folder of volumes",
        ["2 files are not read, because the file type differs from that of the images (b.png, c.jpg)."],
    )
    np.testing.assert_array_equal(all_of(found.source), volumes[..., None])
    found = open_images(tmp_path, SHAPE)
    assert found.kind == "a folder of image files"
    assert found.notes == [
        "3 files are not read, because the file type differs from that of the images (a.npy, d.nii, e/f.nii.gz)."
    ]
    assert found.source.ids == ["b.png", "c.jpg"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy"])
def test_damaged_volumes_are_told(tmp_path, name):
    path, volume = tmp_path / name, noise(4, 5, 6)
    np.save(path, volume) if name == "a.npy" else save_nifti(path, volume)
    content = path.read_bytes()
    for length in (0, 10, 60, len(content) - 50):
        path.write_bytes(content[:length])
        is_refused(tmp_path, rf"{name} cannot be read as an array", (4, 5, 6, 1))
    np.save(path, volume[0]) if name == "a.npy" else save_nifti(path, volume[0])
    is_refused(tmp_path, rf"{name} has shape \(5, 6\), but .* needs 3 spatial axes", (4, 5, 6, 1))
    np.save(path, volume * 1j) if name == "a.npy" else save_nifti(path, (volume * 1j).astype(np.complex64))
    is_refused(tmp_path, f"{name} holds values of complex.*, not numbers", (4, 5, 6, 1))


def test_nifti_beyond_all_measure_is_told(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        image = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.float64), np.eye(4))
        image.header["dim"][1:4] = 30_000, 30_000, 30_000
        with nibabel.openers.Opener(tmp_path / name, "wb") as file:
            image.header.write_to(file)
            file.write(bytes(100))
        is_refused(tmp_path / name, f"{name} has 27,000,000,000,000 values per image", (4, 5, 6, 1))


# --- Python sequences ----------------------------------------------------------------------------


class Loader:
    """Like a PyTorch data set: not a Sequence, and without an IndexError at its end."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Tensor:
    """Like a PyTorch tensor: converted to an array on request, which may fail."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.array


@pytest.mark.parametrize(
    "sequence",
    [
        IMAGES,
        list(IMAGES),
        tuple(map(Image.fromarray, IMAGES)),
        IMAGES.transpose(0, 3, 1, 2),
        Loader(IMAGES),
        Loader([Tensor(image.transpose(2, 0, 1)) for image in IMAGES]),
        Loader([image.tolist() for image in IMAGES]),
    ],
    ids=["array", "list", "PIL", "channels first", "loader", "tensors", "lists"],
)
def test_sequences_of_python(sequence):
    source = SequenceSource(sequence, SHAPE)
    assert isinstance(source, Source)
    assert source.ids == list(map(str, range(COUNT)))
    np.testing.assert_array_equal(all_of(source), IMAGES)
    assert source.name(3) == "Image 3 of the sequence"
    assert source.fingerprint() == SequenceSource(list(IMAGES.astype(source[0].dtype)), SHAPE).fingerprint()
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] += 1
    assert source.fingerprint() != SequenceSource(list(changed.astype(source[0].dtype)), SHAPE).fingerprint()
    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(
            list(pool.map(pickle.loads(pickle.dumps(source)).__getitem__, range(COUNT))), IMAGES
        )


def test_sequences_may_have_images_of_any_size():
    images = [noise(8 + i, 9, 3) for i in range(4)]
    source = SequenceSource(
        Loader([images[0], Image.fromarray(images[1]), images[2].transpose(2, 0, 1), images[3]]), (8, 8, 3)
    )
    for found, image in zip(all_of(source), images, strict=True):
        np.testing.assert_array_equal(found, image)
    prepared = TransformedSource(source, Transform((8, 8, 3)))
    assert read(prepared, range(4)).shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "Image 1 of the sequence holds values of object, not numbers"),
        ("a.png", "a.png is missing. Check the path"),
        ({"image": 3}, "Image 1 of the sequence is a dict with the keys image, and it is unclear which of them"),
        ((IMAGES[0], IMAGES[1]), r"Image 1 of the sequence has shape \(2, 8, 10, 3\)"),
        ([[1, 2], [3]], "Image 1 of the sequence is not an array"),
        (Tensor(None), "Image 1 of the sequence is not an array .*requires grad"),
        (IMAGES, r"Image 1 of the sequence has shape \(12, 8, 10, 3\), but .* needs 2 spatial axes, with or"),
        (3, r"Image 1 of the sequence has shape \(\)"),
        (np.zeros((4, 4), complex), "holds values of complex128"),
        (Image.open(io.BytesIO(png(IMAGES[0])[:-60])), "Image 1 of the sequence cannot be read as an image"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_items_that_are_no_images_are_told(item, message):
    call_is_refused(lambda: SequenceSource(Loader([IMAGES[0], item]), SHAPE)[1], message)


# --- whatever else a file may be -----------------------------------------------------------------


def damaged(content, rng):
    """Returns the content with a few bytes changed, or cut off."""
    if rng.random() < 0.5:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        changed[place] ^= rng.integers(1, 256)
    return bytes(changed)


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.jpg", "a.webp", "a.tif", "a.npy", "a.npz", "packed.npz", "a.h5", "packed.h5", "a.nii", "a.nii.gz"],
)
def test_damage_gives_an_image_or_a_sentence(tmp_path, name):
    path, image = tmp_path / name, noise(8, 8, 3)
    if name.endswith(("npy", "npz")):
        (np.save if name == "a.npy" else np.savez if name == "a.npz" else np.savez_compressed)(path, image[None])
    elif name.endswith("h5"):
        settings = dict(chunks=(1, 8, 8, 3), compression="gzip") if name.startswith("packed") else {}
        path = make_hdf5(tmp_path, image[None], **settings).rename(path)
    elif "nii" in name:
        save_nifti(path, image)
    else:
        Image.fromarray(image).save(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes, before = set(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(200):
        path = path.with_name(f"{i}{''.join(path.suffixes)}")
        path.write_bytes(damaged(content, rng))
        with warnings.catch_warnings(action="ignore"):
            try:
                source = opened(path, (8, 8, 3))
                outcomes |= {found.ndim for found in all_of(source)}
                _ = source.labels, source.fingerprint()
            except UserError as error:
                assert_is_one_sentence(error)
                outcomes.add("told")
        path.unlink()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 2**10  # KiB, also of what C allocates
    assert outcomes <= {3, "told"}
    assert "told" in outcomes


def test_damage_of_lmdb_that_was_cut_off_is_told(tmp_path, made):
    content, rng = (made("LMDB") / "data.mdb").read_bytes(), np.random.default_rng(0)
    for i, length in enumerate(rng.integers(len(content), size=200).tolist()):
        (tmp_path / f"{i}.mdb").write_bytes(content[:length])
        is_refused(tmp_path / f"{i}.mdb", "mdb (cannot be read as LMDB|is incomplete)")


# --- 16 bits in color, and pages -----------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_colors_of_16_bits_are_read_with_all_of_them(tmp_path, kind, channels):
    import cv2

    image = noise(9, 8, channels, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{kind}"), image[..., (2, 1, 0, 3)[:channels]])
    (found,) = read(opened(tmp_path), [0])
    np.testing.assert_array_equal(found, image)


def test_pages_are_told(tmp_path):
    pages = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "0.tif").write_bytes(png(noise(8, 8, 3), "tiff"))
    is_refused(tmp_path, "a.tif has 3 pages, so it is not one image. Keep single pages and stacks in separate folders")


def test_files_that_are_not_read_are_told(tmp_path):
    for name in ("a.png", "b.gif", "c.heic", "d.mp4", "labels.csv"):
        (tmp_path / name).write_bytes(png(noise(8, 8, 3)))
    found = open_images(tmp_path, SHAPE)
    assert list(found.source.ids) == ["a.png", "b.gif"]
    assert list(found.notes) == [
        "2 files are not read, because the file type differs from that of the images (c.heic, d.mp4)."
    ]


@pytest.mark.parametrize("count", [1, 64])
def test_chunks_of_many_images_are_told(tmp_path, count):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=noise(64, *SHAPE), chunks=(count, *SHAPE))
    notes = list(open_images(path, SHAPE).notes)
    assert len(notes) == (count > 1)
    assert count == 1 or notes[0].startswith(
        "Reading is slow: each chunk of the file holds 64 images, all of which are unpacked"
    )
