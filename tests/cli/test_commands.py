"""Commands write the results of `DiffAE`; wrong arguments are reported before any work."""

import dataclasses
import re
import shlex
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_jax import DiffAE, cli
from diffae_jax.cli import inputs, outputs
from diffae_jax.cli.info import describe
from diffae_jax.data.detect import open_images
from diffae_jax.data.pictures import difference_map, image_grid, image_rows, to_pil
from diffae_jax.data.sources import TransformedSource
from diffae_jax.data.transforms import Transform, to_float
from diffae_jax.diffusion.samplers import SAMPLERS
from diffae_jax.evaluation.metrics import mse
from diffae_jax.inference.encode_dataset import open_for
from tests.environment import ROOT, environment
from tests.random_models import random_model

NAMES = ["a/one.png", "a/é.png", "b.png", "c.png", "d.png"]


@pytest.fixture(scope="module")
def bundle(one_device, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bundle"
    random_model(one_device, seed=2).save(path)
    return path


@pytest.fixture(scope="module")
def model(bundle):
    return DiffAE.load(bundle)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: photos/ with five images, the last of them large and colored."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in NAMES:
        size = (30, 20, 3) if name == "d.png" else (8, 8)
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(Path("photos", name))
    return tmp_path


def images_of(path="photos"):
    source = TransformedSource(open_images(path, (8, 8, 1)).source, Transform((8, 8, 1)))
    return np.stack([source[i] for i in range(len(source))])


def files_below(path):
    return sorted(str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())


@pytest.fixture
def my_sampler(folder, monkeypatch):
    """A module that registers the sampler `mine`."""
    monkeypatch.syspath_prepend(str(folder))
    Path("my_sampler.py").write_text(
        "from diffae_jax.diffusion import samplers\nsamplers.SAMPLERS['mine'] = samplers.DDIM\n"
    )
    yield "my_sampler"
    SAMPLERS.pop("mine", None)
    sys.modules.pop("my_sampler", None)


def test_a_sampler_of_an_imported_module_is_accepted(bundle, my_sampler, capsys):
    arguments = ["sample", str(bundle), "--num", "2", "--steps", "2", "--latent-steps", "2", "--sampler"]
    for end in ([], ["--import"]):
        with pytest.raises(SystemExit):
            cli.run([*arguments, "mine", "--out", "mine.npy", *end])
    assert "There is no sampler mine" in capsys.readouterr().err
    cli.run([*arguments, "mine", "--import", my_sampler, "--out", "mine.npy"])
    cli.run([*arguments, "ddim", "--out", "ddim.npy"])
    np.testing.assert_array_equal(np.load("mine.npy"), np.load("ddim.npy"))


def assert_pictures(path, names, images):
    """Whether the files hold these images, pixel for pixel."""
    assert files_below(path) == sorted(names)
    for name, picture in zip(names, to_pil(images), strict=True):
        with Image.open(Path(path, name)) as file:
            np.testing.assert_array_equal(np.asarray(file), np.asarray(picture))


def assert_film(path, expected):
    """Whether a GIF has these frames, as far as its few colors allow."""
    with Image.open(path) as film:
        assert (film.n_frames, film.info["loop"]) == (len(expected), 0)
        for i, frame in enumerate(expected):
            film.seek(i)
            found = np.asarray(film.convert(frame.mode)).astype(int)
            assert np.abs(found - np.asarray(frame)).max() <= 2


def assert_picture(path, expected):
    with Image.open(path) as file:
        np.testing.assert_array_equal(np.asarray(file), np.asarray(expected))


def test_info_describes_the_model(bundle, capsys):
    cli.run(["info", str(bundle)])
    said = capsys.readouterr().out
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    for text in (
        "tiny: a diffusion autoencoder for images of 8x8x1",
        "z: 8 dimensions",
        "prior (latent DDIM): yes",
        "statistics of z: yes",
        "made: here",
        "hair/color é",
        f"on disk: {size / 1e3:.3g} kB",
    ):
        assert text in said, text
    counts = [int(count.replace(",", "")) for count in re.findall(r"parameters of the .*: ([\d,]+)", said)]
    assert 4 * sum(counts) == pytest.approx((bundle / "weights.safetensors").stat().st_size, rel=0.05)


def test_encode_takes_a_folder_a_file_and_the_digits(bundle, model, folder):
    for images, ids in (("photos", NAMES), ("photos/b.png", ["b.png"]), ("digits", None)):
        cli.run(["encode", str(bundle), images, "--out", "new/z.npz", "--overwrite"])
        with np.load("new/z.npz") as arrays:
            assert ids is None or arrays["ids"].tolist() == ids
            np.testing.assert_allclose(arrays["z"], model.encode(images_of(images)), atol=1e-5)
    assert files_below("new") == ["z.npz"]


@pytest.mark.parametrize("random", [[], ["--random-x-T", "--seed", "3"]], ids=["inferred", "random"])
def test_reconstruct_writes_each_image_under_its_name(bundle, model, folder, capsys, random):
    cli.run(["reconstruct", str(bundle), "photos", "--steps", "3", "--out", "new/again", *random])
    images = images_of()
    expected = model.reconstruct(images, 3, not random, 3)
    assert_pictures("new/again", NAMES, expected)
    error = mse(expected, to_float(images)).mean()
    kind = "random" if random else "inferred"
    assert f"5 images, 3 steps, {kind} x_T: MSE {error:.2e}" in capsys.readouterr().out


def test_reconstruct_writes_one_picture_with_inputs_and_differences(bundle, model, folder):
    cli.run(["reconstruct", str(bundle), "photos", "--steps", "3", "--scale", "2", "--out", "again.png"])
    images = to_float(images_of())
    decoded = model.reconstruct(images, 3)
    difference = difference_map(images, decoded)
    rows = {name: np.stack(row) for name, *row in zip(NAMES, images, decoded, difference.images, strict=True)}
    assert_picture("again.png", image_rows(rows, ["input", "inferred x_T", difference.name], 2))


def test_images_of_one_name_keep_their_own(bundle, model, folder):
    with Image.open("photos/b.png") as image:
        image.save("photos/b.bmp")
    cli.run(["reconstruct", str(bundle), "photos", "--steps", "2", "--out", "again"])
    assert files_below("again") == sorted({*NAMES, "b.bmp.png", "b.png.png"} - {"b.png"})


def test_interpolate_writes_frames_a_strip_and_a_film_there_and_back(bundle, model, folder):
    pair = "photos/b.png", "photos/c.png"
    frames = model.interpolate(*map(images_of, pair), 4, 3)
    for out in ("frames", "morph.png", "morph.gif"):
        cli.run(["interpolate", str(bundle), *pair, "--frames", "4", "--steps", "3", "--out", out])
    assert_pictures("frames", [f"frame-{i:03d}.png" for i in range(4)], frames)
    assert_picture("morph.png", image_rows({"": frames}, ["0.00", "0.33", "0.67", "1.00"]))
    assert_film("morph.gif", [image_grid(frames[i : i + 1]) for i in (0, 1, 2, 3, 2, 1)])


def test_edit_writes_a_folder_or_one_picture(bundle, model, folder):
    probe = ["--probe", "hair/color é", "--strength", "-0.5", "--steps", "3"]
    expected = model.edit(images_of(), "hair/color é", -0.5, 3)
    cli.run(["edit", str(bundle), "photos", *probe, "--out", "edited"])
    assert_pictures("edited", NAMES, expected)
    cli.run(["edit", str(bundle), "photos", *probe, "--out", "grid.png"])
    assert_picture("grid.png", image_grid(expected))
    cli.run(["edit", str(bundle), "photos/b.png", *probe, "--out", "one/b.png"])
    one = model.edit(images_of("photos/b.png"), "hair/color é", -0.5, 3)
    assert_pictures("one", ["b.png"], one)


def test_edit_with_several_strengths_writes_rows_or_a_film(bundle, model, folder):
    edit = ["edit", str(bundle), "photos", "--probe", "hair/color é", "--steps", "3", "--strength", "-0.5", "0", "1"]
    images = to_float(images_of())
    edited = [model.edit(images, "hair/color é", strength, 3) for strength in (-0.5, 0.0, 1.0)]
    cli.run([*edit, "--out", "edits.png"])
    rows = {name: np.stack(row) for name, *row in zip(NAMES, images, *edited, strict=True)}
    columns = ["input", *(f"hair/color é\n{strength}" for strength in ("-0.5", "+0", "+1"))]
    assert_picture("edits.png", image_rows(rows, columns))
    cli.run([*edit, "--scale", "4", "--out", "edits.gif"])
    assert_film("edits.gif", [image_grid(edited[i], 4) for i in (0, 1, 2, 1)])


def test_sample_writes_a_grid_or_a_folder(bundle, model, folder):
    settings = ["--num", "4", "--steps", "3", "--latent-steps", "2", "--seed", "7"]
    expected = model.sample(4, 7, 3, 2)
    cli.run(["sample", str(bundle), *settings, "--out", "grid.png"])
    assert_picture("grid.png", image_grid(expected))
    cli.run(["sample", str(bundle), *settings, "--scale", "3", "--out", "large.png"])
    assert_picture("large.png", image_grid(expected, 3))
    cli.run(["sample", str(bundle), *settings, "--out", "samples"])
    assert_pictures("samples", [f"sample-{i:05d}.png" for i in range(4)], expected)
    for negative in ([], ["--negative"]):
        cli.run(["sample", str(bundle), *settings, "--probe", "hair/color é", *negative, "--out", f"some{negative}"])
        some = model.sample_class(4, "hair/color é", not negative, 7, 3, 2)
        assert_pictures(f"some{negative}", [f"sample-{i:05d}.png" for i in range(4)], some)


@pytest.fixture
def labeled(folder):
    """40 images, of which the even ones are bright, and the brightness of most as a table."""
    Path("faces").mkdir()
    rng, lines = np.random.default_rng(0), ["image,bright,level"]
    for i in range(40):
        level = 60 + 2 * i + 60 * (i % 2 == 0)
        Image.fromarray(rng.normal(level, 5, (8, 8)).clip(0, 255).astype(np.uint8)).save(f"faces/{i:02d}.png")
        lines.append(f"{i:02d}.png,{'yes' if i % 2 == 0 else 'no'},{level + 0.5 if i else ''}")
    Path("labels.csv").write_text("\n".join([*lines, "99.png,yes,1", ""]))
    return folder


def test_probe_fits_writes_and_reads(bundle, model, labeled, capsys):
    cli.run(["probe", str(bundle), "faces", "--labels", "labels.csv", "--out", "probed"])
    said = capsys.readouterr()
    assert "1 rows of labels.csv match no image (99.png)" in said.err
    assert "bright: binary, positive is 'yes', AUROC" in said.err
    cli.run(["probe", "probed", "faces", "--out", "readings.csv"])
    header, *rows = [line.split(",") for line in Path("readings.csv").read_text().splitlines()]
    probed = DiffAE.load("probed")
    assert header == ["id", *probed.probes]
    assert set(header) == {"id", "hair/color é", "bright", "level"}
    assert [row[0] for row in rows] == [f"{i:02d}.png" for i in range(40)]
    z = model.encode(images_of("faces"))
    for column, name in enumerate(header[1:], 1):
        np.testing.assert_allclose([float(row[column]) for row in rows], probed.predict(z, name), rtol=1e-4, atol=1e-5)
    table = [line.split(",") for line in Path("labels.csv").read_text().split()]
    Path("swapped.csv").write_text("\n".join(f"{level},{image},{bright}" for image, bright, level in table))
    cli.run(["probe", str(bundle), "faces", "--labels", "swapped.csv", "--column", "level", "--out", "swapped"])
    assert "Note: The names of the images are in the column image of swapped.csv." in capsys.readouterr().err
    np.testing.assert_array_equal(DiffAE.load("swapped").probes["level"].weights, probed.probes["level"].weights)
    for out in ("probed", "other"):  # a bundle in its own place needs no leave
        cli.run(["probe", "probed", "faces", "--labels", "labels.csv", "--column", "level", "--out", out])
        assert set(DiffAE.load(out).probes) == set(probed.probes)
    capsys.readouterr()
    cli.run(["info", "probed"])
    assert "probe level: continuous, R^2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.run(["probe", str(bundle), "faces", "--labels", "labels.csv", "--out", "probed"])
    assert "probed already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("edit BUNDLE faces --probe Age --strength 1 --out new", "no probe Age"),
        ("edit BUNDLE faces --probe 'hair/color é' --to 1.5 --out new", "between 0 and 1, not 1.5"),
        ("edit BUNDLE faces --probe 'hair/color é' --strength 1 --out new.png", "at most 3 images, not 40"),
        ("edit BUNDLE faces --probe 'hair/color é' --strength 0 1 --out new", "ends in .png or .gif"),
        ("sample BUNDLE --num 4 --out new.png", "at most 3 images, not 4. Use a folder"),
        ("sample BUNDLE --num 2 --out new --scale 2", "--scale is for a .png or a .gif, and new is neither"),
        ("reconstruct BUNDLE faces --out new.png", "at most 3 images, not 120"),
        ("probe BUNDLE faces --labels same.csv --out new", "must have at least two different values, but all 40 are 1"),
        ("probe BUNDLE faces --labels labels.csv --positive-unlabeled --out new", "those of bright are text: no, yes"),
    ],
)
def test_mistake_is_reported_before_images_are_read(bundle, labeled, capsys, monkeypatch, arguments, message):
    lines = [f"{i:02d}.png,1" for i in range(40)]
    Path("same.csv").write_text("\n".join(["image,same", *lines, ""]))
    monkeypatch.setattr(outputs, "MAX_IMAGES_IN_PNG", 3)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(SystemExit):
        cli.run([{"BUNDLE": str(bundle)}.get(word, word) for word in shlex.split(arguments)])
    assert message in capsys.readouterr().err
    assert not list(Path().glob("new*"))


