"""Images in the containers of Python and of other libraries, with the labels of their items."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from PIL import Image

from diffae_jax.data.sequences import SequenceSource, column_of
from diffae_jax.data.sources import Arrays
from diffae_jax.data.splits import as_source, open_splits
from diffae_jax.data.transforms import Transform
from diffae_jax.inference.inputs import as_images
from tests.data.test_formats import Loader, call_is_refused
from tests.data_files import noise, png
from tests.environment import ROOT

COUNT, SHAPE = 5, (8, 10, 3)
IMAGES = noise(COUNT, *SHAPE)
TRANSFORM = Transform(SHAPE)


class Scalar:
    """Like a PyTorch tensor of one number."""

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


@pytest.fixture
def paths(tmp_path):
    """The files of the images."""
    for i, image in enumerate(IMAGES):
        (tmp_path / f"{i}.png").write_bytes(png(image))
    return [str(tmp_path / f"{i}.png") for i in range(COUNT)]


def pictures():
    return [Image.fromarray(image) for image in IMAGES]


# --- a model -------------------------------------------------------------------------------------


CONTAINERS = {
    "array of text": lambda paths: np.array(paths),
    "array of objects": lambda paths: np.array([Path(path) for path in paths], object),
    "column of paths": lambda paths: pandas.Series(paths, index=range(7, 7 + COUNT)),
    "column of text": lambda paths: pandas.Series(paths, dtype="string"),
    "column of PIL images": lambda paths: pandas.Series(pictures()),
    "generator of paths": lambda paths: (path for path in paths),
    "generator of arrays": lambda paths: iter(IMAGES),
    "map": lambda paths: map(Image.open, paths),
    "values of a dict": lambda paths: dict(zip("abcde", IMAGES, strict=True)).values(),
    "encoded files": lambda paths: [Path(path).read_bytes() for path in paths],
    "files in memory": lambda paths: [io.BytesIO(Path(path).read_bytes()) for path in paths],
    "images with labels": lambda paths: Loader([(image, i) for i, image in enumerate(IMAGES)]),
    "dicts": lambda paths: Loader([{"image": image, "label": 3} for image in pictures()]),
    "paths with labels": lambda paths: [(path, 3) for path in paths],
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_model_takes_images_in_any_container(container, paths):
    array, _ = as_images(CONTAINERS[container](paths), TRANSFORM)
    np.testing.assert_array_equal(array, IMAGES)
    assert array.dtype == np.uint8


def test_a_model_takes_an_open_file(paths):
    content = io.BytesIO(png(IMAGES[1]))
    content.read(8)  # something looked at its type
    with Path(paths[1]).open("rb") as file:
        for image in (file, content, content.getvalue()):
            np.testing.assert_array_equal(as_images(image, TRANSFORM)[0], IMAGES[1:2])
    call_is_refused(lambda: as_images(file, TRANSFORM), "1.png cannot be read .*closed file")
    with Path(paths[1]).open() as file:
        call_is_refused(
            lambda: as_images(file, TRANSFORM), r'1.png is a file that is open as text\. Open it as bytes, with .*"rb"'
        )
    call_is_refused(
        lambda: as_images(io.BytesIO(b"junk"), TRANSFORM), "an image file in memory cannot be read as an image"
    )


def npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, digit=np.arange(COUNT))
    return np.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            lambda _: {"images": IMAGES},
            r"are a dict with the keys images. Give one of its values, such as images",
        ),
        (lambda _: {}, r"are a dict with the keys none. Give one of its values\.$"),
        (npz, r"are a NpzFile with the keys digit, images. Give one of its values, such as images\['images'\]"),
        (lambda _: {"a.png", "b.png"}, "are a set, which has no order. Give a list"),
        (
            lambda _: pandas.DataFrame({"path": ["a.png"], "age": [3]}),
            "a DataFrame with the columns age, path. Give one",
        ),
        (
            lambda _: np.array([["a.png"], ["b.png"]]),
            r"have the shape \(2, 1\) and hold no numbers. Give a sing",
        ),
        (lambda _: pandas.Series(["no.png"]), "no.png is missing. Check the path"),
    ],
    ids=["dict", "empty dict", "npz", "set", "table", "two axes", "missing file"],
)
def test_containers_that_are_unclear_are_refused(images, message, tmp_path):
    call_is_refused(lambda: as_images(images(tmp_path), TRANSFORM), message)
    call_is_refused(lambda: as_source(images(tmp_path), SHAPE)[0], message)


def test_home_is_found(paths, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for images in ("~/2.png", ["~/2.png"], [Path("~/2.png")]):
        np.testing.assert_array_equal(as_images(images, TRANSFORM)[0], IMAGES[2:3])


def test_one_image_is_counted_before_any_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"junk")
    (tmp_path / "b.png").write_bytes(b"junk")
    for images in (tmp_path, [tmp_path / "a.png", tmp_path / "b.png"], IMAGES[:2], jnp.asarray(IMAGES[:2])):
        call_is_refused(
            lambda images=images: as_images(images, TRANSFORM, one="image_b"), "image_b must be one image, not 2"
        )
    assert len(as_images(IMAGES[:1], TRANSFORM, one="image_b")[0]) == 1


# --- a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "labels"),
    [
        ([(image, i) for i, image in enumerate(IMAGES)], {"label": [0, 1, 2, 3, 4]}),
        ([(image, np.int64(i)) for i, image in enumerate(pictures())], {"label": [0, 1, 2, 3, 4]}),
        ([[image, Scalar(i)] for i, image in enumerate(IMAGES)], {"label": [0, 1, 2, 3, 4]}),
        ([(image, jnp.asarray(i)) for i, image in enumerate(IMAGES)], {"label": [0, 1, 2, 3, 4]}),
        ([(image, "ab"[i % 2], 0.5) for i, image in enumerate(IMAGES)], {"label": [*"ababa"], "label_2": [0.5] * 5}),
        ([(image, i % 2 == 0, {"box": 3}) for i, image in enumerate(IMAGES)], {"label": [1, 0, 1, 0, 1]}),
        ([(image, None if i == 3 else i) for i, image in enumerate(IMAGES)], {"label": [0, 1, 2, np.nan, 4]}),
        ([{"image": image, "age": i, "mask": image} for i, image in enumerate(pictures())], {"age": [0, 1, 2, 3, 4]}),
        ([{"img": image} | ({} if i else {"a": "x"}) for i, image in enumerate(IMAGES)], {"a": ["x", "", "", "", ""]}),
        ([{"scan": image, 3: i} for i, image in enumerate(IMAGES)], {"3": [0, 1, 2, 3, 4]}),
        ([{"image": image} for image in IMAGES], {}),
        (IMAGES, {}),
        (list(IMAGES.tolist()), {}),
    ],
    ids=[
        "ints", "NumPy", "tensors", "JAX", "several", "booleans", "missing", "dicts", "dicts with gaps", "other keys",
        "no labels", "array", "lists",
    ],
)  # fmt: skip
def test_items_may_have_labels(items, labels):
    source = SequenceSource(Loader(items) if isinstance(items, list) else items, SHAPE)
    np.testing.assert_array_equal([source[i] for i in range(COUNT)], IMAGES)
    assert source.labels.keys() == labels.keys()
    for name, values in labels.items():
        np.testing.assert_array_equal(source.labels[name], np.array(values, source.labels[name].dtype))
        kind = "O" if isinstance(values[-1], str) else "f" if isinstance(values[-1], float) or np.nan in values else "i"
        assert source.labels[name].dtype.kind == kind


def test_labels_follow_the_split():
    items = Loader([(image, i) for i, image in enumerate(IMAGES)])
    _, training, held_out = open_splits("", SHAPE, images=items, held_out="[1:3]")
    assert training.labels["label"].tolist() == [0, 3, 4]
    assert held_out.labels["label"].tolist() == [1, 2]


def test_columns_of_files_are_read_in_order(paths):
    for images in (np.array(paths), pandas.Series(paths, index=range(9, 9 + COUNT))):
        source = as_source(images, SHAPE)
        np.testing.assert_array_equal([source[i] for i in range(COUNT)], IMAGES)


def test_items_that_cannot_be_read_have_no_label():
    class Broken(Loader):
        def __getitem__(self, index):
            if index in (0, 2):
                raise OSError("gone")
            return super().__getitem__(index)

    source = SequenceSource(Broken([(image, i) for i, image in enumerate(IMAGES)]), SHAPE)
    np.testing.assert_array_equal(source[1], IMAGES[1])  # as the scan does, so labels are known to exist
    np.testing.assert_array_equal(source.labels["label"], [np.nan, 1, np.nan, 3, 4])
    call_is_refused(lambda: source[2], r"Image 2 of the sequence cannot be read \(OSError: gone\)")
    boxes = SequenceSource(Loader([{"label": 3, "left": IMAGES[0], "right": IMAGES[1]}]), SHAPE)
    call_is_refused(
        lambda: boxes[0], "Image 0 of the sequence is a dict with the keys label, left, right, and it is unclear"
    )


def test_each_image_is_read_once_for_pixels_and_labels():
    program = """if True:
        import pickle
        import numpy as np
        from diffae_jax.data.inspect.scan import scan
        from diffae_jax.data.sources import TransformedSource
        from diffae_jax.data.splits import open_splits
        from diffae_jax.data.transforms import Transform
        reads = []
        class Loader:
            def __len__(self):
                return 40
            def __getitem__(self, index):
                reads.append(index)
                return np.full((8, 8, 1), index, np.uint8), index % 2
        _, training, _ = open_splits("", (8, 8, 1), images=Loader())
        assert len(reads) == 0, reads
        assert scan(TransformedSource(training, Transform((8, 8, 1)))).count == 40
        assert training.labels["label"].tolist() == [0, 1] * 20
        assert sorted(reads) == list(range(40)), reads
        assert b"label" not in pickle.dumps(training), "workers need no labels"
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


