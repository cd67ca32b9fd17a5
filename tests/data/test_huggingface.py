"""Data sets of Hugging Face: files, folders, splits, columns, and damage."""

import json
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet

from diffae_jax.data.detect import is_table, open_images
from diffae_jax.data.inspect.infer_shape import infer_image_shape
from diffae_jax.data.splits import open_splits
from diffae_jax.runtime.errors import UserError
from tests.data.test_formats import all_of, call_is_refused, damaged, is_refused, opened
from tests.data_files import (
    COUNT,
    SHAPE,
    huggingface_rows,
    make_arrow,
    make_folder,
    make_parquet,
    noise,
    png,
    save_parquet,
    save_to_disk,
)
from tests.environment import ROOT, environment
from tests.messages import assert_is_one_sentence

datasets = pytest.importorskip("datasets")

IMAGES = noise(COUNT, *SHAPE)
HALF = COUNT // 2
LABELS = dict(
    kind=[i % 2 for i in range(HALF)],
    digit=list(range(HALF)),
    age=[i / 2 for i in range(HALF)],
    flag=[i > 3 for i in range(HALF)],
    rating=[None, *range(1, HALF)],
    color=["red", None] * (HALF // 2),
    box=[[1, 2]] * HALF,
    at=[{"x": 1}] * HALF,
)
FEATURES = dict(
    kind=datasets.ClassLabel(names=["cat", "dog"]),
    digit=datasets.ClassLabel(names=[str(i) for i in range(HALF)]),
    age=datasets.Value("float32"),
)
COPY = "Images are read from an Arrow copy (0.0 MiB in "


def rows(images=IMAGES[:HALF]):
    return huggingface_rows(images, FEATURES, **{name: values[: len(images)] for name, values in LABELS.items()})


def clone(path):
    """Writes a folder like a clone of a repository on the Hub."""
    for i, part in enumerate((range(4), range(4, HALF))):
        save_parquet(path, rows().select(part), f"data/train-{i:05d}-of-00002.parquet")
    save_parquet(path, rows(IMAGES[HALF:]), "data/test-00000-of-00001.parquet")
    (path / "README.md").write_text("---\nlicense: mit\n---\nPictures\n")
    (path / ".cache").mkdir()
    return path


def saved(path):
    return save_to_disk(path, datasets.DatasetDict(train=rows(), test=rows(IMAGES[HALF:])))


@pytest.fixture(scope="module", params=[clone, saved])
def both(request, tmp_path_factory):
    """The path of a data set with the splits train and test, in each layout."""
    return request.param(tmp_path_factory.mktemp("made") / "pictures #1")


# --- columns -------------------------------------------------------------------------------------


def test_columns_are_images_and_labels(both):
    found = open_images(both, SHAPE)
    assert found.kind == "a data set of Hugging Face"
    assert found.notes[0] == "Only the split train is read. Other splits: test."
    np.testing.assert_array_equal(all_of(found.source), IMAGES[:HALF])
    assert found.source.ids[:2] == ["train-0000000", "train-0000001"]
    assert found.source.name(1) == f"Image 1 of {both} (train)"
    labels = found.source.labels
    assert {name: values.dtype.kind for name, values in labels.items()} == dict(
        kind="O", digit="i", age="f", flag="i", rating="f", color="O"
    )
    assert labels["kind"].tolist() == ["cat", "dog"] * (HALF // 2)
    assert labels["color"].tolist() == ["red", ""] * (HALF // 2)
    np.testing.assert_array_equal(labels["rating"], [np.nan, *range(1, HALF)])
    for name in ("digit", "age", "flag"):
        np.testing.assert_array_equal(labels[name], LABELS[name])
    assert open_images(both, SHAPE).source.fingerprint() == found.source.fingerprint()


@pytest.mark.parametrize("missing", [None, -1])
def test_class_that_is_missing(tmp_path, missing):
    kinds = datasets.ClassLabel(names=["cat", "dog"])
    made = huggingface_rows(IMAGES[:3], {"kind": kinds}, kind=[0, missing, 1])
    assert opened(save_parquet(tmp_path, made)).labels["kind"].tolist() == ["cat", "", "dog"]


@pytest.mark.parametrize("column", ["image", "img", "photo"])
def test_images_have_any_name_if_they_are_the_only_ones(tmp_path, column):
    np.testing.assert_array_equal(all_of(opened(save_parquet(tmp_path, huggingface_rows(IMAGES, name=column)))), IMAGES)


def test_usual_name_counts_among_several_columns(tmp_path):
    masks = huggingface_rows(IMAGES[::-1], name="mask")
    both = datasets.concatenate_datasets([masks, huggingface_rows(IMAGES)], axis=1)
    np.testing.assert_array_equal(all_of(opened(save_parquet(tmp_path, both))), IMAGES)
    path = save_parquet(tmp_path, both.rename_column("image", "other"), "b.parquet")
    is_refused(
        path,
        r"b.parquet has several columns that may be the image. Its columns are mask, other\. Call one of them image",
    )


@pytest.mark.parametrize("kind", ["struct", "bytes", "large bytes"])
def test_images_of_files_that_other_programs_wrote(tmp_path, kind):
    contents = [png(image) for image in IMAGES]
    if kind == "struct":
        column = pyarrow.array([{"bytes": content, "path": "a.png"} for content in contents])
    else:
        column = pyarrow.array(contents, pyarrow.binary() if kind == "bytes" else pyarrow.large_binary())
    table = pyarrow.table({"age": pyarrow.array(range(COUNT), pyarrow.int8()), "photo": column})
    parquet.write_table(table, tmp_path / "A.PARQUET")
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=5)
    for name in ("A.PARQUET", "a.arrow"):
        source = opened(tmp_path / name)
        np.testing.assert_array_equal(all_of(source), IMAGES)
        np.testing.assert_array_equal(source.labels["age"], np.arange(COUNT))
    assert source.labels.keys() == {"age"}


def test_images_may_be_paths(tmp_path):
    folder = make_folder(tmp_path, IMAGES)
    made = datasets.Dataset.from_dict({"image": [str(path) for path in sorted(folder.iterdir())]})
    path = save_parquet(tmp_path, made.cast_column("image", datasets.Image()))
    table = parquet.read_table(path)
    column = pyarrow.array([{"bytes": None, "path": str(file)} for file in sorted(folder.iterdir())])
    column = column.cast(table.schema.field("image").type)
    table = pyarrow.Table.from_arrays([column], schema=table.schema)
    parquet.write_table(table, path)
    np.testing.assert_array_equal(all_of(opened(path)), IMAGES)
    (folder / "03.png").unlink()
    is_refused(path, "03.png is missing. Check the path")


def test_row_without_an_image_is_told(tmp_path):
    made = datasets.Dataset.from_dict({"image": [{"bytes": png(IMAGES[0]), "path": None}, None]})
    path = save_parquet(tmp_path, made.cast_column("image", datasets.Image()))
    is_refused(path, r"Image 1 of .*images.parquet \(train\) has no image in the column image\. Remove the row")


def test_parquet_without_images_is_a_table(tmp_path):
    parquet.write_table(pyarrow.table({"file": ["a.png"], "smile": [1]}), tmp_path / "labels.parquet")
    is_refused(tmp_path / "labels.parquet", "labels.parquet is a table or text file, not images")
    make_folder(tmp_path, IMAGES)
    assert open_images(tmp_path, SHAPE).kind == "a folder of image files"
    assert is_table(tmp_path / "labels.parquet")
    assert not is_table(make_parquet(tmp_path, IMAGES))
    sounds = pyarrow.array([{"bytes": b"x", "path": "a.wav"}])
    table = pyarrow.table({"audio": sounds}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"audio": {"_type": "Audio"}}}})}
    )
    parquet.write_table(table, tmp_path / "sounds.parquet")
    is_refused(tmp_path / "sounds.parquet", "sounds.parquet has no column that may be the image. Its columns are audio")


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "chosen"),
    [
        ("train", slice(0, HALF)),
        ("test", slice(HALF, None)),
        ("train[:2]", slice(0, 2)),
        ("train[3:]", slice(3, HALF)),
        ("train[-2:]", slice(HALF - 2, HALF)),
        ("train[:50%]", slice(0, HALF // 2)),
        ("test[1:3]", slice(HALF + 1, HALF + 3)),
    ],
)
def test_splits_and_their_slices(both, part, chosen):
    source = opened(f"{both}#{part}")
    np.testing.assert_array_equal(all_of(pickle.loads(pickle.dumps(source))), IMAGES[chosen])
    numbers = [i % HALF for i in range(COUNT)][chosen]
    assert source.labels["digit"].tolist() == numbers
    assert source.ids == [f"{part.partition('[')[0]}-{i:07d}" for i in numbers]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("validation", "has no split validation. It has test, train"),
        ("train+test", r"has no split train\+test\. It has test, train"),
        ("train[a:b]", r"has no part train\[a:b\] \(.*\)\. Write a slice as in train\[:1000\]"),
        ("train[:", r"has no part train\[: \(.*\)\. Write a slice as in train"),
        ("train[3:3]", r"The split train\[3:3\] of .* holds no images"),
        ("train[:300%]", r"has no part train\[:300%\]"),
    ],
)
def test_splits_that_there_are_not_are_told(both, part, message):
    is_refused(f"{both}#{part}", message)


