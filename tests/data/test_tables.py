"""Parquet tables and the text files of CelebA: their labels, and one line for invalid files."""

import json
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from diffae_jax.data.labels.matching import read_labels
from diffae_jax.probes import fit
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence

CELEBA = "3\nSmiling Young  5_o_Clock_Shadow \n000001.jpg -1  1 -1\n000002.jpg  1  1 -1 \n000003.jpg -1 -1  1\n"


@pytest.fixture
def written(tmp_path):
    """Writes columns as Parquet, optionally with the index columns of pandas."""

    def write(columns, index_columns=None, name="labels.parquet", **settings):
        table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
        if index_columns is not None:
            table = table.replace_schema_metadata({"pandas": json.dumps({"index_columns": index_columns})})
        pyarrow.parquet.write_table(table, tmp_path / name, **settings)
        return tmp_path / name

    return write


def assert_refused(path, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_labels(path)
    assert_is_one_sentence(refusal.value)


def test_columns_of_parquet_become_whole_numbers_numbers_or_text(written):
    # groups of two rows: each has its own list of different texts
    columns = {
        "id": ["a.png", "b.png", "c.png"],
        "whole": pyarrow.array([1, 2, -3], pyarrow.int8()),
        "some whole": pyarrow.array([1, None, 3], pyarrow.uint16()),
        "large": pyarrow.array([1, 2, 2**64 - 1], pyarrow.uint64()),
        "truth": [True, False, True],
        "some truth": [True, None, False],
        "number": pyarrow.array([0.5, None, float("nan")], pyarrow.float32()),
        "text": ["x", None, "y"],
        "text.long": pyarrow.array(["u", "", "v"], pyarrow.large_string()),
        "category": pyarrow.array(["p", None, "p"]).dictionary_encode(),
        "category of numbers": pyarrow.array([7, 9, 7]).dictionary_encode(),
        "nothing": pyarrow.nulls(3),
    }
    labels = read_labels(written(columns, row_group_size=2))
    assert labels.ids == ("a.png", "b.png", "c.png")
    assert list(labels.columns) == list(columns)[1:]
    expected = {
        "whole": np.array([1, 2, -3]),
        "some whole": np.array([1, np.nan, 3]),
        "large": np.array([1, 2, 2.0**64]),
        "truth": np.array([1, 0, 1]),
        "some truth": np.array([1, np.nan, 0]),
        "number": np.array([0.5, np.nan, np.nan]),
        "text": np.array(["x", "", "y"], object),
        "text.long": np.array(["u", "", "v"], object),
        "category": np.array(["p", "", "p"], object),
        "category of numbers": np.array([7, 9, 7]),
        "nothing": np.full(3, np.nan),
    }
    for name, values in expected.items():
        assert labels.columns[name].dtype == values.dtype, name
        np.testing.assert_array_equal(labels.columns[name], values, name)


def test_parquet_is_known_by_its_content_too(written):
    assert read_labels(written({"id": ["a"], "n": [1]}, name="labels.bin")).columns["n"].tolist() == [1]


def test_whole_numbers_as_names_of_images_become_text(written):
    assert read_labels(written({"id": pyarrow.array([7, 2**64 - 1], pyarrow.uint64()), "n": [1, 2]})).ids == (
        "7",
        str(2**64 - 1),
    )


@pytest.mark.parametrize(
    ("columns", "index_columns", "ids", "names"),
    [
        ({"n": [1, 2], "__index_level_0__": ["a", "b"]}, ["__index_level_0__"], ("a", "b"), ["n"]),
        ({"n": [1, 2], "__index_level_0__": [5, 9]}, ["__index_level_0__"], ("5", "9"), ["n"]),
        ({"t": ["x", "x"], "__index_level_0__": [5, 9]}, ["__index_level_0__"], ("5", "9"), ["t"]),
        ({"t": ["x", "y"], "file": [5, 9]}, ["file"], ("5", "9"), ["t"]),
        ({"t": ["x", "y"], "n": [5, 9]}, [{"kind": "range", "start": 0, "stop": 2, "step": 1}], ("x", "y"), ["n"]),
        ({"t": ["x", "y"], "n": [5, 9]}, ["gone", 3], ("x", "y"), ["n"]),
        ({"t": ["x", "y"], "n": [5, 9]}, "n", ("x", "y"), ["n"]),
    ],
)
def test_an_index_of_pandas_names_the_images(written, columns, index_columns, ids, names):
    labels = read_labels(written(columns, index_columns))
    assert (labels.ids, list(labels.columns)) == (ids, names)


def test_numbers_of_rows_are_not_taken_for_names_of_images(written):
    columns = {"image_id": ["1.jpg", "3.jpg"], "n": [1, 0], "__index_level_0__": [0, 2]}
    assert_refused(
        written(columns, ["__index_level_0__"]),
        r"may be its unnamed index of numbers \(__index_level_0__\) or the column image_id",
    )


@pytest.mark.parametrize(
    ("columns", "index_columns", "message"),
    [
        (
            {"id": ["a"], "boxes": [[1, 2]]},
            None,
            "columns of numbers or text as labels. Not usable: boxes of type list<",
        ),
        ({"id": ["a"], "born": pyarrow.array([0], pyarrow.date32())}, None, "Not usable: born of type date32"),
        ({"id": ["a"], "raw": [b"x"]}, None, "Not usable: raw of type binary"),
        ({"id": ["a"], "raw": pyarrow.array([b"x"]).dictionary_encode()}, None, "Not usable: raw of type dictionary"),
        ({"id": ["a"], "s": [{"x": 1, "y": 2}]}, None, "Not usable: s of type struct"),
        ({"id": [1.5], "n": [1]}, None, "a column id of type double, but image names must be"),
        ({"id": ["a", None], "n": [1, 2]}, None, "no image name in row 2"),
        ({"id": [1, None], "n": [1, 2]}, None, "no image name in row 2"),
        ({"id": ["a", "b", "a"], "n": [1, 2, 3]}, None, "the image a in rows 1 and 3"),
        ({"id": ["a"]}, None, "no column of labels"),
        (
            {"id": pyarrow.array([], pyarrow.string()), "n": pyarrow.array([], pyarrow.int8())},
            None,
            "only has a header row",
        ),
        ({"id": ["a"], "": [1]}, None, "has columns with no name or the same name. Give each column a unique name"),
        ({"id": ["a"], "x": ["b"], "y": ["c"]}, ["x", "y"], "an index of 2 columns"),
    ],
)
def test_what_is_no_table_in_parquet_is_told_in_one_sentence(written, columns, index_columns, message):
    assert_refused(written(columns, index_columns), message)


def test_two_columns_of_a_name_in_parquet_are_refused(written):
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array([1]), pyarrow.array([2])], ["id", "n", "n"])
    assert_refused(written(twice), "has columns with no name or the same name. Give each column a unique name")


