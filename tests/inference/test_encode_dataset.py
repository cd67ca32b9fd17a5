"""z of a data set as one file: order, formats, and work that resumes after a kill."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.sources import Arrays
from diffae_jax.data.transforms import to_float
from diffae_jax.inference import encode_dataset as encoding
from diffae_jax.inference.encode_dataset import encode_dataset, latents, open_for
from diffae_jax.runtime.errors import UserError
from tests.processes import Forked
from tests.random_models import random_model
from tests.runs import finish


@pytest.fixture(scope="module")
def model(one_device):
    return random_model(one_device)


@pytest.fixture(scope="module")
def source():
    """2,500 images in three parts, with labels."""
    images = np.random.default_rng(0).integers(0, 256, (2500, 8, 8, 1), np.uint8)
    return Arrays(images, [f"é/{i}" for i in range(2500)], {"digit": np.arange(2500) % 10})


def test_file_holds_z_of_every_image_in_order(model, source, tmp_path):
    encode_dataset(model, source, tmp_path / "new" / "z.npz")
    with np.load(tmp_path / "new" / "z.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == source.ids
        np.testing.assert_array_equal(arrays["digit"], source.labels["digit"])
        np.testing.assert_allclose(arrays["z"], model.encode(to_float(source.images)), atol=1e-5)
        assert arrays["z"].dtype == np.float32
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "z.npz"]


def test_parquet_is_the_npz_as_a_table(model, source, tmp_path):
    for name in ("z.npz", "z.parquet"):
        encode_dataset(model, source, tmp_path / name)
    table = pyarrow.parquet.read_table(tmp_path / "z.parquet")
    assert table.column_names == ["id", "digit", *(f"z_{i:03d}" for i in range(8))]
    with np.load(tmp_path / "z.npz") as arrays:
        assert table["id"].to_pylist() == arrays["ids"].tolist()
        assert table["digit"].to_pylist() == arrays["digit"].tolist()
        z = np.stack([table[f"z_{i:03d}"].to_numpy() for i in range(8)], axis=1)
        np.testing.assert_array_equal(z, arrays["z"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["z.npz", "z.parquet"]


def stopped(model, source, out):
    """Leaves the parts of a work that an image at the end put an end to."""

    class Bad(Arrays):
        def __getitem__(self, index):
            if index == 2400:
                raise UserError("stopped here")
            return self.images[index]

    with pytest.raises(UserError, match="stopped here"):
        encode_dataset(model, Bad(source.images, source.ids, source.labels), out)
    assert not out.exists()
    assert len(list(out.with_name(f"{out.name}.chunks").glob("*.npz"))) == 2


def test_what_is_done_is_not_done_again(model, source, tmp_path, capsys):
    out = tmp_path / "z.npz"
    stopped(model, source, out)
    capsys.readouterr()
    encode_dataset(model, source, out)
    assert "2,500 images, z of 8 dimensions; 452 images to go." in capsys.readouterr().out
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["z"], model.encode(to_float(source.images)), atol=1e-5)


def test_parts_of_something_else_are_refused(model, source, tmp_path, one_device):
    out = tmp_path / "z.npz"
    stopped(model, source, out)
    with pytest.raises(UserError, match=r"z\.npz\.chunks holds z of another model\. Remove that folder"):
        encode_dataset(random_model(one_device, seed=1), source, out)
    for images, ids in ((source.images[:-1], source.ids[:-1]), (255 - source.images, source.ids)):
        with pytest.raises(UserError, match=r"z\.npz\.chunks holds z of other images\. Remove that folder"):
            encode_dataset(model, Arrays(images, ids), out)
    (tmp_path / "z.npz.chunks" / "inputs.json").unlink()
    with pytest.raises(UserError, match=r"has no inputs\.json"):
        encode_dataset(model, source, out)


def test_broken_image_is_met_before_the_first_part(model, tmp_path):
    for i in range(1200):
        Image.new("L", (8, 8), i % 256).save(tmp_path / f"{i:04d}.png")
    content = (tmp_path / "1199.png").read_bytes()
    (tmp_path / "1199.png").write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"1199\.png cannot be read as an image"):
        encode_dataset(model, open_for(model, tmp_path), tmp_path / "z.npz")
    assert not list(tmp_path.glob("z.npz*"))


def test_images_are_a_folder_a_file_or_the_digits(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (8, 8), 7).save(tmp_path / "a" / "b.png")
    for path, ids in ((tmp_path, ["a/b.png"]), (tmp_path / "a" / "b.png", ["b.png"])):
        source = open_images(path, (8, 8, 1)).source
        assert source.ids == ids
        np.testing.assert_array_equal(source[0], np.full((8, 8, 1), 7))
    digits = open_images("digits", (8, 8, 1)).source
    assert (len(digits), digits.ids[-1], len(digits.labels["digit"])) == (1797, "digit-1796", 1797)
    for path, shape, message in (
        (tmp_path / "no", (8, 8, 1), "no is missing"),
        ("digits", (16, 16, 1), r"digits have image_shape=\(8, 8, 1\), not \(16, 16, 1\)"),
        (tmp_path / "a" / "b.png", (8, 8, 2), "1, 3 or 4 channels"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(path, shape)


def test_latents_are_z_of_every_image_a_few_read_at_a_time(model, source, tmp_path, monkeypatch):
    ranges = []
    make = encoding.encoder
    monkeypatch.setattr(
        encoding,
        "encoder",
        lambda *settings: lambda source, *at: ranges.append(at) or make(*settings)(source, *at),
    )
    np.testing.assert_allclose(latents(model, source), model.encode(to_float(source.images)), atol=1e-5)
    assert ranges == [(0, 1024), (1024, 2048), (2048, 2500)]
    Path(tmp_path, "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"bad\.png cannot be read as an image"):
        latents(model, open_for(model, tmp_path))
    assert len(ranges) == 3


def test_names_that_are_not_utf8_are_refused(tmp_path):
    bad = Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"\xff.png"))
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    bad.write_bytes((tmp_path / "good.png").read_bytes())
    for path, count in ((tmp_path, "1 of 2"), (bad, "1 of 1")):
        with pytest.raises(UserError, match=rf"{count} images? has a name not in UTF-8 \(x\\udcff\.png\)\. Rename"):
            open_images(path, (8, 8, 1))


@pytest.mark.alone
def test_killed_twice_it_writes_what_it_would_have_written(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6000, 8, 8, 1), np.uint8)
    photos, out, parts = tmp_path / "photos", tmp_path / "z.npz", tmp_path / "z.npz.chunks"
    ids = [f"{i % 7}/{i:05d}.png" for i in range(len(images))]
    for folder in range(7):
        (photos / str(folder)).mkdir(parents=True)
    for name, image in zip(ids, images, strict=True):
        Image.fromarray(image[..., 0]).save(photos / name, compress_level=0)
    model.save(tmp_path / "bundle")
    command = "diffae_jax.cli:run", ["encode", tmp_path / "bundle", photos, "--out", out]
    done, dice = 0, random.Random()
    for _ in range(2):
        process = Forked(*command)
        while (now := len(list(parts.glob("images-*.npz")))) <= done and process.is_running():
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.output
        assert now >= 1
        assert not out.exists()
        done = len(list(parts.glob("images-*.npz")))
        assert now <= done < 6
    output = finish(Forked(*command))
    assert f"6,000 images, z of 8 dimensions; {6000 - done * 1024:,} images to go." in output
    assert not parts.exists()
    order = np.argsort(ids)
    with np.load(out) as arrays:
        assert arrays["ids"].tolist() == sorted(ids)
        np.testing.assert_allclose(arrays["z"], model.encode(to_float(images[order])), atol=1e-5)