def test_held_out_split(both):
    _, training, held_out = open_splits(str(both), SHAPE, held_out="test")
    np.testing.assert_array_equal(all_of(training), IMAGES[:HALF])
    np.testing.assert_array_equal(all_of(held_out), IMAGES[HALF:])
    assert training.labels.keys() == held_out.labels.keys() == FEATURES.keys() | {"flag", "rating", "color"}
    _, training, held_out = open_splits(f"{both}#train[:4]", SHAPE, held_out=f"{both}#train[4:]")
    assert (len(training), len(held_out)) == (4, HALF - 4)
    message = "has images in common with the training images"
    call_is_refused(lambda: open_splits(f"{both}#train[:4]", SHAPE, held_out=f"{both}#train[3:]"), message)
    _, training, held_out = open_splits(str(both), SHAPE, held_out="[:2]")
    assert held_out.ids == ["train-0000000", "train-0000001"]


def test_held_out_parquet_of_images_is_no_table(tmp_path):
    training, test = (
        save_parquet(tmp_path, rows(part), f"{name}.parquet")
        for name, part in (("a", IMAGES[:4]), ("b", IMAGES[4:HALF]))
    )
    _, *splits = open_splits(str(training), SHAPE, held_out=str(test))
    np.testing.assert_array_equal(all_of(splits[1]), IMAGES[4:HALF])


