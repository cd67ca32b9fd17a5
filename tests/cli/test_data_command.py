"""diffae data: its report matches the data set, and the contact sheet shows training images."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from diffae_jax import cli
from diffae_jax.cli import train
from diffae_jax.config import from_file
from diffae_jax.data.inspect import report, suggest
from diffae_jax.data.inspect.infer_shape import infer_image_shape
from diffae_jax.data.pictures import GAP, cell_size
from diffae_jax.data.sources import choose
from diffae_jax.data.transforms import resize_and_crop
from tests.environment import ROOT

SHAPE = "--image-shape", "32", "32", "3"
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, and a speed that is measured in no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "SECONDS", 0.05)


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def save(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def run(capsys):
    def call(*arguments, code=0):
        """Returns the standard output of the command, after checking its exit code."""
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as stop:
            cli.run(["data", *arguments])
        said = capsys.readouterr()
        assert not code or stop.value.code == code, said
        return said.out

    return call


def command_of(said):
    """The flags of the command to train, as a shell reads them."""
    program, *flags = shlex.split(said.splitlines()[-1])[2:]
    assert program == "diffae_jax.main"
    return dict(flag.removeprefix("--").split("=", 1) for flag in flags)


def tiles(path, count, height, width):
    """Cuts a contact sheet into its images, undoing the enlargement of small ones."""
    columns = int(np.ceil(np.sqrt(count)))
    rows = int(np.ceil(count / columns))
    high, wide = cell_size((height, width, 1), rows, columns)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[:2] == (rows * (high + GAP) - GAP, columns * (wide + GAP) - GAP)
    corners = [(i // columns * (high + GAP), i % columns * (wide + GAP)) for i in range(count)]
    return np.stack([pixels[y : y + high : high // height, x : x + wide : wide // width] for y, x in corners])


@pytest.fixture
def photos():
    """Twelve pictures in test/ and train/, five of them duplicates, and a table of labels."""
    images = {f"train/{i}.png": noise(40, 50 + i % 2, 3) for i in range(5)}
    images |= {"train/same.png": images["train/0.png"], "train/again.png": images["train/0.png"]}
    images |= {"test/a.png": noise(40, 50, 3), "test/leak.png": images["train/3.png"]}
    images |= {"train/gray.png": noise(60, 48), "train/other.bmp": noise(33, 90, 3)}
    for name, image in images.items():
        save(f"photos/{name}", image)
    Path("photos/train/broken.jpg").write_text("no image")
    rows = [f"{name},{i % 2},{'red' if i else ''}" for i, name in enumerate(images) if name != "train/4.png"]
    Path("labels.csv").write_text("\n".join(["image,smile,color", *rows, "gone.png,1,red"]))
    return images


def test_report_matches_the_data_set(photos, run):
    said = run("photos", *SHAPE, "--labels", "labels.csv", "--held-out", "test", "--out", "sheet.png", code=1)
    for line in (
        "Images: a folder of image files, 9 to train on, 2 held out.",
        "1 image cannot be used. Training stops with an error unless data.skip_bad=True:",
        "  photos/train/broken.jpg cannot be read as an image (cannot identify image file 'photos/train/broken.jpg'). "
        "Repair or remove it.",
        "Duplicates: 5 images have the same pixels as another image, in 2 groups:",
        "  train/3.png, test/leak.png (held out)",
        "  train/0.png, train/again.png, train/same.png",
        "2 groups of duplicates have different labels: smile is 0 for train/0.png and 1 for train/same.png. Correct "
        "the labels, or remove the copies.",
        "1 held-out image is also among the training images. Measurements on held-out images will be too optimistic. "
        "Remove the duplicates.",
        "Sizes: 4 different, from 50x40 to 90x33. Most common: 50x40 (5 images). All are scaled to 32x32.",
        "  50x40: 5",
        "  51x40: 2",
        "  48x60: 1",
        "  90x33: 1",
        "Channels: 3 (8 images), 1 (1 image). All are converted to 3.",
        "Labels: 2.",
        "  smile: 0 (4), 1 (4); missing for 1 image",
        "  color: red (7); missing for 2 images",
        "Contact sheet: 9 training images, scaled and cropped, in sheet.png",
    ):
        assert line in said.splitlines(), said
    first, second = (said.index(f"  {name}, ") for name in ("train/3.png", "train/0.png"))
    assert first < second  # duplicates across the splits come first
    assert "1 of 11 rows in the table of labels match no image (gone.png)." in said
    assert re.search(r"^Values: uint8, from 0 to 255\.$", said, re.M)
    speed = re.search(
        r"^Reading speed: ([\d,]+) images per second with threads \(([\d,]+) per core on (\d+) cores?\)\.$", said, re.M
    )
    a_second, a_core, cores = (int(number.replace(",", "")) for number in speed.groups())
    assert a_second / cores == pytest.approx(a_core, abs=1)
    assert a_second > 1
    assert command_of(said) == {
        "config": "configs/images.py",
        "config.name": "photos",
        "config.data.path": "photos",
        "config.image_shape": "(32, 32, 3)",
        "config.train.batch_size": "8",
        "config.data.skip_bad": "True",
        "config.data.labels": "labels.csv",
        "config.data.held_out": "test",
    }


def test_contact_sheet_is_of_the_images_that_training_gets(photos, run):
    run("photos", *SHAPE, "--held-out", "test", "--out", "sheet.png", code=1)
    names = sorted(name for name in photos if name.startswith("train/"))
    as_rgb = [np.broadcast_to(np.atleast_3d(photos[name]), (*photos[name].shape[:2], 3)) for name in names]
    expected = np.stack([resize_and_crop(image, (32, 32)) for image in as_rgb])
    np.testing.assert_array_equal(tiles("sheet.png", len(names), 32, 32), expected)


def test_array_file_with_an_array_of_labels(run):
    images = noise(200, 28, 28)
    images[150] = images[20]
    np.savez("mnist.npz", images=images, digit=np.arange(200) % 10, shade=np.linspace(0, 1, 200))
    said = run("mnist.npz", "--held-out", "[-20:]", "--out", "sheet.png")
    for line in (
        'Shape: no --image-shape was given. Proposed: --config.image_shape="(24, 24, 1)"',
        "Images: an array file (.npz), 180 to train on, 20 held out.",
        "Duplicates: 2 images have the same pixels as another image, in 1 group:",
        "  20, 150",
        "Sizes: all 28x28. All are scaled to 24x24.",
        "Channels: 1.",
        "  digit: " + ", ".join(f"{i} (18)" for i in range(10)),
        "  shade: numbers from 0 to 0.899497",
    ):
        assert line in said.splitlines(), said
    assert "also among the training images" not in said
    assert "cannot be used" not in said
    expected = [resize_and_crop(images[i][..., None], (24, 24))[..., 0] for i in choose(180, 64, seed=0)]
    np.testing.assert_array_equal(tiles("sheet.png", 64, 24, 24), expected)
    assert command_of(said) == {
        "config": "configs/images.py",
        "config.name": "mnist",
        "config.data.path": "mnist.npz",
        "config.image_shape": "(24, 24, 1)",
        "config.model.encoder_channel_mults": "(1, 2, 2, 4)",  # 24 cannot be halved four times
        "config.data.held_out": "[-20:]",
    }


def test_volumes_are_shown_by_their_middle_slices(run):
    volumes = RNG.normal(0, 100, (6, 32, 16, 48)).astype(np.int16)
    Path("scans").mkdir()
    for i, volume in enumerate(volumes):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"scans/{i}.nii.gz")
    said = run("scans", "--intensity=-200..200", "--held-out-share", "0", "--out", "sheet.png")
    assert "Images: a folder of volumes, 6 to train on, 0 held out." in said
    assert f"Values: int16, from {volumes.min()} to {volumes.max()}. -200 becomes -1 and 200 becomes 1." in said
    middle = (np.clip(volumes[:, 16], -200, 200) / 400 + 0.5) * 255
    assert np.abs(tiles("sheet.png", 6, 16, 48) - middle).max() <= 0.51
    flags = command_of(said)
    assert flags["config.image_shape"] == "(32, 16, 48, 1)"
    assert flags["config.data.intensity"] == "-200..200"
    assert flags["config.data.held_out_share"] == "0.0"


def test_signals_become_strips(run):
    np.save("ecg.npy", RNG.normal(size=(70, 12, 500)))
    said = run("ecg.npy", "--held-out-share", "0", "--out", "sheet.png")
    assert "Sizes: all 500. All are scaled to 496." in said
    assert "Channels: 12." in said
    with Image.open("sheet.png") as picture:
        assert picture.size == (8 * 498 - 2, 8 * 126 - 2)  # two pixels between strips


def test_digits_are_trained_by_their_own_config(run):
    said = run("digits")
    assert "Images: the digits of scikit-learn, 1,437 to train on, 360 held out." in said
    assert command_of(said) == {"config": "configs/digits.py"}


def test_config_is_taken_for_what_is_not_given(photos, run):
    config = str(ROOT / "configs" / "ffhq64.py")
    said = run("photos", "--config", f"{config}:z64", *SHAPE, code=1)
    assert "All are scaled to 32x32" in said
    flags = command_of(said)
    assert flags.keys() == {
        "config", "config.data.path", "config.image_shape", "config.train.batch_size", "config.data.skip_bad"
    }  # fmt: skip
    assert flags["config"] == f"{config}:z64"


def test_config_of_a_run_is_taken_too(photos, run):
    values = {
        "image_shape": [16, 16, 1],
        "data": {"held_out": "test", "labels": "labels.csv"},
        "train": {"batch_size": 4},
    }
    Path("config.json").write_text(json.dumps(values))
    said = run("photos", "--config", "config.json", code=1)
    assert "Labels: 2." in said
    assert "All are scaled to 16x16" in said
    assert "To train (set the other keys as in config.json yourself):" in said
    flags = command_of(said)
    assert (flags["config"], flags["config.image_shape"]) == ("configs/images.py", "(16, 16, 1)")
    assert (flags["config.data.held_out"], flags["config.train.batch_size"]) == ("test", "4")


@pytest.mark.parametrize(("path", "name"), [("photos", "images"), ("digits", "digits")])
def test_config_to_train_with_is_read_and_not_copied(path, name):
    assert suggest.default_config(path) == from_file(str(ROOT / "configs" / f"{name}.py"))


def test_config_is_named_as_for_training(photos, run):
    said = run("photos", "--config", "ffhq64:z64", *SHAPE, code=1)
    arguments = shlex.split(said.splitlines()[-1])[3:]
    assert arguments[0] == "--config=ffhq64:z64"
    config = train.parse(arguments).config  # as the suggested command, in this folder
    assert (config.name, config.image_shape, config.data.skip_bad) == ("ffhq64_z64", (32, 32, 3), True)


def test_column_of_the_names_in_a_table(photos, run):
    """Rows are numbered as 0 to 4, which are names of images too."""
    rows = [f"{i},photos/train/{4 - i}.png,{i}" for i in range(5)]
    Path("labels.csv").write_text("\n".join(["id,image,size", *rows]))
    run("photos", *SHAPE, "--labels", "labels.csv", code=2)
    said = run("photos", *SHAPE, "--labels", "labels.csv", "--id-column", "image", code=1)
    assert "The names of the images are in the column image of labels.csv." in said
    assert "  id: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1); missing for 6 images" in said
    config = train.parse(shlex.split(said.splitlines()[-1])[3:]).config
    assert config.data.id_column == "image"


def test_suggested_command_is_understood_in_the_folder_where_it_is_suggested(photos, run):
    command = run("photos", *SHAPE, "--labels", "labels.csv", code=1).splitlines()[-1]
    config = train.parse(shlex.split(command)[3:]).config
    assert (config.name, config.data.path, config.data.labels) == ("photos", "photos", "labels.csv")
    assert (config.image_shape, config.train.batch_size) == ((32, 32, 3), 8)


def test_sizes_of_few_images_each_are_listed_as_ranges(run):
    for i in range(40):
        save(f"all/{i}.png", noise(20 + 4 * i, 300 - i))
    said = run("all", "--held-out-share", "0", "--image-shape", "16", "16", "1")
    ranges = {"from 20 to 28": 3, "from 32 to 60": 8, "from 64 to 124": 16, "from 128 to 176": 13}
    lines = [line for line in said.splitlines() if "shortest side" in line]
    assert lines == [f"  shortest side {which}: {count} images" for which, count in ranges.items()]


def test_long_lists_are_shortened(run):
    for i in range(14):
        save(f"all/{i:02}.png", noise(16, 16))
        save(f"all/{i:02}-copy.png", np.asarray(Image.open(f"all/{i:02}.png")))
        save(f"all/small{i:02}.png", noise(9, 9))
    for size in range(20, 32):
        save(f"all/size{size}.png", noise(size, size))
    said = run("all", "--held-out-share", "0", "--image-shape", "16", "16", "1", code=1).splitlines()
    bad = said.index("14 images cannot be used. Training stops with an error unless data.skip_bad=True:")
    assert [line[:15] for line in said[bad + 1 : bad + 11]] == [f"  all/small{i:02}.pn"[:15] for i in range(10)]
    assert said[bad + 11] == "  and 4 more"
    same = said.index("Duplicates: 28 images have the same pixels as another image, in 14 groups:")
    assert said[same + 6] == "  and 9 more groups"
    sizes = next(i for i, line in enumerate(said) if line.startswith("Sizes: 13"))
    assert said[sizes + 1] == "  16x16: 28"
    assert said[sizes + 8] == "  6 other sizes: 6"


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(300, 500, 3)] * 3 + [(700, 400)], (256, 256, 3)),
        ([(85, 120)] * 2 + [(300, 70, 3)], (64, 64, 1)),
        ([(31, 40, 4)], (24, 24, 3)),
        ([(8, 9)], (8, 8, 1)),
        ([(100, 100, 3)] * 200 + [(9, 9, 3)], (96, 96, 3)),  # one icon
        ([(512, 512, 3)] * 30 + [(25, 14, 3)], (256, 256, 3)),  # one of few
        ([(64, 64, 3)] * 8 + [(12, 12, 3)] * 2, (8, 8, 3)),  # two are not few
    ],
)
def test_shape_of_pictures_is_guessed(shapes, expected):
    for i, shape in enumerate(shapes):
        save(f"all/{i}.png", noise(*shape))
    assert infer_image_shape("all") == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((9, 40, 50), (32, 32, 1)),
        ((9, 40, 50, 3), (32, 32, 3)),
        ((9, 4, 40, 50), (32, 32, 4)),
        ((9, 1000), (992, 1)),
        ((9, 2, 100), (96, 2)),
        ((9, 16, 33, 130), (8, 16, 64, 1)),  # in proportion, for 64 is the most
        ((9, 32, 32, 32, 5), (32, 32, 32, 5)),
    ],
)
def test_shape_of_arrays_is_guessed(shape, expected):
    np.save("a.npy", np.zeros(shape, np.uint8))
    np.savez("b.npz", small=np.zeros((9, 2)), images=np.zeros(shape, np.uint8), label=np.zeros(9))
    assert infer_image_shape("a.npy") == expected
    assert infer_image_shape("b.npz#images") == infer_image_shape("b.npz") == expected
    Path("many").mkdir()
    for i in range(3):
        np.save(f"many/{i}.npy", np.zeros(shape[1:], np.uint8))
    assert infer_image_shape("many") == expected


def test_crop_of_the_celebrities_gives_its_size(run):
    for i in range(3):
        save(f"faces/{i}.jpg", noise(218, 178, 3))
    said = run("faces", "--crop", "celeba", "--held-out-share", "0")
    assert command_of(said)["config.image_shape"] == "(128, 128, 3)"
    assert "All are scaled to 128x128 after the celeba crop." in said


def test_few_small_images_are_named_and_left_out_by_the_command(run):
    for i in range(20):
        save(f"all/{i:02}.png", noise(64, 64, 3))
    Image.fromarray(noise(25, 14)).save("all/icon.gif")
    said = run("all", "--held-out-share", "0", code=1)
    assert 'Proposed: --config.image_shape="(64, 64, 3)"' in said
    assert "1 image cannot be used." in said
    assert "  all/icon.gif is 14x25 pixels, smaller than the 64x64 of image_shape" in said
    assert "The command leaves out images that cannot be used (data.skip_bad=True)" in said
    assert command_of(said)["config.data.skip_bad"] == "True"


def test_shape_that_most_images_fit_is_named(run, capsys):
    for i in range(9):
        save(f"all/{i}.png", noise(24, 31, 3))
    save("all/large.png", noise(64, 64, 3))
    said = run("all", "--image-shape", "64", "64", "3", "--held-out-share", "0", code=1)
    problem = "9 of 10 images do not fit image_shape=(64, 64, 3), such as those of 31x24 in 3 channels."
    assert f"{problem} Most fit with --image-shape 24 24 3." in said.splitlines()
    folder = Path("all").resolve()
    with pytest.raises(SystemExit) as stop:
        cli.run(["train", "--config=images", f"--config.data.path={folder}", "--workdir=run"])
    flags = '--config.image_shape="(24, 24, 3)" --config.model.encoder_channel_mults="(1, 2, 2, 4)"'
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"\nError: {problem} Most fit with these flags: {flags}\n"


def test_folders_that_may_be_classes_are_named(run):
    note = "The images are in 2 subfolders (cat, dog, ...). If these are classes, use them as labels with --config."
    for i in range(22):
        save(f"all/{'cat' if i < 2 else 'dog'}/{i}.png", noise(16, 16))
    settings = "--held-out-share", "0", "--image-shape", "16", "16", "1"
    assert f"{note}data.labels=folders." in run("all", *settings).splitlines()
    assert note not in run("all", *settings, "--labels", "folders")
    save("all/dog/more.png", noise(16, 16))  # eleven times as many
    assert note not in run("all", *settings)


def test_gray_images_are_named(run):
    for i in range(4):
        save(f"all/{i}.png", noise(16, 16, 1).repeat(3, axis=-1))
    note = 'All images are gray. With --config.image_shape="(16, 16, 1)", images and x_T take a third of the memory'
    settings = "--held-out-share", "0", "--image-shape", "16", "16"
    assert note in run("all", *settings, "3")
    assert note not in run("all", *settings, "1")
    image = noise(16, 16, 1).repeat(3, axis=-1)
    image[3, 5, 2] ^= 1
    save("all/3.png", image)
    assert note not in run("all", *settings, "3")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("some photos/", "some-photos"),
        (".", "here"),
        ("a.b/c.d.npz#x", "c"),
        ("a.b", "a.b"),
        ("mnist", "mnist"),
        ("/", "images"),
    ],
)
def test_run_is_named_like_its_images(path, name, tmp_path, monkeypatch):
    (tmp_path / "here" / "a.b").mkdir(parents=True)
    (tmp_path / "here" / "a.b" / "c.d.npz").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert suggest.name_of(path) == name


BAD = {
    "missing": ("nowhere", "nowhere is missing"),
    "empty": ("empty", ".*holds no image files"),
    "rank": ("photos --image-shape 32 32", "Image files hold .* not image_shape=.32, 32"),
    "few": ("photos --image-shape 32", ".*2 to 4 values, not 1"),
    "size": ("photos --image-shape 4x4 1", ".*'4x4' is not a whole number"),
    "large": (
        "photos --image-shape 99 99 3",
        r"9 of 9 images do not fit image_shape=\(99, 99, 3\), such as .* Most fit with --image-shape 32 32 3",
    ),
    "tiny": ("tiny", ".*images of 5x5, too small to propose a shape \\(the minimum is 8\\). Give --image-shape 5 5 1"),
    "crop": ("photos --crop square", ".*one of center, celeba, not square"),
    "intensity": ("photos --intensity 5", ".*LOW..HIGH, such as 0..4095"),
    "share": ("photos --held-out-share 2", ".*between 0.0 and 0.99, not 2.0"),
    "held out": ("photos --held-out nix", ".*nix is not a subfolder"),
    "labels": ("photos --labels nix.csv", "nix.csv is missing"),
    "no config": ("photos --config nix.py", "nix.py is missing"),
    "other Python": ("photos --config other.py", r"other.py is not a config \(ZeroDivisionError"),
    "other config": ("photos --config text.py", r".*must return config\.default"),
    "variant": (f"photos --config {ROOT}/configs/ffhq64.py:nix", "There is no variant nix of ffhq64"),
    "suffix": ("photos --out sheet.jpg", ".*ends in .png"),
    "taken": ("photos --out taken.png", ".*already exists"),
    "inside": ("photos --out photos/sheet.png", ".*would replace or join the images of photos"),
    "itself": ("one.png --overwrite --out one.png", ".*would replace or join the images of one.png"),
    "array": ("a.npz#nix", ".*no array nix of images. It has images"),
    "mixture": ("mixed --held-out-share 0", ".*have several types .*intensity=LOW..HIGH"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_reported_in_one_line(name, capsys):
    arguments, message = BAD[name]
    for i in range(9):
        save(f"photos/{i}.png", noise(40, 50, 3))
    Path("empty").mkdir()
    save("tiny/a.png", noise(5, 5))
    save("one.png", noise(30, 30))
    Path("taken.png").touch()
    Path("other.py").write_text("1 / 0")
    Path("text.py").write_text("def get_config():\n    return {}")
    np.savez("a.npz", images=noise(3, 8, 8))
    save("mixed/a.png", noise(20, 20))
    Image.fromarray(np.ones((20, 20), np.float32)).save("mixed/b.tif")
    share = () if "--held-out" in arguments else ("--held-out-share", "0")
    with pytest.raises(SystemExit) as stop:
        cli.run(["data", *arguments.split(), *share])
    assert stop.value.code == 2
    assert re.fullmatch(f"Error: {message}[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("size", [(103, 103), (103, 64), (107, 103)])
def test_pictures_are_scaled_where_rounding_reaches_beyond_them(size):
    image = noise(*size, 3)
    assert resize_and_crop(image, (64, 64)).shape == (64, 64, 3)
