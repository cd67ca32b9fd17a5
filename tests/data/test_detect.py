"""The detected format of a path, parts after a #, held-out images, and the source of labels."""

import shutil

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.sources import Arrays, TransformedSource
from diffae_jax.data.splits import notes_on_labels, open_splits
from diffae_jax.data.transforms import transform_of
from diffae_jax.runtime.errors import UserError
from tests.data_files import (
    COUNT,
    MAKERS,
    SHAPE,
    make_folder,
    make_lmdb,
    make_npz,
    noise,
    png,
    prepare_tfds,
    save_nifti,
)
from tests.messages import assert_is_one_sentence

IMAGES = noise(COUNT, *SHAPE)
HALF = COUNT // 2
KINDS = {
    "folder": "a folder of image files",
    "npy": "an array file (.npy)",
    "npz": "an array file (.npz)",
    "packed npz": "an array file (.npz)",
    "HDF5": "an array file (.h5)",
    "chunked HDF5": "an array file (.h5)",
    "LMDB": "LMDB in the official layout",
    "TFDS": "a data set of TensorFlow Datasets",
    "zip": "a zip of images",
    "tar": "a tar of images",
    "tar shards": "3 tar files of images",
    "Parquet": "a data set of Hugging Face",
    "Arrow": "a data set of Hugging Face",
    "volumes": "a folder of volumes",
    "NIfTI": "a folder of volumes",
    "HDF5 files": "a folder of volumes",
    "Zarr": "a Zarr store",
    "old Zarr": "a Zarr store",
    "zipped Zarr": "a Zarr store",
    "TIFF stack": "the pages of TIFF files",
    "DICOM": "DICOM pictures",
}


def is_refused(call, message):
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert_is_one_sentence(refusal.value)


def splits_of(path, **settings):
    """Returns the images of the two splits, stacked."""
    _, *splits = open_splits(str(path), SHAPE, **settings)
    return [np.stack([source[i] for i in range(len(source))]) if len(source) else [] for source in splits]


def are(splits, training, held_out):
    np.testing.assert_array_equal(splits[0], training)
    np.testing.assert_array_equal(splits[1], held_out)


# --- recognition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_format_is_detected_from_the_path(tmp_path, kind):
    opened = open_images(MAKERS[kind](tmp_path, IMAGES), SHAPE)
    assert opened.kind == KINDS[kind]
    assert [note for note in opened.notes if not note.startswith("Images are read from an Arrow copy")] == []
    assert len(opened.notes) == (kind == "Parquet")
    assert len(opened.source) == COUNT


def test_suffixes_count_in_any_case_and_links_are_followed(tmp_path):
    np.save(tmp_path / "A.NPY", IMAGES) or (tmp_path / "A.NPY.npy").rename(tmp_path / "A.NPY")
    assert open_images(tmp_path / "A.NPY", SHAPE).kind == "an array file (.npy)"
    (tmp_path / "link").symlink_to(make_folder(tmp_path, IMAGES))
    assert len(open_images(tmp_path / "link", SHAPE).source) == COUNT


def test_home_is_where_a_tilde_leads(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path, IMAGES)
    assert len(open_images("~/images", SHAPE).source) == COUNT
    are(splits_of("~/images", held_out="[:3]"), IMAGES[3:], IMAGES[:3])
    is_refused(lambda: open_images("~nobody-of-this-name/images", SHAPE), "~nobody-of-this-name/images is missing")
    is_refused(lambda: splits_of("~/images", held_out="~nobody-of-this-name/images"), "is not a subfolder of ~/images")
    for labels in ("~nobody-of-this-name/a.csv", "~/a.csv"):
        is_refused(lambda labels=labels: splits_of("~/images", labels=labels), "a.csv is missing")


