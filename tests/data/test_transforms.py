"""Transforms against Pillow and formulas: size, crop, channels, bits and intensity."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffae_jax.data.transforms import (
    PIL_MODES,
    Transform,
    cut_out,
    likely_range,
    resize_and_crop,
    to_8_bits,
    with_channels,
)
from diffae_jax.runtime.errors import UserError
from tests.data_files import noise
from tests.messages import assert_is_one_sentence


def is_refused(call, message):
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert_is_one_sentence(refusal.value)


# --- size ----------------------------------------------------------------------------------------


def sizes(count):
    """Yields sizes before and after scaling. Some are multiples of each other."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = rng.integers(1, 40, 2)
        yield tuple((rng.integers(1, 4, 2) * (height, width) + rng.integers(0, 9, 2)).tolist()), (height, width)


@pytest.mark.parametrize("channels", PIL_MODES)
def test_pictures_are_those_of_pillow(channels):
    for (height, width), size in sizes(150):
        image = noise(height, width, channels)
        whole = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
        expected = ImageOps.fit(whole, (size[1], size[0]), Image.Resampling.LANCZOS)
        found = resize_and_crop(image, tuple(map(int, size)))
        np.testing.assert_array_equal(found, np.asarray(expected).reshape(*size, channels), str((image.shape, size)))


def lanczos(x):
    return np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def weights(size, have, start, length):
    """Returns the Lanczos filter with three lobes as a float64 matrix [size, have]."""
    scale = length / size
    centers = start + (np.arange(size) + 0.5) * scale
    found = lanczos((np.arange(have) + 0.5 - centers[:, None]) / max(scale, 1))
    return found / found.sum(1, keepdims=True)


def resized(image, size, finish=lambda values: values):
    """Scales until the size is covered, about the center, the last axis first, in float64."""
    result = image.astype(np.float64)
    scale = min(have / want for have, want in zip(image.shape, size, strict=False))
    for axis, want in reversed([*enumerate(size)]):
        have, length = image.shape[axis], want * scale
        matrix = weights(want, have, (have - length) / 2, length)
        result = finish(np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis))
    return result


def to_bytes(values):
    return np.clip(np.round(values), 0, 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((50, 1), (16,)),
        ((33, 5), (32,)),
        ((20, 30, 2), (16, 16)),
        ((37, 23, 1), (9, 16)),
        ((64, 64, 3), (16, 16)),
        ((16, 20, 12, 1), (8, 8, 8)),
        ((9, 8, 8, 2), (8, 8, 8)),
        ((40, 10, 11, 1), (8, 8, 8)),
        ((4, 4, 1), (9, 7)),  # larger, which prepared images never are
    ],
    ids=str,
)
def test_images_of_any_rank_are_those_of_the_filter(shape, size, dtype):
    image = noise(*shape, dtype=dtype)
    found = resize_and_crop(image, size)
    assert found.shape == (*size, shape[-1])
    if dtype == np.uint8:
        assert found.dtype == np.uint8
        by_pillow = len(size) == 2 and shape[-1] in PIL_MODES  # it keeps bytes between the axes
        expected = resized(image, size, to_bytes) if by_pillow else to_bytes(resized(image, size))
        np.testing.assert_allclose(found, expected, atol=1)  # its products are in fixed point
    else:
        expected = resized(image, size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_fine_stripes_become_gray_and_not_stripes():
    stripes = np.tile(np.float32([0, 1]), 32)[:, None] * np.ones((1, 64, 1), np.float32).reshape(1, 64)
    found = resize_and_crop(stripes[..., None], (12, 12))
    np.testing.assert_allclose(found[2:-2], 0.5, atol=0.05)


@pytest.mark.parametrize("shape", [(16, 16, 3), (8,) * 3 + (1,), (5, 2)])
def test_image_of_the_size_is_left_as_it_is(shape):
    image = noise(*shape)
    assert resize_and_crop(image, shape[:-1]) is image


def test_crop_of_the_celebrities_is_that_of_the_official_code():
    image = noise(218, 178, 3)
    expected = image[57:185, 25:153]
    np.testing.assert_array_equal(cut_out(image, "celeba"), expected)
    np.testing.assert_array_equal(Transform((128, 128, 3), "celeba")(image, ""), expected)
    small = Image.fromarray(expected).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(Transform((64, 64, 3), "celeba")(image, ""), np.asarray(small))


@pytest.mark.parametrize(
    ("transform", "shape", "message"),
    [
        (
            Transform((64, 64, 3), "celeba"),
            (178, 218, 3),
            r"a is 218x178 pixels, but the crop celeba needs aligned images of 178x",
        ),
        (Transform((64, 64, 3), "celeba"), (184, 178, 3), "a is 178x184 pixels, but the crop celeba needs"),
        (Transform((64, 64, 64, 3), "celeba"), (218, 178, 178, 3), "but the crop celeba needs aligned images"),
        (
            Transform((129, 129, 3), "celeba"),
            (218, 178, 3),
            "a is 128x128 pixels, smaller than the 129x129 of image_shape",
        ),
        (Transform((16, 16, 3)), (16, 15, 3), "a is 15x16 pixels, smaller than the 16x16 of image_shape. Remove it"),
        (Transform((8, 8, 8, 1)), (8, 7, 8, 1), "a is 8x7x8 pixels, smaller than the 8x8x8 of image_shape"),
        (Transform((8, 1)), (0, 1), "a is 0 pixels, smaller than the 8 of image_shape"),
        (
            Transform((16, 16, 3)),
            (16, 16, 2),
            "a has 2 channels, not 3. Set the last value of --config.image_shape to the number of channels of your",
        ),
        (Transform((16, 16, 2)), (16, 16, 1), "a has 1 channel, not 2"),
        (Transform((8, 8, 8, 3)), (8, 8, 8, 1), "a has 1 channel, not 3"),
    ],
)
def test_images_that_do_not_fit_are_told(transform, shape, message):
    is_refused(lambda: transform(noise(*shape), "a"), message)
    is_refused(lambda: transform.check(noise(*shape), "a"), message)


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("have", "want"), [(1, 3), (1, 4), (3, 1), (3, 4), (4, 1), (4, 3)])
def test_channels_of_pictures_are_converted(have, want):
    image = noise(8, 9, have)
    found = with_channels(image, want, "a").astype(int)
    color = image[..., :3].astype(np.float64) if have > 1 else np.repeat(image, 3, -1)
    if have == 4 and want != 4:
        alpha = image[..., 3:] / 255
        color = color * alpha + 255 * (1 - alpha)
    opaque = np.full((8, 9, 1), 255)
    luma = (color @ [0.299, 0.587, 0.114])[..., None]
    expected = {1: luma, 3: color, 4: np.concatenate([color, opaque], -1)}[want]
    np.testing.assert_allclose(found, expected, atol=1.01)  # each step rounds


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int16])
def test_gray_of_other_types_becomes_three_times_the_same(dtype):
    image = noise(8, 8, 1, dtype=dtype)
    np.testing.assert_array_equal(with_channels(image, 3, "a"), np.repeat(image, 3, -1))
    for have, want in ((3, 1), (1, 4), (4, 3)):
        is_refused(lambda have=have, want=want: with_channels(noise(8, 8, have, dtype=dtype), want, "a"), f"not {want}")


