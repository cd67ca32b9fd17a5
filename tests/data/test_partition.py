"""Held-out images from a table or a list: values, names, and invalid files."""

import pyarrow
import pyarrow.parquet
import pytest

from diffae_jax.data.labels.matching import read_partition
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence

IMAGES = ["faces/1.png", "faces/2.png", "faces/3.png", "faces/4.png"]


@pytest.fixture
def file(tmp_path):
    def write(content, name="partition.csv"):
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return write


def held_out(path):
    is_held_out = read_partition(path).of(IMAGES)
    assert is_held_out.dtype == bool
    return [name for name, is_it in zip("1234", is_held_out, strict=True) if is_it]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "image,whatever\n1,train\n2,TEST\n3,Training\n4,val\n"),
        ("p.tsv", "image\tset\n1\t0\n2\t1\n3\t0\n4\t2\n"),
        ("p.csv", "image,smile,Split,age\n1.png,1,train,20\n2.png,0,dev,21\n3.png,0,train,\n4.png,1,held_out,3\n"),
        ("p.csv", "image,test\n1,0\n2,1\n3,0\n4,1\n"),
        ("p.csv", "image\n2\n4.png\n"),
        ("p.csv", "2.png\n4.png\n"),
        ("p.csv", "\ufeffFile_Name\n2.jpg\n\n4.png\n"),
        ("list_eval_partition.txt", "1.jpg 0\n2.jpg 1\n3.jpg 0\n4.jpg 2\n"),
        ("list_eval_partition.txt", "1.png \t training\n2.png  Validation\n4.png testing\n"),
        ("held-out.txt", "faces/2.png\nfaces/4.png"),
        ("held-out.txt", "2\n4\n"),
        ("held-out.txt", "nobody knows.png\n2\n4\n"),
    ],
)
def test_what_is_held_out(file, name, content):
    assert held_out(file(content, name)) == ["2", "4"]


@pytest.mark.parametrize(
    "columns",
    [
        {"id": ["1", "2", "3", "4"], "split": ["train", "test", "train", "valid"]},
        {"id": [1, 2, 3, 4], "n": [5, 6, 7, 8], "subset": [0, 1, 0, 2]},
        {"id": ["1", "2", "3", "4"], "held out": [False, True, False, True]},
        {"id": ["1", "2", "3", "4"], "split": [0.0, 1.0, 0.0, 2.0]},
        {"id": ["2", "4"]},
    ],
)
def test_what_is_held_out_by_parquet(tmp_path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert held_out(tmp_path / "p.parquet") == ["2", "4"]


def test_names_with_blanks_are_whole_in_a_list_and_stand_before_the_word_in_a_partition(file):
    ids = ["my cat.png", "my dog.png"]
    assert read_partition(file("my cat.png\n", "a.txt")).of(ids).tolist() == [True, False]
    assert read_partition(file("my cat.png 0\nmy dog.png 1\n", "b.txt")).of(ids).tolist() == [False, True]


def test_images_and_rows_without_counterpart_can_be_asked_for(file):
    partition = read_partition(file("image,split\n1,train\n2,test\n9,test\n8,train\n"))
    assert partition.of(IMAGES).tolist() == [False, True, False, False]
    assert partition.unnamed(IMAGES) == ["faces/3.png", "faces/4.png"]
    assert partition.unmatched(IMAGES) == ["9", "8"]


def test_a_name_that_several_images_have_holds_none_of_them_out(file):
    partition = read_partition(file("1.png\n2.png\n", "list.txt"))
    images = ["a/1.png", "b/1.png", "a/2.png"]
    assert partition.of(images).tolist() == [False, False, True]
    assert partition.unmatched(images) == ["1.png"]


def test_a_partition_of_no_image_is_refused(file):
    message = (
        r"None of the 2 names in the held-out table \(a, b\) matches one of the 4 images \(faces/1\.png, faces/2\.png, "
    )
    with pytest.raises(UserError, match=message) as refusal:
        read_partition(file("image,split\na,train\nb,test\n")).of(IMAGES)
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "", "names no image"),
        ("p.csv", "image\n", "names no image"),
        ("p.csv", "image,split\n", "names no image"),
        (
            "p.csv",
            "image,split\n1,train\n2,other\n",
            "gives 2 the unknown split other. Use 0, train, training for training",
        ),
        ("p.csv", "image,split\n1,0\n2,3\n", "gives 2 the unknown split 3"),
        ("p.csv", "image,split\n1,0\n2,0.5\n", "gives 2 the unknown split 0.5"),
        ("p.csv", "image,split\n1,train\n2,\n", "gives 2 no split"),
        ("p.csv", "image,split\n1,1\n2,\n", "gives 2 no split"),
        ("p.csv", "image,a,b\n1,0,1\n", r"has 2 columns \(a, b\), 0 of which are named split, partition"),
        ("p.csv", "image,Split,set\n1,0,1\n", r"has 2 columns \(Split, set\), 2 of which are named"),
        ("p.csv", "1.png,0\n2.png,1\n", "has no header row. Add one, such as `file,s"),
        ("p.csv", "1.png,test\n2.png,train\n", "has no header row. Add one, such as `file,s"),
        (
            "p.csv",
            "image,is_train\n1,0\n2,1\n",
            "has numbers in the column is_train, and 1 means held out despite the name",
        ),
        ("p.csv", "image,split\n1,0\n1,1\n", "the image 1 in rows 2 and 3"),
        ("p.txt", "1.png\n2.png\n1.png\n", "the image 1.png in rows 1 and 3"),
        ("p.txt", "1.png 0\n2.png 1\n1.png 1\n", "the image 1.png in rows 1 and 3"),
        ("p.txt", "1.png 0\n2.png 1\n3.png\n", "has only the image 3.png in row 3"),
        ("p.txt", "1.png 0\n2.png 7\n", "gives 2.png the unknown partition 7"),
        ("p.txt", "1.png\n2.png,0\n", "Row #2: Expected 1 columns, got 2: 2.png,0"),
    ],
)
def test_what_is_no_partition_is_told_in_one_sentence(file, name, content, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_partition(file(content, name))
    assert_is_one_sentence(refusal.value)