@pytest.mark.parametrize(
    ("shape", "image_shape", "count"),
    [
        ((8, 10, 3), (8, 10, 3), None),  # is one image
        ((3, 8, 10, 3), (8, 10, 3), 3),
        ((3, 8, 10), (8, 10, 1), 3),
        ((8, 10, 1), (8, 10, 1), None),
        ((8, 10), (8, 10, 1), None),
        ((20, 30, 3), (8, 10, 3), None),
        ((3, 32), (32, 1), 3),
        ((32,), (32, 1), None),
        ((32, 2), (32, 2), None),
        ((40, 2), (32, 2), None),
        ((8, 8, 8), (8, 8, 8, 1), None),
        ((5, 8, 8, 8), (8, 8, 8, 1), 5),
    ],
    ids=str,
)
def test_an_npy_is_one_image_or_many(tmp_path, shape, image_shape, count):
    array = noise(*shape)
    np.save(tmp_path / "a.npy", array)
    opened = open_images(tmp_path / "a.npy", image_shape)
    assert len(opened.source) == (count or 1)
    assert opened.kind == ("an array file (.npy)" if count else "one file")
    found = np.stack([opened.source[i] for i in range(len(opened.source))])
    np.testing.assert_array_equal(found.reshape(array.shape), array)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.rar", b"", "a.rar is an archive. Unpack it and give the folder"),
        ("a.7z", b"", "a.7z is an archive"),
        ("a.csv", b"a", "a.csv is a table or text file, not images"),
        ("a", b"", "a cannot be read as an image"),
        ("a.nii.gz", b"", "a.nii.gz cannot be read as an array"),
        ("a.h5", b"", "a.h5 cannot be read as an array"),
        ("a.npz", b"", "a.npz cannot be read as an array"),
        ("a.npy", b"", "a.npy cannot be read as an array"),
        ("a.lmdb", b"", "a.lmdb cannot be read as LMDB"),
        ("data.mdb", b"", "data.mdb cannot be read as LMDB"),
    ],
)
def test_files_without_images_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    is_refused(lambda: open_images(tmp_path / name, SHAPE).source[0], message)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no-such-folder", "no-such-folder is missing. Check the path"),
        ("no_such_folder", "no_such_folder is missing. Check the path"),
        ("no/such/folder.npz#images", "no/such/folder.npz is missing. Check the path"),
        ("empty", r"empty holds no image files \(.png, .jpg, .*.npy\), not even in subfolders\. Check the path\.$"),
        ("odd", r"odd holds no image files .*\. It holds a.txt, b.heic, c.mp4 and 1 more"),
        ("lmdb.lmdb", "lmdb.lmdb holds no image files"),
        ("a\0b", "cannot be read: it has characters that are not allowed in a path"),
        ("x" * 300, "cannot be read .*File name too long"),
        ("empty#part", "empty has no part part. Only folders of HDF5, Zarr or DICOM have parts"),
        ("c.h5#", "c.h5 cannot be read as an array"),
        ("digits", r"The digits have image_shape=\(8, 8, 1\), not \(8, 10, 3\)"),
        ("digits#test", "digits is missing. Check the path"),
        ("", "There are no images to train on. Set --config.data.path=PATH"),
    ],
)
def test_paths_without_images_are_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "odd", "lmdb.lmdb"):
        (tmp_path / name).mkdir()
    for name in ("a.txt", "b.heic", "c.mp4", "d.mp4"):
        (tmp_path / "odd" / name).touch()
    (tmp_path / "c.h5").touch()
    is_refused(lambda: open_splits(path, SHAPE), message)


def test_pictures_for_volumes_and_volumes_for_pictures_are_refused(tmp_path):
    make_folder(tmp_path, IMAGES)
    is_refused(lambda: open_images(tmp_path / "images", (8, 8, 8, 1)), "1, 3 or 4 channels")
    save_nifti(tmp_path / "a.nii", noise(8, 8, 8))
    source = open_images(tmp_path / "a.nii", (8, 8, 1)).source
    prepared = TransformedSource(source, transform_of(config((8, 8, 1))))
    is_refused(lambda: prepared[0], r"a.nii has 8 channels, not 1")


def config(image_shape, **data):
    from diffae_jax.config import default

    made = default()
    made.image_shape = image_shape
    made.data.update(data)
    return made