def test_the_same_long_text_many_times_takes_little_room(written):
    number = 10_000
    text = pyarrow.array(["x" * 100_000]).dictionary_encode()
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(number, np.int32), text.dictionary)
    path = written({"id": np.arange(number), "text": column})  # a gigabyte, were each written out
    values = read_labels(path).columns["text"]
    assert len(values) == number
    assert len({id(value) for value in values}) == 1


def test_damaged_parquet_is_read_right_or_refused_in_one_sentence(written):
    columns = {"id": [f"{i}.png" for i in range(50)], "text": ["a", None] * 25, "n": [1, None] * 25, "f": [0.5] * 50}
    path = written(columns, compression="none")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[:end] for end in range(0, len(whole), 97)]
    for place in random.choice(len(whole), 300, replace=False):
        damaged.append(whole[:place] + bytes([random.integers(256)]) + whole[place + 1 :])
    refusals = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert all(len(values) == len(read_labels(path).ids) for values in read_labels(path).columns.values())
        except UserError as refusal:
            assert_is_one_sentence(refusal)
            refusals += 1
    assert refusals > len(damaged) // 2
    for content in (b"", whole[:100], whole[:-1], b"id,n\na,1\n"):
        path.write_bytes(content)
        assert_refused(path, r"cannot be read as Parquet \(.*\)\. Check the file")


