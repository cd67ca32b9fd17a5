"""Tables in JSON, JSON Lines, xlsx, HDF5 and npz: their labels, and one line for invalid files."""

import datetime
import json
import sys

import h5py
import numpy as np
import openpyxl
import pytest

from diffae_jax.data.labels.matching import read_labels, read_partition
from tests.data.test_formats import call_is_refused
from tests.data.test_id_column import are

IMAGES = ["a.png", "b.png", "0.png"]


def labels_of(path):
    return read_labels(path, IMAGES).of(IMAGES[:2])


@pytest.fixture
def written(tmp_path):
    def write(content, name="labels.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ([{"file": "b.png", "age": 3, "sex": "f"}, {"file": "a.png", "age": 4.5}], {"age": [4.5, 3], "sex": ["", "f"]}),
        ([{"y": True, "file": "b.png"}, {"y": False, "file": "a.png"}], {"y": [0, 1]}),
        ([{"file": "b.png", "y": 1}, {"file": "a.png", "y": None}], {"y": [None, 1]}),
        ([{"file": "b.png", "y": "1"}, {"file": "a.png", "y": "n/a"}], {"y": [None, 1]}),
        ([{"file": "b.png", "y": 1}, {"file": "a.png", "y": "60+"}], {"y": ["60+", "1"]}),
        ([{"file": "b.png", "y": 2**70}, {"file": "a.png", "y": float("nan")}], {"y": [None, 2.0**70]}),
        ({"b.png": {"age": 3}, "a.png": {"age": 4, "sex": "m"}}, {"age": [4, 3], "sex": ["m", ""]}),
        ({"b": 3, "a": 2.5}, {"label": [2.5, 3]}),
        ({"b.png": "cat", "a.png": "dog"}, {"label": ["dog", "cat"]}),
        ({"b.png": [1, 0], "a.png": [0, 2]}, {"label_0": [0, 1], "label_1": [2, 0]}),
        ({"file": ["b.png", "a.png"], "age": [3, 4]}, {"age": [4, 3]}),
        ({"file": {"0": "b.png", "1": "a.png"}, "age": {"0": 3, "1": 4}}, {"age": [4, 3]}),  # pandas
        ({"age": {"b.png": 3, "a.png": 4}, "sex": {"b.png": "f"}}, {"age": [4, 3], "sex": ["", "f"]}),
        ({"0": {"file": "b.png", "age": 3}, "1": {"file": "a.png", "age": 4}}, {"age": [4, 3]}),
        ({"labels": [["x/b.png", 6], ["x/a.png", 9]]}, {"label": [9, 6]}),  # StyleGAN
        ({"labels": [["x/b.png", [1, 0]], ["x/a.png", [0, 1]]]}, {"label_0": [0, 1], "label_1": [1, 0]}),
    ],
)
def test_labels_in_json(written, content, labels):
    are(labels_of(written(content)), labels)


def test_images_in_memory_have_labels_by_index(written):
    labels = read_labels(written({"1": 5, "0": 6}), ["0", "1", "2"]).of(["0", "1", "2"])
    are(labels, {"label": [6, 5, None]})


@pytest.mark.parametrize("name", ["metadata.jsonl", "labels.ndjson", "labels.json"])
def test_labels_in_lines_of_json(written, name):
    path = written('\ufeff{"file_name": "b.png", "age": 3}\r\n\n{"file_name": "a.png", "age": 4}\n', name)
    are(labels_of(path), {"age": [4, 3]})


def test_nested_values_are_no_labels(written):
    records = [{"file_name": f"{name}.png", "y": 1, "objects": {"box": [1]}, "tags": []} for name in "ab"]
    labels = read_labels(written(records), IMAGES)
    are(labels.of(IMAGES[:2]), {"y": [1, 1]})
    (note,) = labels.notes_on_table
    assert note.startswith("2 of 4 columns of ")
    assert note.endswith("neither numbers nor text (objects of type dict, tags of type list).")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ({"images": [], "annotations": [], "categories": []}, "l.json", r"is a COCO file.* one record for each image"),
        ({"labels": None}, "l.json", "has no labels. Write its data set again with labels"),
        ([1, 2], "l.json", r'has a number as record 1\. Write a record such as \{"file": "a.png", "age": 3\}'),
        ([{"file": "a"}, None], "l.json", "has null as record 2"),
        ({"a.png": {"age": 1}, "b.png": 3}, "l.json", "no column of labels.* Not usable: label of type dict"),
        ({"file": ["a.png"], "age": [1, 2]}, "l.json", "has columns of different lengths"),
        (3, "l.json", r"holds a number\. Write a list of records such as \["),
        ([], "l.json", "no column of labels"),
        ({}, "l.json", "no column of labels"),
        ([{"file": "a.png"}], "l.json", "no column of labels"),
        ([{"file": "a.png", "y": 1}, {"y": 2}], "l.json", "no image name in row 2"),
        ([{"file": "a.png", "y": 1}, {"file": "a.png", "y": 1}], "l.json", "the image a.png in rows 1 and 2"),
        ([{"file": 1.5, "y": 1}], "l.json", "None of the 1 names"),
        ("", "l.json", "cannot be read as JSON"),
        ('{"a.png": 1', "l.json", "cannot be read as JSON"),
        (
            '{"file": "a.png", "y": 1}\n{"file": "b.png"\n',
            "l.jsonl",
            r"in line 2 \(Expecting ',' delimiter\)\. Write a record such as .* in each line",
        ),
        ('{"file": "a.png", "y": 1}\n3\n', "l.jsonl", "has a number as record 2"),
        ("", "l.jsonl", "no column of labels"),
    ],
)
def test_json_that_is_no_table_is_refused(written, content, name, message):
    path = written(content, name)
    call_is_refused(lambda: labels_of(path), message)