def test_transform_is_that_of_the_config():
    transform = transform_of(config((8, 8, 1), crop="celeba", intensity="0..4095"))
    assert (transform.image_shape, transform.crop, transform.intensity) == ((8, 8, 1), "celeba", (0.0, 4095.0))
    for text in ("", "1%..99%"):
        assert transform_of(config((8, 8, 1), intensity=text)).intensity is None
    assert transform_of(config((8, 8, 1), intensity="1%..99%"), "0.5..2.5").intensity == (0.5, 2.5)


def test_names_with_a_hash_are_names_where_they_are_there(tmp_path):
    folder = tmp_path / "set #1"
    folder.mkdir()
    path = make_npz(folder, IMAGES)
    assert len(open_images(f"{path}#arr_0", SHAPE).source) == COUNT
    whole = path.rename(tmp_path / "a#b.npz")
    np.savez(whole, train=IMAGES[:8], test=IMAGES[8:])
    assert len(open_images(f"{whole}#test", SHAPE).source) == 4
    are(splits_of(f"{whole}#train", held_out="test"), IMAGES[:8], IMAGES[8:])
    np.savez(whole, images=IMAGES[:8], test=IMAGES[8:, :4])
    are(splits_of(whole, held_out="test"), IMAGES[:8], IMAGES[8:, :4])


# --- which images are held out -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held_out", "rows"),
    [
        ("[:3]", slice(3)),
        ("[3:]", slice(3, None)),
        ("[-2:]", slice(-2, None)),
        ("[2:-4]", slice(2, -4)),
        ("[:-9]", slice(-9)),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "npy", "LMDB", "TFDS"])
def test_slice_of_the_order(tmp_path, kind, held_out, rows):
    is_held_out = np.zeros(COUNT, bool)
    is_held_out[rows] = True
    are(splits_of(MAKERS[kind](tmp_path, IMAGES), held_out=held_out), IMAGES[~is_held_out], IMAGES[is_held_out])


@pytest.mark.parametrize("held_out", ["[:]", "[:100]", "[100:]", "[5:5]", "[:0]", "[-100:]", f"[{10**17}:]"])
def test_slice_that_leaves_a_split_empty_is_refused(tmp_path, held_out):
    path = MAKERS["npy"](tmp_path, IMAGES)
    is_refused(
        lambda: splits_of(path, held_out=held_out),
        r"data.held_out=\[.*\] holds out (0|12) of 12 images. Hold out at least one",
    )


@pytest.mark.parametrize("held_out", ["[-:]", "[a:b]", "[::2]", "[3]", f"[{'9' * 5000}:]"], ids=lambda text: text[:5])
@pytest.mark.parametrize("kind", ["folder", "npy", "TFDS"])
def test_invalid_slice_is_refused(tmp_path, kind, held_out):
    path = MAKERS[kind](tmp_path, IMAGES)
    is_refused(lambda: splits_of(path, held_out=held_out), r"\[(-|a|:|3|9)")


def test_subfolder(tmp_path):
    root = make_folder(tmp_path, IMAGES[:8])
    for name, rows in {"test/a": [8, 9], "test/b": [10], "tests": [11]}.items():
        (root / name).mkdir(parents=True)
        for row in rows:
            (root / name / f"{row}.png").write_bytes(png(IMAGES[row]))
    for name in ("test", "test/"):
        are(splits_of(root, held_out=name), [*IMAGES[:8], IMAGES[11]], IMAGES[8:11])
    are(splits_of(root, held_out="test/b"), [*IMAGES[:10], IMAGES[11]], IMAGES[10:11])
    is_refused(
        lambda: splits_of(root, held_out="testing"), "data.held_out=testing is not a subfolder of .*images with images"
    )
    is_refused(lambda: splits_of(root, held_out="tes"), "data.held_out=tes is not a subfolder")