@pytest.mark.parametrize("content", [CELEBA, CELEBA.replace("-1", "0"), "\ufeff" + CELEBA.replace("\n", "\r\n")])
def test_attributes_of_celeba_become_0_and_1(tmp_path, content):
    path = tmp_path / "list_attr_celeba.txt"
    path.write_bytes(content.encode())
    labels = read_labels(path)
    assert labels.ids == ("000001.jpg", "000002.jpg", "000003.jpg")
    assert {name: values.tolist() for name, values in labels.columns.items()} == {
        "Smiling": [0, 1, 0],
        "Young": [1, 1, 0],
        "5_o_Clock_Shadow": [0, 0, 1],
    }
    assert all(values.dtype == np.int64 for values in labels.columns.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CELEBA[:-20], "has 2 images, but its first line says 3"),
        (CELEBA[:-3], "2 values in line 5, but 3 names in line 2"),
        (CELEBA + "000004.jpg 1 1 1\n", "has 4 images, but its first line says 3"),
        (CELEBA.replace("-1  1\n", "-1  2\n"), "has 2 in line 5"),
        (CELEBA.replace("-1  1\n", "-1  0\n"), "has 0 in line 5"),
        (CELEBA.replace("000002.jpg  1", "000002.jpg -1").replace("-1  1\n", "0  1\n"), "has 0 in line 5"),
        ("2\na b\n1.jpg 0 1\n2.jpg 1 -1\n", "has -1 in line 4"),
        (CELEBA.replace("000003", "000001"), "the image 000001.jpg in rows 3 and 5"),
        (CELEBA.replace("Young", "Smiling"), "a unique name for each column in its second line"),
        ("3\n", "has 0 images, but its first line says 3"),
        ("0\n", "no column of labels"),
        ("0\na b\n", "only has a header row"),
    ],
)
def test_what_is_no_table_of_celeba_is_told_in_one_sentence(tmp_path, content, message):
    (tmp_path / "list_attr_celeba.txt").write_text(content)
    assert_refused(tmp_path / "list_attr_celeba.txt", message)


def test_values_of_minus_one_and_one_in_a_csv_stay_and_are_a_binary_label(tmp_path):
    z = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    values = np.where(z[:, 0] > 0, 1, -1)
    (tmp_path / "list_attr_celeba.csv").write_text(
        "image_id,Smiling\n" + "".join(f"{i:06d}.jpg,{value}\n" for i, value in enumerate(values, 1))
    )
    column = read_labels(tmp_path / "list_attr_celeba.csv").columns["Smiling"]
    np.testing.assert_array_equal(column, values)
    for positive_unlabeled in (False, True):
        probe = fit("Smiling", z, column, positive_unlabeled=positive_unlabeled)
        assert probe.kind == "binary"
        assert np.mean((probe.logits(z) > 0) == (values == 1)) > 0.9


def test_the_attributes_of_all_celeba_are_read_in_seconds(tmp_path):
    number = 200_000
    rows = [" ".join(f"{value:2}" for value in row) for row in np.random.default_rng(0).choice([-1, 1], (1000, 40))]
    with (tmp_path / "list_attr_celeba.txt").open("w") as file:
        file.write(f"{number}\n{' '.join(f'attribute_{i}' for i in range(40))}\n")
        file.writelines(f"{i:06d}.jpg {rows[i % 1000]}\n" for i in range(number))
    start = time.process_time()  # the machine may be busy
    labels = read_labels(tmp_path / "list_attr_celeba.txt")
    assert time.process_time() - start < 6  # 1.4 seconds on two idle cores
    assert len(labels.ids) == number
    np.testing.assert_array_equal(labels.columns["attribute_39"][:3], [row.endswith(" 1") for row in rows[:3]])