def test_probe_called_id_has_a_column_of_its_own(bundle, labeled):
    probed = DiffAE.load(bundle)
    for name in ("id", "id_"):
        probed.probes[name] = dataclasses.replace(probed.probes["hair/color é"], name=name)
    probed.save("probed")
    cli.run(["probe", "probed", "faces", "--out", "readings.csv"])
    header = Path("readings.csv").read_text().splitlines()[0].split(",")
    assert header[0] == "id__"
    assert len(set(header)) == 4


def test_images_are_given_as_paths_or_bytes_and_grids_are_made_of_bytes(model, folder):
    assert inputs.images_of(open_for(model, "photos")) == [Path("photos", name) for name in NAMES]
    assert inputs.images_of(open_for(model, "digits")).dtype == np.uint8
    images = np.zeros((64, 128, 128, 3), np.float32)
    tracemalloc.start()
    image_grid(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * images.size


def test_home_is_found_where_the_shell_does_not(bundle, model, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    cli.run(["encode", str(bundle), "~/photos", "--out=~/z.npz"])
    with np.load(folder / "z.npz") as found:
        np.testing.assert_allclose(found["z"], model.encode("photos"), atol=1e-5)
    assert not Path("~").exists()


def test_folders_may_have_a_dot_in_their_name(bundle, folder):
    cli.run(["sample", str(bundle), "--num", "1", "--steps", "1", "--latent-steps", "1", "--out", "v1.0"])
    assert files_below("v1.0") == ["sample-00000.png"]


def test_info_on_a_baseline_does_not_mention_z(bundle):
    model = DiffAE.load(bundle)
    model.statistics, model.prior, model.probes, model.config.model.z_dim = None, None, {}, None
    said = describe(model)
    assert "a DDIM baseline" in said
    assert "latent DDIM" not in said
    assert "statistics" not in said


def bomb(path):
    """Writes an image whose header speaks of more pixels than memory has."""
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


BAD = {
    "no command": ("", "required: COMMAND"),
    "no such command": ("paint", "invalid choice: 'paint'"),
    "no out": ("encode BUNDLE photos", "required: --out"),
    "no model": ("info nothing", "nothing is neither a path nor a shipped model: .*digits"),
    "model that is none": ("info photos", "neither a bundle nor"),
    "no images": ("encode BUNDLE nothing --out z.npz", "nothing is missing"),
    "no images in it": ("encode BUNDLE empty --out z.npz", "empty holds no image files"),
    "text": ("encode BUNDLE bad/text.png --out z.npz", r"text\.png cannot be read as an image"),
    "small": ("reconstruct BUNDLE bad/small.png --out new", r"small\.png is 7x9 pixels, smaller than the 8x8"),
    "bomb": ("reconstruct BUNDLE bad/bomb.png --out new", r"bomb\.png has 3,600,000,000 values per image"),
    "bomb in a folder": ("encode BUNDLE bad --out z.npz", r"bomb\.png has 3,600,000,000 values per image"),
    "no z format": (
        "encode BUNDLE photos --out z.csv",
        r"type of z\.csv is not supported here\. Use .*\.npz or \.parquet",
    ),
    "no picture format": (
        "sample BUNDLE --out new.jpg",
        r"type of new\.jpg is not supported here\. Use .* \.png or \.npy or a folder",
    ),
    "place of the system": ("sample BUNDLE --out /proc/new/a.png", r"/proc/new/a\.png cannot be written"),
    "place in a file": ("sample BUNDLE --out photos/b.png/a.png", "cannot be written"),
    "taken file": ("sample BUNDLE --out photos/b.png", r"photos/b\.png already exists"),
    "taken folder": ("reconstruct BUNDLE photos --out photos", "photos already exists"),
    "over an image": ("edit BUNDLE photos/b.png --probe PROBE --to 0.5 --out photos/b.png --overwrite", "never overwr"),
    "over images": ("reconstruct BUNDLE photos --out photos --overwrite", "never overwritten"),
    "over a linked image": ("reconstruct BUNDLE photos --out linked --overwrite", "never overwritten"),
    "over an end": ("interpolate BUNDLE photos/b.png photos/c.png --out photos/c.png --overwrite", "never overwr"),
    "no steps": ("sample BUNDLE --steps 0 --out a.png", "1 to 1000 steps, not 0"),
    "many steps": ("reconstruct BUNDLE photos --steps 1001 --out new", "1 to 1000 steps, not 1001"),
    "latent steps": ("sample BUNDLE --latent-steps -1 --out a.png", "1 to 1000 steps, not -1"),
    "text for steps": ("sample BUNDLE --steps many --out a.png", "'many' is not a whole number"),
    "half steps": ("sample BUNDLE --steps 1.5 --out a.png", "'1.5' is not a whole number"),
    "no number": ("sample BUNDLE --num 0 --out a.png", "from 1 to 100,000, not 0"),
    "seed": ("sample BUNDLE --seed -1 --out a.png", "seed must be a whole number between"),
    "one frame": ("interpolate BUNDLE photos/b.png photos/c.png --frames 1 --out a.gif", "from 2 to 1,000, not 1"),
    "many ends": ("interpolate BUNDLE photos photos/c.png --out a.gif", "photos holds 5 images. Give the file"),
    "no strength": ("edit BUNDLE photos --probe P --out new", "one of the arguments --strength --to is required"),
    "both": ("edit BUNDLE photos --probe P --strength 1 --to 0.5 --out new", "not allowed with argument"),
    "text for strength": ("edit BUNDLE photos --probe P --strength nan --out new", "'nan' is not a finite number"),
    "no prior": ("sample PLAIN --out a.png", "has no prior"),
    "negative of nothing": ("sample BUNDLE --negative --out a.png", "--negative needs --probe"),
    "video": ("interpolate BUNDLE photos/b.png photos/c.png --out a.mp4", "type of a.mp4 is not supported here. Use"),
    "existing bundle": ("import x.ckpt --out BUNDLE", "already exists. Use another path or --overwrite"),
    "no such probe": ("edit BUNDLE photos --probe Age --strength 1 --out new", "Age. Choose one of hair/color é"),
    "no such class": ("sample BUNDLE --probe Age --out new", "no probe Age. Choose one of hair/color é"),
    "beyond certainty": ("edit BUNDLE photos --probe 'hair/color é' --to 1.5 --out new", "between 0 and 1, not 1.5"),
    "no labels": ("probe BUNDLE photos --labels nothing.csv --out new", "nothing.csv is missing"),
    "image for labels": ("probe BUNDLE photos --labels photos/b.png --out new", r"b\.png is not UTF-8 text"),
    "no such column": ("probe BUNDLE photos --labels labels.csv --column age --out new", "no labels age. It has smile"),
    "labels of others": ("probe BUNDLE photos/b.png --labels others.csv --out new", "1 names in the table"),
    "label of one value": ("probe BUNDLE photos/b.png --labels labels.csv --out new", "at least two different values"),
    "over a folder": ("probe BUNDLE photos --labels labels.csv --out photos --overwrite", "is not a bundle"),
    "no probes": ("probe PLAIN photos --out new.csv", "has no probes to predict with"),
    "no such names": ("probe BUNDLE photos --labels labels.csv --id-column a --out new", "no column a. Its columns"),
    "names of nothing": ("probe BUNDLE photos --id-column age --out new.csv", "need --labels"),
    "column of nothing": ("probe BUNDLE photos --column age --out new.csv", "need --labels"),
    "image size": ("import x.ckpt --image-size big --out new", "'big' is not a whole number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(bundle, tmp_path_factory):
    """A bundle without a prior."""
    model, path = DiffAE.load(bundle), tmp_path_factory.mktemp("plain") / "bundle"
    model.prior, model.probes = None, {}
    model.save(path)
    return path


@pytest.mark.parametrize("name", BAD)
def test_mistake_is_reported_in_one_line_and_nothing_is_written(bundle, plain, folder, capsys, name):
    arguments, message = BAD[name]
    for name in ("empty", "bad", "linked"):
        Path(name).mkdir()
    Path("bad/text.png").write_text("no image")
    Image.new("L", (7, 9)).save("bad/small.png")
    bomb(Path("bad/bomb.png"))
    Path("linked/c.png").symlink_to(Path("photos/c.png").absolute())
    Path("labels.csv").write_text("image,smile\nb.png,1\nc.png,0\n")
    Path("others.csv").write_text("image,smile\nx.png,1\n")
    made = {*Path().iterdir()}
    before = {path: path.read_bytes() for path in map(Path, files_below("."))}
    words = {"BUNDLE": str(bundle), "PLAIN": str(plain), "PROBE": "hair/color é"}
    with pytest.raises(SystemExit) as stop:
        cli.run([words.get(word, word) for word in shlex.split(arguments)])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"(Note: .*\n)*Error: [^\n]*" + message + r"[^\n]*\n", said.err), said.err
    assert said.out == ""
    assert {path: path.read_bytes() for path in map(Path, files_below("."))} == before
    assert {*Path().iterdir()} == made


def shell(*arguments):
    return [sys.executable, "-m", "diffae_jax.cli", *map(str, arguments)]


SETTINGS = dict(
    cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
)  # fmt: skip


@pytest.mark.parametrize(
    "command", ["data", "info", "encode", "reconstruct", "interpolate", "edit", "sample", "probe", "import"]
)
def test_help_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run([command, "--help"])
    assert stop.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].replace("\\\n", "").splitlines()
    assert examples
    for example in examples:
        diffae, *arguments = example.split()
        assert (diffae, arguments[0]) == ("diffae", command)
        cli.parser().parse_args(arguments)


def test_process_ends_with_2_after_a_mistake(bundle, tmp_path):
    done = subprocess.run(shell("sample", bundle, "--steps", "0", "--out", tmp_path / "a.png"), **SETTINGS)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"Error: [^\n]*1 to 1000 steps, not 0[^\n]*\n", done.stderr)


def test_interrupted_command_ends_soon_with_one_line(bundle, tmp_path):
    # 100,000 images in 1,000 steps take hours
    process = subprocess.Popen(
        shell("sample", bundle, "--num", "100000", "--steps", "1000", "--out", tmp_path / "new"), **SETTINGS
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(12)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 143
    assert said == "\nSIGTERM: stopped before the result was complete. Run the same command again.\n"
    assert not list(tmp_path.iterdir())