def test_table_and_list(tmp_path):
    root = make_folder(tmp_path, IMAGES)
    (tmp_path / "a.csv").write_text(
        "image,split\n" + "".join(f"{i:02d}.png,{'test' if i < 4 else 'train'}\n" for i in range(9))
    )
    are(splits_of(root, held_out=str(tmp_path / "a.csv")), IMAGES[4:], IMAGES[:4])
    (tmp_path / "list.txt").write_text("07.png\n02.png\n")
    are(splits_of(root, held_out=str(tmp_path / "list.txt")), np.delete(IMAGES, [2, 7], 0), IMAGES[[2, 7]])
    (tmp_path / "list.txt").write_text("nobody.png\n")
    is_refused(
        lambda: splits_of(root, held_out=str(tmp_path / "list.txt")), "None of the 1 names in the held-out table"
    )
    (tmp_path / "list.txt").write_text("".join(f"{i:02d}.png\n" for i in range(COUNT)))
    is_refused(lambda: splits_of(root, held_out=str(tmp_path / "list.txt")), "holds out 12 of 12 images")
    is_refused(lambda: splits_of(root, held_out=str(tmp_path / "no.csv")), "no.csv is missing. Check the path")


@pytest.mark.parametrize("kind", MAKERS)
def test_images_elsewhere(tmp_path, kind):
    (tmp_path / "other").mkdir()
    other = MAKERS[kind](tmp_path / "other", IMAGES[:5])
    are(splits_of(make_folder(tmp_path, IMAGES[5:]), held_out=str(other)), IMAGES[5:], IMAGES[:5])


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_array_of_the_same_file(tmp_path, suffix):
    import h5py

    path, arrays = tmp_path / f"a.{suffix}", dict(train=IMAGES[:8], test=IMAGES[8:], test_labels=np.arange(4))
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    for held_out in ("test", "#test", f"{path}#test"):
        are(splits_of(f"{path}#train", held_out=held_out), IMAGES[:8], IMAGES[8:])
    opened = open_splits(f"{path}#train", SHAPE, held_out="test")
    assert opened[2].labels.keys() == {"labels"}
    is_refused(
        lambda: splits_of(f"{path}#train", held_out="nothing"), "has no array nothing. It has test, test_labels, train"
    )


def test_split_of_the_same_data_set(tmp_path):
    path = prepare_tfds(tmp_path, {"train": IMAGES[:8], "test": IMAGES[8:]}, name="Parted")
    are(splits_of(path, held_out="test"), IMAGES[:8], IMAGES[8:])
    are(splits_of(f"{path}#test", held_out="train[:2]"), IMAGES[8:], IMAGES[:2])
    opened = open_splits(str(path), SHAPE, held_out="test")[0]
    assert opened.notes == [
        "Only the split train is read. Other splits: test.",
        "Held-out images: a data set of TensorFlow Datasets, test.",
        "Only the split test is read. Other splits: train.",
    ]
    is_refused(lambda: splits_of(path, held_out="validation"), "has no split validation. It has test, train")


@pytest.mark.parametrize("kind", ["npy", "LMDB"])
def test_missing_part_is_refused(tmp_path, kind):
    path = MAKERS[kind](tmp_path, IMAGES)
    message = "has no array test. An npy file is a single array" if kind == "npy" else "is not a subfolder of"
    is_refused(lambda: splits_of(path, held_out="test"), message)


def test_images_in_memory(tmp_path):
    settings = dict(path="", image_shape=SHAPE)
    opened, training, held_out = open_splits(**settings, images=list(IMAGES), held_out_share=0.5)
    assert opened.kind == "a sequence in memory"
    assert len(training) + len(held_out) == COUNT
    assert not set(training.ids) & set(held_out.ids)
    _, training, held_out = open_splits(**settings, images=Arrays(IMAGES, list("abcdefghijkl")), held_out="[:2]")
    assert (held_out.ids, len(training)) == (["a", "b"], 10)
    np.save(tmp_path / "other.npy", IMAGES[:3])
    _, training, held_out = open_splits(**settings, images=IMAGES, held_out=str(tmp_path / "other.npy"))
    assert (len(training), len(held_out)) == (12, 3)
    (tmp_path / "labels.csv").write_text("image,n\n3,1\n5,2\n")
    _, training, held_out = open_splits(**settings, images=IMAGES, labels=str(tmp_path / "labels.csv"), held_out="[:4]")
    np.testing.assert_array_equal(held_out.labels["n"], [np.nan] * 3 + [1])
    others = settings | dict(path="digits")  # of a config, which counts for nothing then
    assert len(open_splits(**others, images=IMAGES)[1]) == COUNT
    is_refused(
        lambda: open_splits(**settings, images=IMAGES, held_out="test"),
        r"data.held_out=test is not the path of images or of a table, nor a slice such as \[:1000\]",
    )


