"""Images of every kind are converted to the same array, and errors name the image."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.transforms import Transform, to_float
from diffae_jax.inference.inputs import as_images
from diffae_jax.runtime.errors import UserError
from tests.data_files import save_bomb

SHAPE = (6, 8, 3)
TRANSFORM = Transform(SHAPE)
BYTES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
FLOATS = to_float(BYTES)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(BYTES):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_files_folders_and_pictures_are_the_bytes_they_hold(folder):
    paths = [folder / f"{i}.png" for i in range(3)]
    for images in (folder, str(folder), paths, list(map(str, paths)), [Image.open(path) for path in paths]):
        array, notes = as_images(images, TRANSFORM)
        np.testing.assert_array_equal(array, BYTES)
        assert array.dtype == np.uint8
        assert notes == []
    for image in (paths[1], str(paths[1]), Image.open(paths[1])):
        np.testing.assert_array_equal(as_images(image, TRANSFORM)[0], BYTES[1:2])


def test_arrays_of_bytes_and_floats_and_a_single_image():
    array, notes = as_images(BYTES, TRANSFORM)
    np.testing.assert_array_equal(array, BYTES)
    assert "from 0..255 to [-1, 1]" in notes[0]
    for floats in (FLOATS, FLOATS.astype(np.float64), jnp.asarray(FLOATS), FLOATS.tolist()):
        array, notes = as_images(floats, TRANSFORM)
        np.testing.assert_array_equal(array, FLOATS)
        assert (array.dtype, notes) == (np.float32, [])
    assert as_images(jnp.asarray(FLOATS, jnp.bfloat16), TRANSFORM)[0].dtype == np.float32
    np.testing.assert_array_equal(as_images(FLOATS[0], TRANSFORM)[0], FLOATS[:1])


def test_what_loses_something_is_said(tmp_path):
    photo = Image.fromarray(BYTES[0]).resize((40, 30)).convert("RGBA")
    array, (note,) = as_images([photo, Image.fromarray(BYTES[0])], TRANSFORM)
    assert array.shape == (2, *SHAPE)
    assert note == "1 of 2 images was converted, the first (a PIL image) from 40x30 in 4 channels to 8x6 in 3 channels."
    (note,) = as_images((FLOATS + 1) / 2, TRANSFORM)[1]
    assert "use 2 * images - 1" in note


def text(path):
    path.write_text("no image")
    return path


def truncated(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    return path


def small(path):
    Image.new("L", (4, 4)).save(path)
    return path


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (FLOATS[:, :5], r"\(3, 5, 8, 3\), but the model needs \(N, \*\(6, 8, 3\)\)\. Resize"),
        (np.moveaxis(FLOATS, -1, 1), "Put the channels last with np.moveaxis"),
        (FLOATS[:0], "Give at least one image"),
        (np.float32(1), "Give at least one image"),
        (
            FLOATS * 2,
            r"3 of 3 images hold values outside \[-1, 1\] \(from -2 to 2 over all images\); the first is at index 0",
        ),
        (np.where(np.arange(3)[:, None, None, None] == 1, np.nan, FLOATS), "1 of 3 .* not finite.*at index 1"),
        (np.where(np.arange(3)[:, None, None, None] == 2, np.inf, FLOATS), "1 of 3 .* not finite.*at index 2"),
        (BYTES.astype(np.int64), "not int64"),
        (BYTES > 100, "not bool"),
        (BYTES.astype("U"), r"shape \(3, 6, 8, 3\) and hold no numbers"),
        (np.array([None] * 3, object), "needs"),
        ([FLOATS[0], FLOATS[1, :3]], "cannot be converted to one array"),
        (["x.png", 3], "One is of type int"),
        ("nowhere.png", "nowhere.png is missing. Check the path"),
        ("null\0.png", "characters that are not allowed in a path"),
        (text, "cannot be read as an image"),
        (truncated, "cannot be read as an image"),
        (save_bomb, "has 2,147,483,648 values per image. At most 1,073,741,824 can be read"),
        (small, "is 4x4 pixels, smaller than the 8x6"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),  # no addresses: workers compare the names
)
def test_what_is_no_image_is_reported_in_one_line(images, message, tmp_path):
    images = images(tmp_path / "image.png") if callable(images) else images
    with pytest.raises(UserError, match=message):
        as_images(images, TRANSFORM)


def test_files_hold_no_volumes_and_arrays_say_how_to_add_a_channel(tmp_path, folder):
    with pytest.raises(UserError, match=r"1, 3 or 4 channels.*store other shapes as arrays"):
        as_images(folder, Transform((4, 4, 4, 1)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image files"):
        as_images(tmp_path / "empty", TRANSFORM)
    with pytest.raises(UserError, match=r"images\[..., None\]"):
        as_images(np.zeros((3, 4, 4), np.float32), Transform((4, 4, 1)))
