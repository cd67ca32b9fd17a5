"""Tables of labels: types, which row belongs to which image, and what is no such table."""

import os

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data import tables
from diffae_jax.data.labels import fingerprint, read_labels
from diffae_jax.data.sources import open_sources
from diffae_jax.errors import UserError
from tests.test_bundle import assert_is_one_sentence


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


def test_tables_of_tabs(table):
    labels = read_labels(table("file\tname, first\na\tx, y\n", "labels.TSV"))
    assert labels.columns["name, first"].tolist() == ["x, y"]


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


def test_a_name_that_several_have_is_no_match(table):
    labels = read_labels(table("id,n\n1.png,1\nd/2.png,2\ne/2.png,3\n7.png,7\n"))
    columns = labels.of(["b/1.png", "c/1.png", "2.png", "d/2.png", "7.png", "c/7.png", "7.jpg"])
    np.testing.assert_array_equal(columns["n"], [np.nan, np.nan, np.nan, 2, 7, np.nan, np.nan])
    assert labels.unmatched(["b/1.png", "c/1.png", "7.png"]) == ["1.png", "d/2.png", "e/2.png"]


def test_labels_of_no_image_are_refused(table):
    with pytest.raises(
        UserError, match=r"None of the 4 labelled ids \(a, b, c and 1 more\) is one of the 2 im"
    ) as told:
        read_labels(table("id,n\nd,1\nb,1\nc,1\na,1\n")).of(["1.png", "2.png"])
    assert_is_one_sentence(told.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column of labels"),
        ("\n\n", "no column of labels"),
        ("id\na\n", "no column of labels"),
        ("id;n\na;1\n", "no column of labels"),
        ("id,n\n", "names of columns alone"),
        ("id,n,n\na,1,2\n", "each with a name of its own"),
        ("id,n,\na,1,2\n", "each with a name of its own"),
        ("id," + ",".join(map(str, range(1001))), "up to 1,000 columns"),
        ("id,n\na,1\nb\n", "1 values in line 3, and 2 names in its first"),
        ("id,n\na,1\nb,2,3\n", "3 values in line 3"),
        ("id,n\na,1\n\na,2\n", "the image a for the second time in line 4"),
        ("id,n\na,1\n,2\n", "no name of an image in line 3"),
        ('id,n\na,"1\nb,2\n', r"no table of CSV: unexpected end of data in line 3"),
        ('id,n\na,"1"2\n', "no table of CSV: .* in line 2"),
        ("id,n\ra,1\rb,2\r", "no table of CSV: .* in line 1"),
        (b"id,n\na,1\nb,\xff\n", "not text in UTF-8, first in line 3"),
        ("id,n\na,1\n".encode("utf-16"), "not text in UTF-8, first in line 1"),
        ("id,n\na," + "x" * 70_000, "more than 65,536 bytes in line 2"),
        ("id,n\n" + "".join(f"{i},\n" for i in range(6)), "more than 5 rows"),
    ],
)
def test_what_is_no_table_is_told_in_one_sentence(table, content, message, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROWS", 5)
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
    splits = open_sources("folder", labels=str(file), **settings)
    assert 0 < len(splits[1]) < 20
    for source in splits:
        expected = [float(name.removesuffix(".png")) for name in source.ids]
        missing = np.equal(expected, 19)
        np.testing.assert_array_equal(source.labels["number"], np.where(missing, np.nan, expected))
        np.testing.assert_array_equal(source.labels["half"], np.where(missing, np.nan, np.divide(expected, 2)))
    assert all(source.labels == {} for source in open_sources("folder", **settings))
    with pytest.raises(UserError, match=r"digits have labels of their own: leave out --config\.data\.labels"):
        open_sources("digits", labels=str(file), **settings)