# --- labels from Python --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[1], [0], [1]]), np.array([1, 0, 1])),
        (pandas.Series([1, None, 3], dtype="Int64"), np.array([1, np.nan, 3])),
        (pandas.Series([True, None, False], dtype="boolean"), np.array([1, np.nan, 0])),
        (pandas.Series(["a", None, "b"], dtype="string"), np.array(["a", "", "b"], object)),
        (pandas.Series(["a", "b", "a"], dtype="category"), np.array(["a", "b", "a"], object)),
        (pandas.DataFrame({"age": [1.5, 2, 3]}), np.array([1.5, 2, 3])),
        ([1, pandas.NA, None], np.array([1, np.nan, np.nan])),
        (np.ma.array([1, 2, 3], mask=[False, True, False]), np.array([1, np.nan, 3])),
        (jnp.array([1, 2, 3]), np.array([1, 2, 3])),
        (["a", 1, None], np.array(["a", "1", ""], object)),
        ([], np.array([], np.int64)),
    ],
    ids=str,
)
def test_labels_of_any_library_become_a_column(values, expected):
    column = column_of("x", values)
    np.testing.assert_array_equal(column, expected)
    assert column.dtype == expected.dtype


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 2)), r"The labels of x have the shape \(3, 2\): give one value for each image"),
        (pandas.DataFrame({"a": [1], "b": [2]}), r"The labels of x have the shape \(1, 2\)"),
        ({"a": 1}, "The labels of x are a dict: give a list"),
        ("labels.csv", "The labels of x are labels.csv: give a list"),
        ([1, [2]], "Labels must be text or numbers, but x has a list"),
    ],
    ids=["two columns", "table", "dict", "text", "nested"],
)
def test_what_is_no_column_of_labels_is_refused(values, message):
    call_is_refused(lambda: column_of("x", values), message)


def test_labels_of_a_source_become_columns():
    plain = Arrays(IMAGES, list("abcde"), {"age": np.arange(COUNT), "name": np.array(list("uvwxy"), object)})
    assert as_source(plain, SHAPE) is plain
    source = as_source(Arrays(IMAGES, list("abcde"), {"age": np.arange(COUNT)[:, None]}), SHAPE)
    assert source.labels["age"].tolist() == [0, 1, 2, 3, 4]
    assert source.fingerprint() == plain.fingerprint()
    missing = np.array([1, pandas.NA, 3, 4, 5], object)
    np.testing.assert_array_equal(
        as_source(Arrays(IMAGES, list("abcde"), {"age": missing}), SHAPE).labels["age"], [1, np.nan, 3, 4, 5]
    )
