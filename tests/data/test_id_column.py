"""The column of a table that names the images: found by matching, given, or refused."""

import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from diffae_jax.data.labels.matching import read_labels, read_partition
from diffae_jax.data.labels.notes import notes
from diffae_jax.data.run_images import open_data
from diffae_jax.data.splits import notes_on_labels, open_splits
from diffae_jax.stages.autoencoder import describe_images
from tests.data.test_formats import call_is_refused
from tests.data_files import make_folder, noise
from tests.tiny import get_config

FOUR = [f"{i}.png" for i in range(4)]


@pytest.fixture
def table(tmp_path):
    def written(content, name="labels.csv"):
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return written


@pytest.mark.parametrize(
    ("content", "images", "labels", "column"),
    [
        (  # HAM10000
            "lesion_id,image_id,dx,age\nHAM_1,ISIC_19,bkl,80.0\nHAM_1,ISIC_30,bkl,80.0\nHAM_2,ISIC_69,nv,\n",
            ["ISIC_30.jpg", "ISIC_69.jpg", "ISIC_19.jpg"],
            {"lesion_id": ["HAM_1", "HAM_2", "HAM_1"], "dx": ["bkl", "nv", "bkl"], "age": [80, None, 80]},
            "image_id",
        ),
        (  # ChestX-ray14: a name of a column has a comma, so a column without a name comes last
            "Image Index,Finding Labels,Patient ID,Size[Width,Height],\n1_0.png,Mass,1,26,27,\n1_1.png,,2,28,29,\n",
            ["1_0.png", "1_1.png"],
            {"Finding Labels": ["Mass", ""], "Patient ID": [1, 2], "Size[Width": [26, 28], "Height]": [27, 29]},
            "",
        ),
        (  # CheXpert: the names begin with the folder of the data set
            "Path,Sex,Edema\nCheXpert/train/p1/s1/v1.jpg,Female,1.0\nCheXpert/train/p2/s1/v1.jpg,Male,\n",
            ["train/p1/s1/v1.jpg", "train/p2/s1/v1.jpg"],
            {"Sex": ["Female", "Male"], "Edema": [1, None]},
            "",
        ),
        (",file,y\n0,3.png,1\n1,0.png,0\n2,1.png,1\n", FOUR[:2], {"y": [0, 1]}, "file"),  # index of pandas
        ("Unnamed: 0,file,y\n0,3.png,1\n1,0.png,0\n", FOUR[:1], {"y": [0]}, "file"),
        (",y\n1.png,5\n0.png,6\n", FOUR[:2], {"y": [6, 5]}, ""),  # names as index of pandas
        (",hair,y\n0,red,5\n1,red,6\n", ["0", "1"], {"hair": ["red", "red"], "y": [5, 6]}, ""),  # images in memory
        ("index,y\n1,5\n0,6\n", ["0", "1"], {"y": [6, 5]}, ""),
        ("y,id\n5,1\n6,0\n", FOUR[:2], {"y": [6, 5]}, "id"),
        ("y;Image ID\n5,5;0001\n6;0000\n", ["0000.png", "0001.png"], {"y": [6, 5.5]}, "Image ID"),
        ("g,file,y\na\\x,C:\\p\\1.png,5\nb,C:\\p\\0.png,6\n", FOUR[:2], {"g": ["b", "a\\x"], "y": [6, 5]}, "file"),
        ("y,note,f\n5,n/a,a.png\n6,NA,na.png\n", ["a.png", "na.png"], {"y": [5, 6], "note": [None, None]}, "f"),
        (  # numbers next to a name that matches are not names either
            "g,size,file\nu,large,large.png\nv,1,2.png\nw,2,1.png\n",
            ["large.png", "1.png", "2.png"],
            {"g": ["u", "w", "v"], "size": ["large", "2", "1"]},
            "file",
        ),
        ("index,name,y\n0,2,5\n1,2,6\n2,9,7\n", ["0", "1", "2"], {"name": [2, 2, 9], "y": [5, 6, 7]}, ""),  # 2 is twice
        ("id,file\n0,0.png\n1,1.png\n", FOUR[:2], {"file": ["0.png", "1.png"]}, ""),  # the same rows
        (  # image and mask match as many images, so the first column counts
            "image,mask,y\nimg/1.png,mask/1.png,5\nimg/0.png,mask/0.png,6\n",
            ["img/0.png", "mask/1.png"],
            {"y": [6, None], "mask": ["mask/0.png", ""]},
            "",
        ),
    ],
)  # fmt: skip
def test_names_are_found_by_matching(table, content, images, labels, column):
    path = table(content)
    read = read_labels(path, images)
    columns = read.of(images)
    are(columns, labels)
    sentence = f"The names of the images are in the column {column} of {path}."
    assert [note for note in notes(columns, read, images) if "names of the images" in note] == [sentence] * bool(column)


