"""Files that Pillow reads: large ones, and animated ones."""

import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.pillow import open_picture
from diffae_jax.data.inspect.animated import notes_on_frames
from diffae_jax.data.inspect.infer_shape import infer_image_shape
from diffae_jax.data.sources import Subset
from diffae_jax.runtime.errors import UserError
from tests.data_files import make_npy, noise, png, save_bomb

FRAMES = [Image.fromarray(noise(8, 10, 3, seed=i)) for i in range(3)]


def test_panoramas_are_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit, here a low one
    image = noise(80, 300, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(open_images(tmp_path, (64, 64, 3)).source[0], image)
        assert infer_image_shape(tmp_path) == (80, 80, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_limit_of_pillow_returns_when_the_last_thread_has_read(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(noise(8, 8)))
    limit, inside, leave = Image.MAX_IMAGE_PIXELS, threading.Event(), threading.Event()

    def hold():
        with open_picture(tmp_path / "0.png", "0.png"):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(60)
    with open_picture(tmp_path / "1.png", "1.png"):
        pass
    assert Image.MAX_IMAGE_PIXELS is None  # the other thread still reads
    leave.set()
    thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS
    save_bomb(tmp_path / "bomb.png")
    with (
        pytest.raises(UserError, match="bomb has 2,147,483,648 values"),
        open_picture(tmp_path / "bomb.png", "bomb"),
    ):
        pass
    assert limit == Image.MAX_IMAGE_PIXELS


def save_animation(path):
    settings = {"lossless": True} if path.suffix == ".webp" else {}
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], duration=100, **settings)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_files_are_counted_and_give_their_first_frame(tmp_path, suffix):
    for i in range(3):
        FRAMES[i].save(tmp_path / f"still-{i}.{suffix}")
    source = open_images(tmp_path, (8, 8, 3)).source
    assert notes_on_frames(source) == []
    save_animation(tmp_path / f"a.{suffix}")
    source = open_images(tmp_path, (8, 8, 3)).source
    assert notes_on_frames(source) == [f"1 file is animated (a.{suffix}). Only the first frame is used."]
    if suffix != "gif":  # which has a palette
        np.testing.assert_array_equal(source[0], FRAMES[0])
    save_animation(tmp_path / f"b.{suffix}")
    (tmp_path / f"c.{suffix}").write_bytes(b"junk")
    source = open_images(tmp_path, (8, 8, 3)).source
    assert notes_on_frames(Subset(source, np.arange(3))) == [
        f"2 files are animated (a.{suffix}, b.{suffix}). Only the first frame is used."
    ]


def test_arrays_have_no_frames(tmp_path):
    source = open_images(make_npy(tmp_path, noise(3, 8, 8, 3)), (8, 8, 3)).source
    assert notes_on_frames(source) == []