# --- values --------------------------------------------------------------------------------------


def test_sixteen_bits_become_eight_by_rounding():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    found = Transform((256, 256, 1))(every, "a")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.floor(every * (255 / 65535) + 0.5))
    flags = every % 2 == 1
    np.testing.assert_array_equal(to_8_bits(flags, "a"), flags * 255)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16, np.int32, np.uint32])
def test_types_of_no_known_range_are_told(dtype):
    is_refused(
        lambda: Transform((8, 8, 1))(np.ones((8, 8, 1), dtype), "a"), rf"a has values of {np.dtype(dtype)}, whose ra"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, ">f4", bool])
@pytest.mark.parametrize("intensity", [(0.0, 100.0), (-1000.0, 3000.0), (0.25, 0.75)])
def test_intensity_becomes_minus_one_to_one_and_is_limited(dtype, intensity):
    low, high = intensity
    values = np.linspace(low - 50, high + 50, 64).reshape(8, 8, 1)
    if np.dtype(dtype).kind == "u":
        values = values.clip(0, np.iinfo(dtype).max)
    image = values.astype(dtype)
    transform = Transform((8, 8, 1), intensity=intensity)
    found = transform(image, "a")
    assert found.dtype == transform.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(2 * (image.astype(float) - low) / (high - low) - 1, -1, 1), atol=2e-6)
    assert np.abs(found).max() <= 1
    restored = transform.restored(found[None])[0]
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, image.astype(float).clip(low, high), atol=2e-6 * (high - low))


def test_resized_floats_are_limited_after_they_are_resized():
    step = np.zeros((32, 32, 1), np.float32)
    step[:, 16:] = 1
    found = Transform((16, 16, 1), intensity=(0.0, 1.0))(step, "a")
    assert (found.min(), found.max()) == (-1, 1)
    np.testing.assert_allclose(found, np.clip(2 * resized(step, (16, 16)) - 1, -1, 1), atol=1e-5)


def test_restored_bytes_are_those_that_went_in():
    transform = Transform((16, 16, 1))
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(transform.restored(every.astype(np.float32) / 127.5 - 1), every)
    assert transform.dtype == np.uint8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_are_not_finite_are_told(value, dtype):
    image = np.zeros((8, 8, 1), dtype)
    image[2:4, 3] = value
    is_refused(lambda: Transform((8, 8, 1), intensity=(0.0, 1.0))(image, "a"), "a has 2 values that are not finite")


def test_numbers_beyond_float32_are_told():
    image = np.zeros((8, 8, 1))
    image[2, 3] = 1e300
    is_refused(lambda: Transform((4, 4, 1), intensity=(0.0, 1.0))(image, "a"), "a has 1 value that is not finite")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 1.0), (0, 1)),
        ((0.1, 0.9), (0, 1)),
        ((-0.9, 0.9), (-1, 1)),
        ((0.0, 250.0), (0, 255)),
        ((0.0, 0.4), (0.0, 0.4)),
        ((0.0, 1.01), (0.0, 1.01)),
        ((-0.1, 0.9), (-0.1, 0.9)),
        ((-1000.0, 3000.0), (-1000, 3000)),
        ((5.0, 5.0), (5, 6)),
    ],
)
def test_usual_range_is_taken_where_values_fill_it(values, expected):
    assert likely_range(*values) == expected