def are(columns, expected):
    """Asserts the labels of some images. None is a missing number."""
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        if columns[name].dtype == object:
            assert columns[name].tolist() == values
        else:
            np.testing.assert_array_equal(columns[name], np.array(values, float), name)


@pytest.mark.parametrize(
    ("content", "images", "message"),
    [
        (  # ages 1 to 3 are not the names of 1.png to 3.png
            "subject,age,sex\ns1,3,f\ns2,1,m\n",
            FOUR,
            r"None of the 2 names in the table \(s1, s2\) matches one of the 4 images .*\. The table has "
            r"the columns age, sex, subject\. Name the column of image names "
            r"with --config\.data\.id_column or --id-column\.",
        ),
        (
            "id,file,y\n0,2.png,0\n1,0.png,1\n2,1.png,0\n",
            FOUR,
            "image 0.png in different rows of its columns id and file",
        ),
        (
            "a,file,copy_of,y\nv,2.png,,0\nw,0.png,2.png,1\n",
            FOUR,
            "image 2.png in different rows .* file and copy_of. Name",
        ),
        (",name,y\n0,ann,1\n1,bob,0\n", FOUR, r"unnamed index of numbers \(Unnamed: 0\) or the column name"),
        (",image id,y\n0,7,1\n1,9,0\n", FOUR, r"unnamed index of numbers \(Unnamed: 0\) or the column image id"),
        (",name,y\n0,ann,1\n1,bob,0\n", ["x.png"], r"None of the 2 names in the table \(ann, bob\)"),
        ("box,image,y\nq,1.png,1\nr,1.png,2\n", FOUR, "the image 1.png in rows 2 and 3. Give each image one row"),
        ("y,image\n4,1.png\n5,\n", FOUR, "no image name in row 3"),
        ("y,file\n4,a/1.png\n5,a/2.png\n", ["b/1.png", "b/3.png"], "a/1.png and b/1.png are in different folders"),
        ("file,y,\na,1,\nb,2,3\n", ["a"], "a unique name for each column in its first row, but column 3 has none"),
        ("file,y,y\na,1,2\n", ["a"], "a unique name for each column in its first row, but y occurs twice"),
        ("1,a.png\n0,b.png\n", ["a.png"], "has no header row"),
        (",file\n0,a.png\n", ["a.png"], "no column of labels besides row numbers"),
    ],
)
def test_what_cannot_be_matched_is_refused(table, content, images, message):
    path = table(content)
    call_is_refused(lambda: read_labels(path, images).of(images), message)


def test_column_of_names_can_be_given(table):
    path = table("id,file,y\n0,2.png,0\n1,0.png,1\n2,1.png,0\n")
    are(read_labels(path, FOUR, "file").of(FOUR[:3]), {"id": [1, 2, 0], "y": [1, 0, 0]})
    are(read_labels(path, FOUR, "id").of(FOUR[:2]), {"file": ["2.png", "0.png"], "y": [0, 1]})
    call_is_refused(lambda: read_labels(path, FOUR, "image"), "has no column image. Its columns are file, id, y")
    are(read_labels(table(",name\n1,ann\n0,bob\n"), FOUR, "Unnamed: 0").of(FOUR[:2]), {"name": ["bob", "ann"]})


