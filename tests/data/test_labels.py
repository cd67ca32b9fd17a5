"""Tables of labels: column types, the matching of rows to images, and invalid tables."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.labels.matching import (
    Labels,
    fingerprint,
    folder_labels,
    read_labels,
)
from diffae_jax.data.labels.notes import constant_labels, notes
from diffae_jax.data.splits import notes_on_labels, open_splits
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence


@pytest.fixture
def table(tmp_path):
    def written(content, name="labels.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return written


def test_columns_are_whole_numbers_numbers_or_text(table):
    labels = read_labels(
        table('\ufefffile, smile,age ,hair,"said, in words"\n\na.png,1,30.5,black,"a ""b"",\nc"\nb.png,0,,,\r\n')
    )
    assert labels.ids == ("a.png", "b.png")
    assert list(labels.columns) == ["smile", "age", "hair", "said, in words"]
    assert labels.columns["smile"].dtype == np.int64
    np.testing.assert_array_equal(labels.columns["smile"], [1, 0])
    np.testing.assert_array_equal(labels.columns["age"], [30.5, np.nan])
    assert labels.columns["hair"].tolist() == ["black", ""]
    assert labels.columns["said, in words"].tolist() == ['a "b",\nc', ""]


def test_numbers_with_underscores_are_text(table):
    assert read_labels(table("file,n\na,1_0\nb,2\n")).columns["n"].tolist() == ["1_0", "2"]


def test_signs_are_of_numbers_and_empty_rows_of_spreadsheets_are_none(table):
    labels = read_labels(table("file,n,x\na,+1,+.5\nb,-1,1e3\n,,\n , ,\n"))
    assert labels.ids == ("a", "b")
    assert labels.columns["n"].tolist() == [1, -1]
    assert labels.columns["x"].tolist() == [0.5, 1000]


def test_quotes_within_text_are_text_and_lines_may_end_as_on_any_system(table):
    for end in ("\n", "\r\n", "\r"):
        labels = read_labels(table(f'file,screen{end}a,5" wide{end}b,x{end}'))
        assert labels.columns["screen"].tolist() == ['5" wide', "x"]


def test_table_of_the_size_of_celeba_is_read_in_seconds(table):
    values = np.random.default_rng(0).integers(0, 2, (200_000, 40))
    rows = "".join(f"{i}.jpg,{','.join(map(str, row))}\n" for i, row in enumerate(values.tolist()))
    path = table("file," + ",".join(f"c{i}" for i in range(40)) + "\n" + rows)
    start = time.process_time()  # the machine may be busy
    labels = read_labels(path)
    assert time.process_time() - start < 3
    np.testing.assert_array_equal(np.stack(list(labels.columns.values()), 1), values)


def test_tables_of_tabs(table):
    labels = read_labels(table("file\tname, first\na\tx, y\n", "labels.TSV"))
    assert labels.columns["name, first"].tolist() == ["x, y"]
    labels = read_labels(table("file\tn\na\tx, y\n", "labels.txt"))
    assert labels.columns["n"].tolist() == ["x, y"]


def test_rows_find_their_images_by_path_by_name_and_by_stem(table):
    labels = read_labels(
        table("id,n,f,t\nb/1.png,1,1.5,u\n2.png,2,2.5,v\n3,3,3.5,w\nnobody,4,4.5,x\n/old/5.jpg,5,5.5,y\n")
    )
    ids = ["3.png", "b/1.png", "b/2.png", "5.png", "c/9.png"]
    columns = labels.of(ids)
    np.testing.assert_array_equal(columns["n"], [3, 1, 2, 5, np.nan])
    np.testing.assert_array_equal(columns["f"], [3.5, 1.5, 2.5, 5.5, np.nan])
    assert columns["t"].tolist() == ["w", "u", "v", "y", ""]
    assert labels.of(ids[:4])["n"].dtype == np.int64
    assert labels.unmatched(ids) == ["nobody"]
    assert labels.unnamed(ids) == ["c/9.png"]


def test_a_name_that_several_have_is_no_match(table):
    labels = read_labels(table("id,n\n1.png,1\nd/2.png,2\ne/2.png,3\n7.png,7\n"))
    columns = labels.of(["b/1.png", "c/1.png", "2.png", "d/2.png", "7.png", "c/7.png", "7.jpg"])
    np.testing.assert_array_equal(columns["n"], [np.nan, np.nan, np.nan, 2, 7, np.nan, np.nan])
    assert labels.unmatched(["b/1.png", "c/1.png", "7.png"]) == ["1.png", "d/2.png", "e/2.png"]


def test_a_row_of_another_folder_is_no_match():
    """Tables of FairFace have rows for train/1.jpg and val/1.jpg, which are different people."""
    labels = Labels(("train/1.jpg", "train/2.jpg", "3.jpg"), {"age": np.array([10, 20, 30])})
    ages = labels.of(["val/1.jpg", "val/9.jpg", "val/3.jpg", "2.jpg"])["age"]
    np.testing.assert_array_equal(ages, [np.nan, np.nan, 30, 20])
    message = (
        r"train/1\.jpg and val/1\.jpg are in different folders, or .* Write the folders of the image in each row, or"
    )
    with pytest.raises(UserError, match=message) as refusal:
        labels.of(["val/1.jpg", "val/2.jpg"])
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        (["photos/a/0.png", "photos/a/1.png", "photos/b/0.png"], ["a/0.png", "a/1.png", "b/0.png"]),
        (["/data/old/a/0.png", "/data/old/a/1.png"], ["a/0.png", "a/1.png"]),
        (["./a/0.png", "./a/1.png"], ["a/0.png", "a/1.png"]),
        (["a\\0.png", "a\\1.png", "b\\0.png"], ["a/0.png", "a/1.png", "b/0.png"]),
        (["C:\\photos\\a\\0.png", "C:\\photos\\b\\0.png"], ["a/0.png", "b/0.png"]),
        (["a/0", "b/0"], ["photos/a/0.png", "photos/b/0.png"]),
        (["a/0.jpg", "b/0.jpg", "1.jpg"], ["a/0.png", "b/0.png", "b/1.png"]),
    ],
)
def test_names_match_with_more_or_fewer_folders(rows, ids):
    labels = Labels(rows, {"n": np.arange(len(rows))})
    assert labels.of(ids)["n"].tolist() == list(range(len(rows)))
    assert labels.of(ids[::-1])["n"].tolist() == list(range(len(rows)))[::-1]
    assert labels.unmatched(ids) == labels.unnamed(ids) == []


def test_numbers_with_decimal_commas_are_numbers_in_a_table_of_semicolons(table):
    labels = read_labels(table("f;age;note;code\na.png;20,0;1,5 m;1,0\nb.png;-21,25;2;x\nc.png;;3;2,0\n"))
    np.testing.assert_array_equal(labels.columns["age"], [20, -21.25, np.nan])
    assert labels.columns["note"].tolist() == ["1,5 m", "2", "3"]
    assert labels.columns["code"].tolist() == ["1,0", "x", "2,0"]
    assert read_labels(table('f,age\na.png,"20,0"\nb.png,"21,5"\n')).columns["age"].tolist() == ["20,0", "21,5"]


@pytest.mark.parametrize(
    ("ids", "held_out", "classes"),
    [
        (["train/cat/0.png", "train/dog/1.png", "val/cat/2.png"], "val", ["cat", "dog", "cat"]),
        (["Train/cat/0.png", "Train/dog/1.png", "Test/cat/2.png"], "", ["cat", "dog", "cat"]),
        (["cat/0.png", "dog/1.png", "mine/cat/2.png"], "mine/", ["cat", "dog", "cat"]),
        (["train/cat/0.png", "train/dog/1.png", "mine/cat/2.png"], "mine", ["cat", "dog", "cat"]),
        (["0/0.png", "1/1.png"], "", ["0", "1"]),
        (["test/0.png", "cat/1.png"], "", ["test", "cat"]),
    ],
)
def test_folders_of_splits_are_no_classes(ids, held_out, classes):
    assert folder_labels(ids, held_out)["folder"].tolist() == classes


def test_folders_of_splits_are_no_classes_in_a_run(tmp_path):
    for name in ("train/cat/0", "train/dog/1", "val/cat/2", "val/dog/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 1).save(tmp_path / f"{name}.png")
    _, training, held_out = open_splits(str(tmp_path), (4, 4, 1), labels="folders", held_out="val")
    assert training.labels["folder"].tolist() == held_out.labels["folder"].tolist() == ["cat", "dog"]


def test_constant_labels_of_the_training_images_are_reported(tmp_path, table):
    """Held-out images with another value do not help: no probe can be fitted."""
    for i in range(4):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    labels = str(table("file,y\n0.png,1\n1.png,0\n2.png,0\n3.png,0\n"))
    _, *splits = open_splits(str(tmp_path), (4, 4, 1), labels=labels, held_out="[:1]")
    assert notes_on_labels(labels, *splits) == ["1 of 1 labels are constant over the labeled training images (y=0)."]


def test_matching_a_hundred_thousand_names_takes_seconds():
    ids = [f"p{i}/scan.nii" for i in range(100_000)]
    labels = Labels([f"root/{name}" for name in ids], {"n": np.arange(len(ids))})
    start = time.process_time()
    assert labels.of(ids)["n"].tolist() == list(range(len(ids)))
    assert time.process_time() - start < 8


def test_labels_of_no_image_are_refused(table):
    with pytest.raises(
        UserError, match=r"None of the 4 names in the .* \(a, b, c and 1 more\) matches one of the 2 im"
    ) as refusal:
        read_labels(table("id,n\nd,1\nb,1\nc,1\na,1\n")).of(["1.png", "2.png"])
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column of labels"),
        ("\n\n", "no column of labels"),
        ("id\na\n", "no column of labels"),
        ("id,n\n", "only has a header row"),
        ("id,n,n\na,1,2\n", "a unique name for each column"),
        ("id,n,\na,1,2\n", "a unique name for each column"),
        ("id,n\na,1\nb\n", r"cannot be read as a table \(.*Row #3: Expected 2 columns, got 1: b\)"),
        ("id,n\na,1\nb,2,3\n", "Row #3: Expected 2 columns, got 3: b,2,3"),
        ("id,n\na,1\n\na,2\n", "the image a in rows 2 and 3"),
        ("id,n\na,1\n,2\n", "no image name in row 3"),
        ('id,n\na,"1\nb,2\n', "has an unclosed quote, so its last rows are read as one cell"),
        (b"id,n\na,1\nb,\xff\n", "not UTF-8 text"),
        ("id,n\na,1\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_what_is_no_table_is_told_in_one_sentence(table, content, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_labels(table(content))
    assert_is_one_sentence(refusal.value)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path, "not a file"), (tmp_path / "a.csv", "is missing"), (tmp_path / "pipe", "not a f")):
        with pytest.raises(UserError, match=message) as refusal:
            read_labels(path)
        assert_is_one_sentence(refusal.value)


def test_fingerprint_tells_values_names_and_splits_apart():
    labels = {"a": np.array([1.0, np.nan]), "b": np.array(["x", ""], object)}
    others = [
        ({**labels, "a": np.array([1.0, 2.0])}, {}),
        ({"c": labels["a"], "b": labels["b"]}, {}),
        ({}, labels),
        ({"a": labels["a"]}, {"b": labels["b"]}),
    ]
    assert fingerprint(labels, {}) == fingerprint(dict(reversed(labels.items())), {})
    assert len({fingerprint(*splits) for splits in [(labels, {}), *others]}) == 5


def test_images_of_a_folder_carry_their_labels_into_both_splits(tmp_path, table):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), i).save(images / f"{i}.png")
    file = table("file,number,half\n" + "".join(f"{i},{i},{i / 2}\n" for i in range(19)))
    settings = dict(path=str(images), image_shape=(8, 8, 1), held_out_share=0.3)
    splits = open_splits(labels=str(file), **settings)[1:]
    assert 0 < len(splits[1]) < 20
    for source in splits:
        expected = [float(name.removesuffix(".png")) for name in source.ids]
        missing = np.equal(expected, 19)
        np.testing.assert_array_equal(source.labels["number"], np.where(missing, np.nan, expected))
        np.testing.assert_array_equal(source.labels["half"], np.where(missing, np.nan, np.divide(expected, 2)))
    assert all(source.labels == {} for source in open_splits(**settings)[1:])
    with pytest.raises(UserError, match=r"digits already have labels\. Remove --config\.data\.labels"):
        open_splits("digits", (8, 8, 1), labels=str(file))


def test_the_first_folder_is_a_label():
    labels = folder_labels(["cats/a.png", "dogs/old/b.png", "cats/cats.png"])
    assert list(labels) == ["folder"]
    assert labels["folder"].dtype == object
    assert labels["folder"].tolist() == ["cats", "dogs", "cats"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["cats/a.png", "b.png", "dogs/c.png", "d.png"], r"2 of 4 images are in no subfolder \(b\.png, d\.png\)"),
        (["cats/a.png", "cats/old/b.png"], r"All 2 images are in the same subfolder \(cats\), so all have one label"),
    ],
)
def test_folders_that_are_no_label_are_told_in_one_sentence(ids, message):
    with pytest.raises(UserError, match=message) as refusal:
        folder_labels(ids)
    assert_is_one_sentence(refusal.value)


def test_notes_tell_what_labels_and_images_have_no_counterpart(table):
    labels = read_labels(
        table("id,hair,digit,age,same,half\na,red,1,0.5,yes,1\nb,gray,2,1.5,,\nc,,,,,\nd,blue,7,2.5,no,\n")
    )
    ids = ["b.png", "a.png", "c.png", "z.png"]
    assert notes(labels.of(ids), labels, ids) == [
        "2 of 4 images have no labels (c.png, z.png).",
        "1 of 4 rows in the table of labels match no image (d).",
        "1 of 3 classes of hair have no image (blue).",
        "1 of 3 classes of digit have no image (7).",
        "1 of 2 classes of same have no image (no).",
    ]
    assert constant_labels(labels.of(ids)) == [
        "2 of 5 labels are constant over the labeled training images (half=1, same=yes)."
    ]


def test_notes_are_none_where_all_is_well(table):
    labels = read_labels(table("id,hair,digit\na,red,1\nb,gray,2\n"))
    assert notes(labels.of(["a.png", "b.png"]), labels, ["a.png", "b.png"]) == []
    assert notes({}, None, ["a.png"]) == []


def test_notes_of_labels_that_come_from_no_table(table):
    ids = ["x/1.png", "y/2.png"]
    folders = folder_labels(ids)
    assert notes(folders, None, ids) == []
    # an image that lies in a folder is still without those labels that a table should give
    labels = read_labels(table("id,empty,n\n1.png,,1\n3.png,red,2\n"))
    assert notes({**labels.of(ids), **folders}, labels, ids) == [
        "1 of 2 images have no labels (y/2.png).",
        "1 of 2 rows in the table of labels match no image (3.png).",
        "1 of 1 classes of empty have no image (red).",
        "1 of 2 classes of n have no image (2).",
    ]
    assert constant_labels({**labels.of(ids), **folders}) == [
        "1 of 3 labels have no value for any training image (empty).",
        "1 of 3 labels are constant over the labeled training images (n=1).",
    ]


def test_notes_count_no_classes_of_numbers_that_are_not_whole_nor_of_very_many_values():
    ids = [f"{i}.png" for i in range(1001)]
    texts = np.array(ids, object)
    for column, count in ((np.arange(1001) + 0.5, 0), (texts, 0), (texts[:1000], 1), (np.arange(1000), 1)):
        labels = Labels(ids[: len(column)], {"n": column})
        told = notes(labels.of(ids[:2]), labels, ids[:2])
        assert sum("classes of n have no image" in note for note in told) == count, column


def test_notes_are_printable_whatever_the_table_holds(table):
    labels = read_labels(table('id,"a\nb"\n1,"x\n\x1b[2J"\n2,"y\n"\n'))
    told = [*notes(labels.of(["1"]), labels, ["1"]), *constant_labels(labels.of(["1"]))]
    assert len(told) == 3
    assert all(note.isprintable() for note in told)


def test_names_with_dots_match_with_and_without_suffix(tmp_path):
    (tmp_path / "l.csv").write_text("id,y\nscan.1,1\n1.2.840.1,2\nleft.nii.gz,3\nd.jpg,4\n")
    ids = ["scan.png", "scan.1.png", "1.2.840.1.npy", "left.npy", "d.png"]
    np.testing.assert_array_equal(read_labels(tmp_path / "l.csv").of(ids)["y"], [np.nan, 1, 2, 3, 4])


def test_first_line_that_is_an_image_is_told_and_words_for_missing_are_missing(tmp_path):
    (tmp_path / "l.csv").write_text("000001.jpg,1\n000002.jpg,0\n")
    with pytest.raises(UserError, match=r"has no header row\. Add one, such as `file,smile`"):
        read_labels(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("id,age\na,3\nb,NA\nc,\nd,null\n")
    np.testing.assert_array_equal(read_labels(tmp_path / "l.csv").columns["age"], [3, np.nan, np.nan, np.nan])


def test_semicolons_of_spreadsheets_separate_too(tmp_path):
    (tmp_path / "l.csv").write_text("id;n;word\na;1;x,y\nb;2;z\n")
    labels = read_labels(tmp_path / "l.csv")
    assert labels.columns["n"].tolist() == [1, 2]
    assert labels.columns["word"].tolist() == ["x,y", "z"]


def test_lists_of_values_become_a_label_for_each_value(table):
    path = table("file,Finding,note\na,Mass|Edema,x\nb,Mass,x|y\nc,,\nd,No Finding,z\n")
    labels = read_labels(path)
    assert list(labels.columns) == ["Finding=Edema", "Finding=Mass", "Finding=No Finding", "note=x", "note=y", "note=z"]
    np.testing.assert_array_equal(labels.columns["Finding=Edema"], [1, 0, np.nan, 0])
    np.testing.assert_array_equal(labels.columns["Finding=Mass"], [1, 1, np.nan, 0])
    np.testing.assert_array_equal(labels.columns["Finding=No Finding"], [0, 0, np.nan, 1])
    assert labels.notes_on_table[0] == (
        "The column Finding has several values per image, separated by |. Each of its 3 values becomes a label with "
        "0 and 1 (Edema, Mass, No Finding)."
    )
    complete = read_labels(table("file,f\na,p | q|\nb,q\n")).columns
    assert {name: (values.dtype, values.tolist()) for name, values in complete.items()} == {
        "f=p": (np.int64, [1, 0]),
        "f=q": (np.int64, [1, 1]),
    }
    many = "".join(f"{i},{i}|v{i}\n" for i in range(51))
    assert list(read_labels(table("file,f\n" + many)).columns) == ["f"]