def test_lines_that_are_not_utf_8_are_refused(tmp_path):
    (tmp_path / "l.jsonl").write_bytes(b'{"file": "\xff"}\n')
    call_is_refused(lambda: labels_of(tmp_path / "l.jsonl"), "is not UTF-8 text")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (["a.png", "0.png"], "l.json"),
        ([{"split": split, "f": file} for split, file in zip(("test", "train", "val"), IMAGES, strict=True)], "l.json"),
        ({"a.png": 1, "b.png": 0, "0.png": 2}, "l.json"),
        ('{"file_name": "a.png", "split": "test"}\n{"file_name": "0.png", "split": "val"}', "l.jsonl"),
    ],
)  # fmt: skip
def test_held_out_images_in_json(written, content, name):
    assert read_partition(written(content, name), IMAGES).of(IMAGES).tolist() == [True, False, True]


# --- spreadsheets --------------------------------------------------------------------------------


@pytest.fixture
def sheet(tmp_path):
    def write(rows):
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.create_sheet("other").append(["not", "read"])
        book.save(tmp_path / "labels.xlsx")
        return tmp_path / "labels.xlsx"

    return write


def test_labels_in_the_first_sheet(sheet):
    rows = [
        [],
        ["no", " file ", "age", "weight", "born", "ok", "sex", None],
        [0, "b.png", 3, 1.5, datetime.datetime(2000, 1, 2), True, "f"],
        [],
        [1, "a.png", None, "#N/A", "unknown", False, " m "],
    ]
    labels = {"no": [1, 0], "age": [None, 3], "weight": [None, 1.5], "born": ["unknown", "2000-01-02 00:00:00"]}
    are(labels_of(sheet(rows)), labels | {"ok": [0, 1], "sex": ["m", "f"]})


def test_index_of_pandas_in_a_sheet_is_no_label(sheet):
    are(labels_of(sheet([[None, "file", "y"], [0, "b.png", 5], [1, "a.png", 6]])), {"y": [6, 5]})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no column of labels"),
        ([["file", "y"]], "only has a header row"),
        ([["file", "y"], ["a.png", 1, 2]], "has 3 values in row 2, but 2 in its header row. Name each column"),
        ([["file", "y", None], ["a.png", 1, 2]], "has 3 values in row 2, but 2"),
        ([["file", None, "y"], ["a.png", 1, 2]], "a unique name for each column in its first row, but column 2 has"),
        ([["file", "y"], ["a.png", 1], ["a.png", 2]], "the image a.png in rows 2 and 3"),
    ],
)
def test_sheet_that_is_no_table_is_refused(sheet, rows, message):
    call_is_refused(lambda: labels_of(sheet(rows)), message)


def test_damaged_sheet_is_refused(sheet):
    path = sheet([["file", "y"], *([f"{i}.png", i] for i in range(99))])
    whole = path.read_bytes()
    for content in (b"", b"file,y\na.png,1\n", whole[: len(whole) // 2], whole[:300] + whole[900:]):
        path.write_bytes(content)
        call_is_refused(lambda: labels_of(path), r"cannot be read as xlsx \(.*\)\. Save it again, or as CSV")


def test_missing_library_is_named(sheet, monkeypatch):
    path = sheet([["file", "y"], ["a.png", 1]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    call_is_refused(lambda: labels_of(path), r'needs openpyxl: pip install "diffae_jax\[xlsx\]"')


# --- arrays --------------------------------------------------------------------------------------


def make_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def make_npz(path, arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("make", "arrays"),
    [
        (make_hdf5, {"ids": ["b.png", "a.png"], "images": np.zeros((3, 4, 4))}),
        (make_hdf5, {"x/train_ids": ["b.png", "a.png"], "y": [1, 2]}),
        (make_npz, {"filenames": np.array(["b.png", "a.png"]), "more": [1, 2, 3]}),
    ],
    ids=["hdf5", "group", "npz"],
)
def test_labels_in_arrays(tmp_path, make, arrays):
    group = next(iter(arrays)).rpartition("/")[0]
    labels = {"age": [3, 4], "w": np.array([1.5, np.nan], np.float32), "ok": [True, False], "sex": [b"f", b"m"]}
    path = tmp_path / ("labels.npz" if make is make_npz else "labels.h5")
    make(path, arrays | {f"{group}/{name}".lstrip("/"): values for name, values in labels.items()})
    are(labels_of(path), {"age": [4, 3], "w": [None, 1.5], "ok": [0, 1], "sex": ["m", "f"]})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"age": [1, 2]}, r"has 0 arrays of image names \(age\)\. Store one, called ids"),
        ({"a/ids": ["a"], "b/ids": ["b"], "a/y": [1]}, r"has 2 arrays of image names \(a/ids, b/ids\)"),
        ({"ids": ["a"], "age": [1, 2]}, "no column of labels"),
        ({"ids": ["a", "a"], "age": [1, 2]}, "the image a in rows 1 and 2"),
    ],
)
def test_arrays_that_are_no_table_are_refused(tmp_path, arrays, message):
    make_hdf5(tmp_path / "labels.h5", arrays)
    call_is_refused(lambda: labels_of(tmp_path / "labels.h5"), message)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "labels.h5").read_bytes()[:500])
    call_is_refused(lambda: labels_of(tmp_path / "cut.h5"), r"cut\.h5 cannot be read as an array")
