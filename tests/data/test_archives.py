"""Zip and tar files of images: labels, names, held-out images, and damage."""

import json
import tarfile
import zipfile

import numpy as np
import pytest

from diffae_jax.data.detect import open_images
from diffae_jax.data.inspect.infer_shape import infer_image_shape
from diffae_jax.data.splits import open_splits
from diffae_jax.runtime.errors import UserError
from tests.data.test_formats import all_of, call_is_refused, damaged, is_refused, opened
from tests.data_files import COUNT, SHAPE, make_image_zip, make_shards, make_tar, noise, png, write_tar, write_zip
from tests.messages import assert_is_one_sentence

IMAGES = noise(COUNT, *SHAPE)
PNGS = [png(image) for image in IMAGES]


def ids_of(path, **settings):
    """Returns the ids of the two splits."""
    _, *splits = open_splits(str(path), SHAPE, **settings)
    return [list(source.ids) for source in splits]


# --- zip -----------------------------------------------------------------------------------------


def labeled_zip(path, labels, count=3):
    """Writes a zip as StyleGAN and EDM do."""
    files = {f"00000/img{i:08d}.png": PNGS[i] for i in range(count)}
    return write_zip(path / "dataset.zip", files | {"dataset.json": json.dumps({"labels": labels})})


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            [["00000/img00000002.png", 6], ["00000/img00000000.png", 4], ["00000/img00000001.png", 0]],
            {"label": [4, 0, 6]},
        ),
        ([["00000/img00000002.png", 6]], {"label": [np.nan, np.nan, 6]}),
        (
            [[f"00000/img{i:08d}.png", [i, i / 2]] for i in range(3)],
            {"label_0": [0, 1, 2], "label_1": [0, 0.5, 1]},
        ),
        ([["00000/img00000000.png", 0.5]], {"label": [0.5, np.nan, np.nan]}),
        (None, {}),
        ([], {}),
    ],
    ids=["classes", "some", "lists", "float", "null", "empty"],
)
def test_labels_of_dataset_json(tmp_path, labels, expected):
    found = open_images(labeled_zip(tmp_path, labels), SHAPE)
    assert found.source.ids == [f"00000/img{i:08d}.png" for i in range(3)]
    assert found.source.labels.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found.source.labels[name], values)
    np.testing.assert_array_equal(all_of(found.source), IMAGES[:3])
    assert found.notes == []


def test_classes_are_integers_if_all_images_have_one(tmp_path):
    path = labeled_zip(tmp_path, [[f"00000/img{i:08d}.png", i] for i in range(3)])
    assert opened(path).labels["label"].dtype == np.int64
    path = labeled_zip(tmp_path, [[f"00000/img{i:08d}.png", i] for i in range(4)])
    assert open_images(path, SHAPE).notes == ["1 of 4 rows of dataset.json match no image (00000/img00000003.png)."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"dataset.zip/dataset.json cannot be read as JSON \(.*\): it is damaged"),
        (
            b'{"labels": [["a.png", "cat"]]}',
            r"dataset.json with a label that cannot be read \(\['a.png', 'cat'\]\)\. Write \[name, nu",
        ),
        (b'{"labels": [["a.png"]]}', "a label that cannot be read"),
        (b'{"labels": {"a.png": 3}}', r"a label that cannot be read \({'a.png': 3}\)"),
        (b'{"labels": [3]}', r"a label that cannot be read \(3\)"),
    ],
)
def test_damaged_dataset_json_is_told(tmp_path, content, message):
    is_refused(write_zip(tmp_path / "dataset.zip", {"a.png": PNGS[0], "dataset.json": content}), message)


def test_json_of_another_form_has_no_labels(tmp_path):
    for content in (b"[]", b"{}", b"3"):
        source = opened(write_zip(tmp_path / "a.zip", {"a.png": PNGS[0], "dataset.json": content}))
        assert source.labels == {}


def test_zip_is_read_with_its_folders_but_nothing_hidden(tmp_path):
    names = "b.png", "a/c.JPG", "a/b/d.webp", ".hidden.png", ".git/e.png", "__MACOSX/a/c.JPG", "a/n.txt", "a/g.heic"
    path = write_zip(tmp_path / "A.ZIP", {name: PNGS[0] for name in names} | {"empty.png/": b""})
    found = open_images(path, SHAPE)
    assert found.source.ids == ["a/b/d.webp", "a/c.JPG", "b.png"]
    assert found.notes == ["1 file is not read, because the file type differs from that of the images (a/g.heic)."]
    assert found.source.name(2) == f"b.png of {path}"