def test_share_is_chosen_by_the_names_alone(tmp_path):
    path = MAKERS["npy"](tmp_path, IMAGES)
    every, none = (open_splits(str(path), SHAPE, held_out_share=share)[2].ids for share in (0.99, 0.0))
    half = open_splits(str(path), SHAPE, held_out_share=0.5)[2].ids
    assert not none
    assert set(half) < set(every)
    (tmp_path / "fewer").mkdir()
    fewer = open_splits(str(MAKERS["npy"](tmp_path / "fewer", IMAGES[:7])), SHAPE, held_out_share=0.5)[2].ids
    assert fewer == [name for name in half if int(name) < 7]


def test_digits_are_split_by_their_writers():
    _, training, held_out = open_splits("digits", (8, 8, 1))
    assert (len(training), len(held_out)) == (1437, 360)
    _, training, held_out = open_splits("digits", (8, 8, 1), held_out="[:100]")
    assert held_out.ids[-1] == "digit-0099"
    is_refused(lambda: open_splits("digits", (8, 8, 1), labels="a.csv"), "The digits already have labels")


# --- labels --------------------------------------------------------------------------------------


def test_folders_are_labels_of_both_splits(tmp_path):
    for i, image in enumerate(IMAGES):
        file = tmp_path / "images" / ("cats" if i % 2 else "dogs") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    _, *splits = open_splits(str(tmp_path / "images"), SHAPE, labels="folders", held_out_share=0.5)
    for source in splits:
        assert len(source)
        assert source.labels["folder"].tolist() == [name.partition("/")[0] for name in source.ids]
    assert notes_on_labels("folders", *splits) == []
    is_refused(
        lambda: open_splits(str(make_folder(tmp_path, IMAGES)), SHAPE, labels="folders"),
        r"12 of 24 images are in no subfolder \(00.png, 01.png, 02.png and 9 more\)",
    )


def test_table_takes_the_place_of_labels_in_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, digit=np.arange(COUNT))
    assert open_images(tmp_path / "a.npz", SHAPE).source.labels.keys() == {"digit"}
    (tmp_path / "a.csv").write_text("image,smile\n" + "".join(f"{i},{i % 2}\n" for i in range(COUNT)))
    labels = str(tmp_path / "a.csv")
    _, *splits = open_splits(str(tmp_path / "a.npz"), SHAPE, labels=labels, held_out="[:4]")
    assert all(source.labels.keys() == {"smile"} for source in splits)
    np.testing.assert_array_equal(splits[0].labels["smile"], np.arange(4, COUNT) % 2)
    assert splits[0].fingerprint() == open_splits(str(tmp_path / "a.npz"), SHAPE, held_out="[:4]")[1].fingerprint()
    assert notes_on_labels(labels, *splits) == []
    (tmp_path / "a.csv").write_text("image,smile\n" + "".join(f"{i + 2},{i % 2}\n" for i in range(COUNT)))
    _, *splits = open_splits(str(tmp_path / "a.npz"), SHAPE, labels=labels, held_out="[:4]")
    assert notes_on_labels(labels, *splits) == [
        "2 of 12 images have no labels (0, 1).",
        "2 of 12 rows in the table of labels match no image (12, 13).",
    ]


def test_fingerprint_of_a_split_is_of_its_images(tmp_path):
    path = make_folder(tmp_path, IMAGES)
    copy = shutil.copytree(path, tmp_path / "copy")
    marks = {
        source.fingerprint() for root in (path, copy) for source in open_splits(str(root), SHAPE, held_out="[:4]")[1:]
    }
    assert len(marks) == 2
    assert open_splits(str(path), SHAPE, held_out="[:5]")[1].fingerprint() not in marks
    Image.fromarray(IMAGES[0][:4]).save(path / "05.png")
    assert open_splits(str(path), SHAPE, held_out="[:4]")[1].fingerprint() not in marks


