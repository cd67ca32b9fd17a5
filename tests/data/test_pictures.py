"""Pictures: where each image is, what names say, what a difference map shows, and films."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffae_jax.data.captions import block_size, font_for, wrapped
from diffae_jax.data.pictures import (
    GAP,
    LARGEST_IMAGE,
    LARGEST_PICTURE,
    MARGIN,
    SINGLE_IMAGE,
    as_picture,
    cell_size,
    check_scale,
    difference_map,
    film,
    image_grid,
    image_rows,
    to_pil,
)
from diffae_jax.data.transforms import to_uint8
from diffae_jax.runtime.errors import UserError

SHADES = np.stack([np.full((2, 3, 1), value, np.float32) for value in (-1, 0, 1, -1, 1)])


def test_a_grid_has_its_images_in_rows_with_white_between():
    grid = np.asarray(image_grid(SHADES, scale=1))
    assert grid.shape == (2 * 2 + GAP, 3 * 3 + 2 * GAP)
    lefts, second = (0, 3 + GAP, 6 + 2 * GAP), 2 + GAP
    assert [grid[0, x] for x in lefts] == [0, 128, 255]
    assert [grid[second, x] for x in lefts[:2]] == [0, 255]
    assert (grid[2:second] == 255).all()
    assert (grid[second:, lefts[2] :] == 255).all(), "empty cells are not white"


def test_a_scale_repeats_pixels_and_leaves_the_gap():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 4, 5, 3)).astype(np.float32)
    grid = np.asarray(image_grid(image, scale=3))
    assert grid.shape == (12, 2 * 15 + GAP, 3)
    np.testing.assert_array_equal(grid[:, :15], to_uint8(image[0]).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "scale"),
    [
        ((8, 8, 1), 1, 1, SINGLE_IMAGE // 8),
        ((8, 8, 1), 2, 3, LARGEST_IMAGE // 8),
        ((8, 8, 1), 12, 20, LARGEST_PICTURE // 160),
        ((64, 64, 3), 8, 8, 1),
        ((512, 512, 3), 1, 1, 1),
    ],
)
def test_small_images_are_enlarged_to_a_limit(shape, rows, columns, scale):
    assert cell_size(shape, rows, columns) == (shape[0] * scale, shape[1] * scale)


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((4, 6, 1), "L", (6, 4)), ((4, 6, 3), "RGB", (6, 4)), ((9, 4, 6, 1), "L", (6, 4)), ((8, 2), "L", (8, 2))],
    ids=["gray", "color", "volume", "signal"],
)
def test_to_pil_shows_images_of_every_rank(shape, mode, size):
    images = np.linspace(-1, 1, 2 * np.prod(shape)).reshape(2, *shape).astype(np.float32)
    pictures = to_pil(images)
    assert [(picture.mode, picture.size) for picture in pictures] == [(mode, size)] * 2
    if len(shape) == 3:
        np.testing.assert_array_equal(np.asarray(pictures[1]).reshape(shape), to_uint8(images[1]))


def test_bytes_are_shown_as_they_are():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(np.asarray(to_pil(values)[0]), values[0, ..., 0])


def test_rows_have_their_names_at_the_left_and_columns_above():
    """Each image is where it belongs, and only the margins have text."""
    rows = {"first": SHADES[:2], "second row": SHADES[2:4]}
    picture = np.asarray(image_rows(rows, ["a", "b"], scale=30))
    height, width = 60, 90
    left, top = picture.shape[1] - 2 * width - GAP, picture.shape[0] - 2 * height - GAP
    for i, row in enumerate(rows.values()):
        for j, image in enumerate(row):
            y, x = top + i * (height + GAP), left + j * (width + GAP)
            assert (picture[y : y + height, x : x + width] == to_uint8(image)[0, 0, 0]).all()
    assert (picture[:top, :left] == 255).all(), "the corner has text"
    for y in (top, top + height + GAP):
        assert (picture[y : y + height, : left - MARGIN] < 128).any(), "a row has no name"
        assert (picture[y : y + height, left - MARGIN + 1 : left] == 255).all()
    for x in (left, left + width + GAP):
        assert (picture[: top - MARGIN + 1, x : x + width] < 128).any(), "a column has no name"
    bare = image_rows({"": SHADES[:2], " ": SHADES[2:4]}, scale=30)
    assert bare.size == (2 * width + GAP, 2 * height + GAP), "there is room for names that are empty"


def test_gray_and_color_rows_make_one_color_picture():
    color = np.zeros((2, 4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    picture = image_rows({"": color, " ": np.zeros((2, 4, 4, 1), np.uint8)}, scale=1)
    assert picture.mode == "RGB"
    assert [picture.getpixel((0, y)) for y in (0, 4 + GAP)] == [(255, 0, 0), (0, 0, 0)]


def test_a_name_for_some_columns_is_refused():
    with pytest.raises(UserError, match="3 names for 2 columns"):
        image_rows({"a": SHADES[:2]}, ["a", "b", "c"])


def test_names_are_wrapped_at_words_and_long_words_are_cut():
    font = font_for(96)
    width = font.getlength("a reconstruction")
    assert wrapped("a reconstruction of it", font, int(width) + 1) == "a reconstruction\nof it"
    assert wrapped("a\nb c", font, 500) == "a\nb c"
    cut = wrapped("reconstruction", font, 60)
    assert cut.endswith("…")
    assert "reconstruction".startswith(cut[:-1])
    assert font.getlength(cut) <= 60
    assert wrapped("reconstruction", font, 5) == ""
    assert block_size("two\nlines", font)[1] > 1.5 * block_size("one", font)[1]


@pytest.mark.parametrize("letter", list("éσжᾱ"))
def test_the_font_has_letters_beyond_ascii(letter):
    def drawn(text):
        image = Image.new("L", (30, 40))
        ImageDraw.Draw(image).text((2, 2), text, 255, font_for(96))
        return np.asarray(image)

    assert not np.array_equal(drawn(letter), drawn("\U0010fffd")), "it is the box of a missing letter"


def test_a_difference_is_gray_where_nothing_changes_and_amplified_until_it_would_clip():
    before = np.zeros((1, 2, 2, 1), np.float32)
    after = before + np.array([[0, 0.09], [-0.09, 0.045]], np.float32)[None, ..., None]
    found = difference_map(before, after)
    assert found.gain == 20  # 20 * 0.09 / 2 = 0.9
    assert found.name == "difference x20"
    np.testing.assert_allclose(found.images[0, ..., 0], [[0, 0.9], [-0.9, 0.45]], atol=1e-6)
    assert as_picture(found.images[0])[0, 0, 0] == 0.5
    assert difference_map(before, before).gain == 1
    plain = difference_map(np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2, 2, 1), 255, np.uint8))
    assert (plain.gain, plain.name) == (1, "difference")
    assert (plain.images == 1).all()
    assert (difference_map(before, after, gain=100).images[0, :, 1, 0] == 1).all(), "it must be clipped"


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_film_plays_forward_and_backward(kind):
    frames = to_pil(SHADES[[0, 1, 2]])
    with Image.open(io.BytesIO(film(frames, kind))) as read:
        assert (read.format, read.n_frames, read.info["loop"]) == (kind, 4, 0)
        shades = []
        for i in range(read.n_frames):
            read.seek(i)
            shades.append(read.convert("L").getpixel((0, 0)))
    np.testing.assert_allclose(shades, [0, 128, 255, 128], atol=1)


@pytest.mark.parametrize(
    ("scale", "images", "message"),
    [
        (0, 1, "from 1 to 64, not 0"),
        (65, 1, "from 1 to 64, not 65"),
        (64, 4, "at most 67,108,864 are possible. Use a scale of at most 16"),
    ],
)
def test_a_scale_out_of_range_is_refused(scale, images, message):
    with pytest.raises(UserError, match=message):
        check_scale(scale, (256, 256, 3), images)
    with pytest.raises(UserError, match=message):
        image_grid(np.zeros((images, 256, 256, 3), np.uint8), scale)