def test_last_of_two_entries_of_a_name_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PNGS[0])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", PNGS[1])
    (found,) = all_of(opened(tmp_path / "a.zip"))
    np.testing.assert_array_equal(found, IMAGES[1])


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries(tmp_path, method):
    path = write_zip(tmp_path / "a.zip", {"a.png": PNGS[0]}, compression=method)
    np.testing.assert_array_equal(opened(path)[0], IMAGES[0])


@pytest.mark.parametrize("root", ["", "photos/", "home/me/photos/"])
def test_folders_of_a_zip_are_labels_and_splits(tmp_path, root):
    files = {f"{root}{folder}/{i}.png": PNGS[i] for i, folder in enumerate(["cat", "dog", "dog", "val/cat", "val/dog"])}
    path = write_zip(tmp_path / "photos.zip", files)
    for held_out in ("val", f"{root}val", f"{root}val/"):
        _, training, kept = open_splits(str(path), SHAPE, labels="folders", held_out=held_out)
        assert list(kept.ids) == [f"{root}val/cat/3.png", f"{root}val/dog/4.png"]
        assert training.labels["folder"].tolist() == ["cat", "dog", "dog"]
        assert kept.labels["folder"].tolist() == ["cat", "dog"]


def test_images_directly_in_the_one_folder_have_no_label(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"photos/a.png": PNGS[0], "photos/cat/b.png": PNGS[1]})
    call_is_refused(lambda: ids_of(path, labels="folders"), r"All 2 images are in the same subfolder \(photos\)")


def test_zip_of_something_else_or_damaged_is_told(tmp_path):
    path = tmp_path / "a.zip"
    is_refused(
        write_zip(path, {}), r"a.zip holds no image files \(.png, .*.gif\), not even in subfolders\. Check the path\.$"
    )
    is_refused(write_zip(path, {"a.npy": b"x", "b/c.txt": b""}), r"holds no image files .*\. It holds a.npy, b/c.txt")
    is_refused(make_image_zip(tmp_path, IMAGES), "1, 3 or 4 channels", (8, 10, 2))
    path.write_text("no zip")
    is_refused(path, r"a.zip cannot be read as a zip \(File is not a zip file\)\. Copy it again")
    content = make_image_zip(tmp_path, IMAGES).read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        is_refused(path, r"a.zip cannot be read as a zip \(.*\)\. Copy it again")
    changed = bytearray(content)
    changed[content.index(PNGS[3]) + 40] ^= 1
    path.write_bytes(changed)
    is_refused(
        path, r"images/03.png of .*a.zip cannot be read as an image \(Bad CRC-32 for file .*\)\. Repair or remove"
    )
    source = opened(path)
    np.testing.assert_array_equal(source[4], IMAGES[4])


def test_encrypted_zip_is_told(tmp_path):
    path = make_image_zip(tmp_path, IMAGES[:1])
    content = bytearray(path.read_bytes())
    content[6] |= 1  # flags of the entry and of its place in the directory
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    is_refused(path, r"images.zip is encrypted\. Unpack it with its password, and give the folder")


def test_zip_is_not_held_out_from_itself(tmp_path):
    path = make_image_zip(tmp_path, IMAGES)
    call_is_refused(lambda: ids_of(path, held_out=str(path)), "has images in common with the training images")
    other = write_zip(tmp_path / "other.zip", {"a.png": PNGS[0]})
    assert ids_of(path, held_out=str(other))[1] == ["a.png"]
    call_is_refused(lambda: ids_of(path, held_out="test"), "test is not a subfolder of .*images.zip with images")


# --- tar -----------------------------------------------------------------------------------------


def samples(numbers, **others):
    """Returns the files of WebDataset samples: images, and files of each kind."""
    files = {}
    for i in numbers:
        files[f"{i:04d}.png"] = PNGS[i]
        files |= {f"{i:04d}.{kind}": content(i) for kind, content in others.items()}
    return files