def test_configurations_are_chosen(tmp_path):
    for name, part in (("x", IMAGES[:4]), ("y", IMAGES[4:HALF])):
        save_parquet(tmp_path, rows(part), f"{name}/train-00000-of-00001.parquet")
    configs = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in "xy"]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    is_refused(tmp_path, r"has several configurations \(x, y\)\. Choose one, for example .*#x/train\.")
    np.testing.assert_array_equal(all_of(opened(f"{tmp_path}#y/train")), IMAGES[4:HALF])
    _, _, held_out = open_splits(f"{tmp_path}#x/train", SHAPE, held_out=f"{tmp_path}#y/train[:1]")
    np.testing.assert_array_equal(all_of(held_out), IMAGES[4:5])


# --- copies --------------------------------------------------------------------------------------


def test_copy_of_parquet_is_announced_and_follows_the_file(tmp_path):
    path = make_parquet(tmp_path, IMAGES)
    (note,) = open_images(path, SHAPE).notes
    assert note.startswith(f"{COPY}{os.environ['HF_HOME']}")
    assert note.endswith("because Parquet cannot be read in random order. To move the copy, set HF_HOME.")
    make_parquet(tmp_path, IMAGES[::-1])
    np.testing.assert_array_equal(all_of(opened(path)), IMAGES[::-1])
    assert open_images(make_arrow(tmp_path, IMAGES), SHAPE).notes == []


def test_files_that_were_not_downloaded_are_told(tmp_path):
    path = clone(tmp_path / "pictures")
    (path / "data/train-00001-of-00002.parquet").unlink()
    note = "Only 1 of the 2 files train-*.parquet exist. Copy the others to use all images."
    assert open_images(path, SHAPE).notes[-1] == note


def test_nothing_is_printed_and_logs_come_back(tmp_path):
    clone(tmp_path / "pictures")
    (tmp_path / "pictures" / "README.md").write_text("no metadata")
    code = f"""if True:
        import datasets, logging
        from diffae_jax.data.detect import open_images
        source = open_images({str(tmp_path / "pictures")!r}, {SHAPE}).source
        assert len(source) == {HALF}
        assert datasets.utils.are_progress_bars_disabled() == False
        assert logging.getLogger("datasets").level < logging.CRITICAL"""
    settings = environment(HF_HOME=str(tmp_path / "home"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=settings, text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_path_with_a_pattern(tmp_path):
    path = clone(tmp_path / "pictures [x]")
    is_refused(path, r"pictures \[x\] has \*, \? or \[ in its path, which .* takes for a pattern\. Rename it")
    np.testing.assert_array_equal(all_of(opened(path / "data/test-00000-of-00001.parquet")), IMAGES[HALF:])


# --- damage --------------------------------------------------------------------------------------


def test_file_that_git_lfs_has_not_loaded_is_told(tmp_path):
    path = clone(tmp_path / "pictures") / "data/train-00000-of-00002.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n")
    for given in (tmp_path / "pictures", path):
        is_refused(given, r"train-00000-of-00002.parquet only points to a file of Git LFS\. Run `git lfs pull` in its")


@pytest.mark.parametrize("name", ["images.parquet", "images.arrow"])
def test_damaged_file_gives_images_or_a_sentence(tmp_path, name):
    path, rng = make_parquet(tmp_path, IMAGES), np.random.default_rng(0)
    if name == "images.arrow":
        path = (make_arrow(tmp_path, IMAGES) / "data-00000-of-00002.arrow").rename(tmp_path / name)
    content, outcomes = path.read_bytes(), set()
    for length in (0, 1, 100, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        is_refused(path, rf"{name} (cannot be read as (Parquet|Arrow) \(.*\)\. Repair or remove it|is a table)")
    for i in range(60):
        path = tmp_path / f"{i}-{name}"
        path.write_bytes(damaged(content, rng))
        try:
            source = opened(path)
            outcomes |= {image.ndim for image in all_of(source)}
            _ = source.labels, source.fingerprint()
        except UserError as error:
            assert_is_one_sentence(error)
            outcomes.add("told")
    assert outcomes == {3, "told"}


@pytest.mark.parametrize("column", ["image", "color"])
def test_offsets_that_lead_out_of_an_arrow_file_are_told(tmp_path, column):
    values = {"image": [png(image) for image in IMAGES[:2]], "color": ["red", "x" * 77]}
    table, path = pyarrow.table(values), tmp_path / "a.arrow"
    with ipc.new_stream(path, table.schema) as file:
        file.write_table(table)
    end = sum(map(len, values[column]))
    offsets = struct.pack("<iii", 0, len(values[column][0]), end)
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, struct.pack("<iii", 0, 2**30, end)))
    call_is_refused(lambda: opened(path).labels, r"a.arrow cannot be read as a data set of Hugging Face \(.* offset")