# --- no image on both sides ----------------------------------------------------------------------


def test_held_out_folder_within_the_other_is_taken_out_of_training(tmp_path):
    folder = make_folder(tmp_path, IMAGES)
    (folder / "val").mkdir()
    for name in ("00.png", "01.png"):
        (folder / name).rename(folder / "val" / name)
    for held_out in ("val", folder / "val", folder / "val" / "00.png"):
        _, training, kept = open_splits(str(folder), SHAPE, held_out=str(held_out))
        assert len(kept) == (1 if str(held_out).endswith("png") else 2)
        assert sorted([*training.ids, *kept.ids]) == sorted(open_images(folder, SHAPE).source.ids)
    is_refused(lambda: splits_of(folder, held_out=str(folder)), "holds out 12 of 12 images")


def test_parts_with_images_in_common_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=IMAGES[:8], test=IMAGES[8:])
    is_refused(lambda: splits_of(f"{path}#train", held_out="train"), "has images in common with the training images")
    is_refused(lambda: splits_of(f"{path}#train", held_out=f"{path}#train"), "has images in common")
    data_set = prepare_tfds(tmp_path, {"train": IMAGES}, name="Common")
    is_refused(lambda: splits_of(data_set, held_out="train[:10%]"), "has images in common")
    are(splits_of(f"{data_set}#train[:8]", held_out="train[8:]"), IMAGES[:8], IMAGES[8:])
    base = make_lmdb(tmp_path, IMAGES)
    is_refused(lambda: splits_of(base, held_out=str(base)), "has images in common")
    is_refused(lambda: open_splits("digits", (8, 8, 1), held_out="digits"), "has images in common")
    folder = make_folder(tmp_path, IMAGES)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "link.png").symlink_to(folder / "00.png")
    (tmp_path / "more" / "own.png").write_bytes(png(IMAGES[0]))
    is_refused(lambda: splits_of(folder, held_out=str(tmp_path / "more")), "has images in common")


def test_part_of_the_data_set_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path, IMAGES[:3]).rename(tmp_path / "test")
    np.savez("a.npz", train=IMAGES[:8], test=IMAGES[8:])
    are(splits_of("a.npz#train", held_out="test"), IMAGES[:8], IMAGES[8:])
    assert len(open_splits("a.npz#train", SHAPE, held_out="./test")[2]) == 3


def test_rows_without_image_and_images_without_row_are_reported(tmp_path):
    folder = make_folder(tmp_path, IMAGES)
    (tmp_path / "split.csv").write_text("id,split\n00.png,test\n1.png,test\n02.png,train\n")
    opened, _, held_out = open_splits(str(folder), SHAPE, held_out=str(tmp_path / "split.csv"))
    assert list(held_out.ids) == ["00.png"]
    assert opened.notes == [
        "1 of 3 names in the held-out table match no image (1.png).",
        "10 of 12 images are not in the held-out table, so they are trained on (01.png, 03.png, 04.png and 7 more).",
    ]


def test_labels_that_match_both_splits_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train=IMAGES[:8], test=IMAGES[8:])
    (tmp_path / "l.csv").write_text("id,y\n" + "".join(f"{i},{i % 2}\n" for i in range(8)))
    settings = dict(held_out="test", labels=str(tmp_path / "l.csv"))
    is_refused(
        lambda: splits_of(f"{tmp_path / 'a.npz'}#train", **settings),
        "^4 ids belong to both a training image and a held-out image",
    )


def test_labels_that_held_out_images_lack_are_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, y=np.arange(COUNT))
    np.save(tmp_path / "b.npy", IMAGES)
    opened, training, held_out = open_splits(str(tmp_path / "a.npz"), SHAPE, held_out=str(tmp_path / "b.npy"))
    assert (dict(training.labels), dict(held_out.labels)) == ({}, {})
    assert opened.notes[-1] == "These labels are not used, because the held-out images lack them: y."