def record(i):
    return json.dumps({"age": i / 2, "color": "red", "flag": i > 1, "box": [1, 2], "of": {"a": 1}, "no": None}).encode()


def test_labels_of_samples(tmp_path):
    files = samples(range(4), cls=lambda i: b"%d\n" % (i + 5), json=record, txt=lambda i: b"a caption")
    found = open_images(write_tar(tmp_path / "a.tar", files), SHAPE)
    assert found.source.ids == ["0000.png", "0001.png", "0002.png", "0003.png"]
    assert {name: values.tolist() for name, values in found.source.labels.items()} == {
        "cls": [5, 6, 7, 8],
        "age": [0.0, 0.5, 1.0, 1.5],
        "color": ["red"] * 4,
        "flag": [0, 0, 1, 1],
    }
    assert {values.dtype.kind for values in found.source.labels.values()} == set("ifO")
    assert found.notes == []
    np.testing.assert_array_equal(all_of(found.source), IMAGES[:4])


def test_labels_that_some_images_lack(tmp_path):
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", samples(range(2), cls=b"%d".__mod__))
    write_tar(tmp_path / "shards" / "1.tar", samples([2], json=lambda i: b'{"name": "c", "mixed": 1}'))
    write_tar(tmp_path / "shards" / "2.tar", samples([3], json=lambda i: b'{"mixed": "d"}'))
    write_tar(tmp_path / "shards" / "3.tar", samples([4], json=lambda i: b"[3]"))
    source = opened(tmp_path / "shards")
    assert source.ids == ["0.tar/0000.png", "0.tar/0001.png", "1.tar/0002.png", "2.tar/0003.png", "3.tar/0004.png"]
    np.testing.assert_array_equal(source.labels["cls"], [0, 1, np.nan, np.nan, np.nan])
    assert source.labels["name"].tolist() == ["", "", "c", "", ""]
    assert source.labels["mixed"].tolist() == ["", "", "1", "d", ""]
    np.testing.assert_array_equal(all_of(source), IMAGES[:5])


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("cls", b"cat", r"0000.cls of .*a.tar holds cat, not an integer\. Write the number of a class"),
        ("cls", b"", "holds nothing, not an integer"),
        ("cls", b"\xff", "not an integer"),
        ("json", b"{", r"a.tar/0000.json cannot be read as JSON"),
    ],
)
def test_damaged_labels_of_samples_are_told(tmp_path, kind, content, message):
    is_refused(write_tar(tmp_path / "a.tar", samples([0], **{kind: lambda i: content})), message)


def test_further_images_and_files_of_a_sample_are_not_read(tmp_path):
    files = samples(range(2), **{"seg.png": lambda i: PNGS[9], "mp3": lambda i: b"x", "cls": lambda i: b"3"})
    found = open_images(write_tar(tmp_path / "a.tar", files), SHAPE)
    assert found.source.ids == ["0000.png", "0001.png"]
    assert found.source.labels["cls"].tolist() == [3, 3]
    assert found.notes == [
        "2 images are not read, because several dots in a name mark further files of an image (0000.seg.png, "
        "0001.seg.png).",
        "2 files are not read, because the file type differs from that of the images (0000.mp3, 0001.mp3).",
    ]
    path = write_tar(tmp_path / "b.tar", {"a.1.png": PNGS[0]})
    is_refused(path, r"b.tar holds no image with a name such as 0001.jpg. .* several dots in their names \(a.1.png\)")