@pytest.mark.parametrize("name", ["dataset_dict.json", "train/state.json", "train/dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", None])
def test_damaged_folder_of_save_to_disk_is_told(tmp_path, name, content):
    path = saved(tmp_path / "saved")
    (path / name).unlink() if content is None else (path / name).write_text(content)
    if (name, content) in (("train/dataset_info.json", "{}"), ("dataset_dict.json", None)):
        assert len(opened(path)) == HALF
    else:
        is_refused(path, rf"{path}.*(cannot be read as a data set of Hugging Face|is missing)")


def test_missing_file_of_save_to_disk_is_told(tmp_path):
    path = make_arrow(tmp_path, IMAGES)
    source = opened(path)
    (path / "data-00001-of-00002.arrow").unlink()
    is_refused(path, rf"data-00001-of-00002.arrow is missing\. Copy {path} again")
    call_is_refused(
        lambda: all_of(pickle.loads(pickle.dumps(source))), "data-00001-of-00002.arrow cannot be read as Arr"
    )


def test_volumes_are_not_in_columns_of_images(tmp_path):
    is_refused(make_parquet(tmp_path, IMAGES), "1, 3 or 4 channels", (8, 8, 8, 1))


# --- the Hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf://datasets/nobody/nothing", "hf:/datasets/nobody/nothing@main"])
def test_name_on_the_hub_that_cannot_be_loaded_is_told(name):
    is_refused(f"{name}#train", rf"{name} cannot be loaded \(.*\)\. Check the name and the network")
    call_is_refused(lambda: open_splits(name, SHAPE, held_out="test"), "Check the name and the network")


def test_names_of_other_forms_are_missing():
    for name in ("hf://models/a/b", "hf://datasets/a/b/c.parquet", "hf://datasets/"):
        is_refused(name, f"{name} is missing. Check the path")


# --- the rest of the package ---------------------------------------------------------------------


def test_image_shape_is_inferred_from_headers(tmp_path):
    image = png(noise(40, 36, 1))
    parquet.write_table(pyarrow.table({"image": [image[: len(image) // 2]]}), tmp_path / "a.parquet")
    is_refused(tmp_path / "a.parquet", "cannot be read as an image", (32, 32, 1))  # its pixels
    assert infer_image_shape(tmp_path / "a.parquet") == (32, 32, 1)


def test_library_is_needed_only_for_its_formats(tmp_path):
    make_folder(tmp_path, IMAGES)
    make_parquet(tmp_path, IMAGES)
    code = f"""if True:
        import sys
        sys.modules["datasets"] = None
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "datasets" else found(name)
        from diffae_jax.data.detect import open_images
        assert len(open_images({str(tmp_path / "images")!r}, {SHAPE}).source) == {COUNT}
        try:
            open_images({str(tmp_path / "images.parquet")!r}, {SHAPE})
        except ValueError as error:
            print(error)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    message = 'images.parquet needs Hugging Face Datasets: pip install "diffae_jax[huggingface]".\n'
    assert done.stdout == f"{tmp_path}/{message}", done.stderr


def test_input_is_not_overwritten(tmp_path):
    from diffae_jax.cli.outputs import check_apart
    from diffae_jax.data.sources import TransformedSource
    from diffae_jax.data.transforms import Transform

    file = make_parquet(tmp_path, IMAGES)
    part = clone(tmp_path / "clone") / "data/test-00000-of-00001.parquet"
    for path, target in ((file, file), (tmp_path / "clone", part)):
        images = TransformedSource(opened(path), Transform((8, 8, 3)))
        with pytest.raises(UserError, match="is one of the input images"):
            check_apart([target], images)