def test_parquet_names_its_images_in_any_column(tmp_path):
    columns = {"image_id": ["1.png", "3.png"], "n": [1, 0], "__index_level_0__": [0, 2], "boxes": [[1], [2]]}
    schema = pyarrow.table(columns).replace_schema_metadata({"pandas": '{"index_columns": ["__index_level_0__"]}'})
    pyarrow.parquet.write_table(schema, tmp_path / "l.parquet")
    labels = read_labels(tmp_path / "l.parquet", FOUR)
    are(labels.of(FOUR), {"n": [None, 1, None, 0]})
    assert list(labels.notes_on_table) == [
        f"The names of the images are in the column image_id of {tmp_path / 'l.parquet'}.",
        f"1 of 4 columns of {tmp_path / 'l.parquet'} are not used, because they hold neither numbers nor text "
        f"(boxes of type list<element: int64>).",
    ]


@pytest.mark.parametrize(
    "content",
    [
        "patient,split,scan\np1,train,0.png\np1,test,2.png\np2,val,3.png\n",
        ",scan,x\n0,2.png,1\n1,3.png,1\n2,0.png,0\n",
    ],
)
def test_held_out_table_names_its_images_in_any_column(table, content):
    partition = read_partition(table(content, "split.csv"), FOUR)
    assert partition.of(FOUR).tolist() == [False, False, True, True]
    assert partition.notes(FOUR) == [
        f"The names of the images are in the column scan of {table(content, 'split.csv')}.",
        "1 of 4 images are not in the held-out table, so they are trained on (1.png).",
    ]


def test_training_and_held_out_images_find_their_rows_in_the_same_column(tmp_path, table):
    training = make_folder(tmp_path, noise(5, 8, 8, 3))
    (tmp_path / "other").mkdir()
    held_out = make_folder(tmp_path / "other", noise(2, 8, 8, 3)).rename(tmp_path / "held_out")
    for i in range(2):
        (held_out / f"0{i}.png").rename(held_out / f"1{i}.png")
    rows = [("x", "10.png"), ("y", "11.png"), *((f"z{i}", f"0{i}.png") for i in range(5))]
    labels = table("id,y,file\n" + "".join(f"{name},{i},{file}\n" for i, (name, file) in enumerate(rows)))
    _, *splits = open_splits(str(training), (8, 8, 3), labels=str(labels), held_out=str(held_out))
    assert [source.labels["y"].tolist() for source in splits] == [[2, 3, 4, 5, 6], [0, 1]]
    assert notes_on_labels(str(labels), *splits) == [f"The names of the images are in the column file of {labels}."]
    _, *splits = open_splits(str(training), (8, 8, 3), labels=str(labels), held_out=str(held_out), id_column="file")
    assert splits[1].labels["id"].tolist() == ["x", "y"]
    call_is_refused(
        lambda: open_splits(str(training), (8, 8, 3), labels=str(labels), held_out_share=0.5, id_column="y"),
        "None of the 7 names in the table of labels",
    )


def test_run_takes_the_column_of_its_config(tmp_path, table, capsys):
    """The rows are numbered, which are names of images too."""
    config = get_config()
    config.image_shape = (8, 8, 3)
    config.data.path = str(make_folder(tmp_path, noise(3, 8, 8, 3)))
    config.data.labels = str(table("id,y,image\n00,0,02.png\n01,1,01.png\n02,2,00.png\n"))
    call_is_refused(lambda: open_data(config, tmp_path, begun=False), "different rows of its columns id and image")
    config.data.id_column = "image"
    splits = open_data(config, tmp_path, begun=False)
    assert splits[0].labels["y"].tolist() == [2, 1, 0]
    describe_images(config, tmp_path, *splits)
    assert f"The names of the images are in the column image of {config.data.labels}.\n" in capsys.readouterr().out


def test_column_of_names_is_found_among_many_in_seconds(table):
    count = 50_000
    images = [f"part_{i % 10}/{i:07d}.jpg" for i in range(count)]
    numbers = np.random.default_rng(0).integers(0, 99, (count, 8)).tolist()
    rows = (f"group_{i // 2},{','.join(map(str, row))},{i:07d},word_{i % 9}\n" for i, row in enumerate(numbers))
    path = table(f"group,{','.join('abcdefgh')},image_id,word\n" + "".join(rows))
    start = time.process_time()  # the machine may be busy
    labels = read_labels(path, images).of(images)
    assert time.process_time() - start < 8  # 3 seconds on a busy core
    np.testing.assert_array_equal(np.stack([labels[name] for name in "abcdefgh"], 1), numbers)