def test_names_in_a_tar(tmp_path):
    names = "./b.PNG", "./a/c.jpg", "./.hidden.png", "./a/._c.jpg"
    with tarfile.open(write_tar(tmp_path / "a.tar", dict.fromkeys(names, PNGS[0])), "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        archive.addfile(link)
    source = opened(tmp_path / "a.tar")
    assert source.ids == ["a/c.jpg", "b.PNG"]
    assert source.name(1) == f"b.PNG of {tmp_path / 'a.tar'}"
    assert ids_of(tmp_path / "a.tar", held_out="a") == [["b.PNG"], ["a/c.jpg"]]
    long = f"{'x' * 150}/{'y' * 150}.png"
    assert opened(write_tar(tmp_path / "long.tar", {long: PNGS[0]})).ids == [long]


def test_folder_of_shards_may_have_texts(tmp_path):
    path = make_shards(tmp_path, IMAGES)
    for name in ("index.json", "README.md", ".x.tar"):
        (path / name).write_text("x")
    assert len(opened(path)) == COUNT
    assert ids_of(path, held_out="000001.tar")[1] == [f"000001.tar/{i:04d}.png" for i in range(5, 10)]
    call_is_refused(lambda: ids_of(path, held_out=str(path / "000001.tar")), "has images in common with the training")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.xz", "a.tar.zst"])
def test_compressed_tar_is_told(tmp_path, name):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_bytes(b"")
    for path in (tmp_path / "shards", tmp_path / "shards" / name):
        is_refused(path, rf"{path.name} is compressed \({name}\), so single images cannot be read\. Unpack it to .tar")


def test_tar_of_something_else_or_damaged_is_told(tmp_path):
    path = tmp_path / "a.tar"
    is_refused(write_tar(path, {}), r"a.tar holds no image files \(.*\), not even in subfolders\. Check the path\.$")
    is_refused(write_tar(path, {"a.txt": b"x"}), r"holds no image files .*\. It holds a.txt")
    is_refused(make_tar(tmp_path, IMAGES), "1, 3 or 4 channels", (8, 10, 2))
    path.write_text("no tar" * 1000)
    is_refused(path, r"a.tar cannot be read as a tar \(invalid header\)\. Copy it again")
    content = make_tar(tmp_path, IMAGES).read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512  # of the last image
    for length in (0, 1, 511, 512, 600, 1024, 5 * 512, 10 * 512, end // 2, end - 512, end - 1, end, end + 511):
        path.write_bytes(content[:length])
        is_refused(
            path, r"a.tar (cannot be read as a tar \(.*\)|is incomplete or damaged after \d+ files)\. Copy it ag"
        )
    with tarfile.open(make_tar(tmp_path, IMAGES)) as archive:
        fifth = archive.getmember("05.png")
    path.write_bytes(content[: fifth.offset] + b"x" + content[fifth.offset + 1 :])  # in a header
    is_refused(path, r"a.tar is incomplete or damaged after 5 files\. Copy it again")
    path.write_bytes(content[: fifth.offset_data] + b"x" + content[fifth.offset_data + 1 :])
    is_refused(path, r"05.png of .*a.tar cannot be read as an image")


def test_shard_that_is_cut_off_or_removed_is_told(tmp_path):
    path = make_shards(tmp_path, IMAGES)
    source, shard = opened(path), path / "000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:1500])
    is_refused(path, r"000001.tar (cannot be read as a tar|is incomplete or damaged)")
    shard.unlink()
    call_is_refused(lambda: source[5], "000001.tar is missing. Check the path")


def test_fingerprint_of_a_tar_has_names_and_sizes(tmp_path):
    files = {f"{i:03d}.png": PNGS[i % 3] for i in range(200)}  # more than are read
    first = opened(write_tar(tmp_path / "a.tar", files)).fingerprint()
    assert opened(write_tar(tmp_path / "b.tar", files)).fingerprint() == first
    for changed in ({"001.png": PNGS[1] + b"x"}, {"999.png": b""}):
        assert opened(write_tar(tmp_path / "c.tar", files | changed)).fingerprint() != first


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_image_zip, make_tar])
def test_damage_of_an_archive_gives_images_or_a_sentence(tmp_path, make):
    path, rng = make(tmp_path, IMAGES), np.random.default_rng(0)
    content, outcomes = path.read_bytes(), set()
    for _ in range(200):
        path.write_bytes(damaged(content, rng))
        try:
            source = opened(path)
            outcomes |= {image.ndim for image in all_of(source)}
            source.fingerprint()
        except UserError as error:
            assert_is_one_sentence(error)
            outcomes.add("told")
    assert outcomes <= {3, "told"}
    assert "told" in outcomes


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_image_shape_is_inferred_from_headers(tmp_path, write):
    image = png(noise(40, 36, 1))
    path = write(tmp_path / f"a.{write.__name__[-3:]}", {f"{i}.png": image[: len(image) // 2] for i in range(20)})
    is_refused(path, "cannot be read as an image", (32, 32, 1))  # its pixels
    assert infer_image_shape(path) == (32, 32, 1)
