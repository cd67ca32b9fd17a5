"""Batches have few sizes, so similar numbers of images share a program; padding is exact."""

import numpy as np
import pytest

from diffae_jax.inference import programs
from diffae_jax.inference.batching import batch_sizes, padded
from diffae_jax.probes import Probe
from tests.random_models import random_model

IMAGES = np.random.default_rng(1).uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32)
STEPS = 3


@pytest.fixture(scope="module")
def model(one_device):
    return random_model(one_device, seed=2, probes={"half": Probe("half", np.ones(8, np.float32), 0.1)})


def test_padding_is_bounded_and_makes_few_sizes():
    sizes = [padded(count) for count in range(1, 5001)]
    assert sizes == sorted(sizes), "more images never take a smaller batch"
    for count, size in enumerate(sizes, start=1):
        assert count <= size == padded(size), "a size that is one of the few stays as it is"
        assert size - count < (size / 5 if count > 8 else size / 2), (count, size)
    assert sorted(set(sizes))[:13] == [1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40]
    for power in range(3, 12):
        assert len({size for size in sizes if 2**power < size <= 2 ** (power + 1)}) == 4


@pytest.mark.parametrize(("limit", "num_devices"), [(1, 1), (4, 1), (7, 3), (9, 2), (64, 8), (1024, 4)])
def test_batches_cover_all_images_in_order_and_fit_the_devices(limit, num_devices):
    for count in (1, 2, 5, 9, 63, 100, 513, 1025):
        end = 0
        for start, size in batch_sizes(count, limit, num_devices):
            assert start == end, "neither an image left out nor one done twice"
            assert size % num_devices == 0
            assert size <= limit * num_devices
            end = start + size
        assert end >= count > start


def compiled():
    return {name: getattr(programs, name)._cache_size() for name in ("encode", "invert", "decode", "noise", "sample")}


def test_five_to_eight_images_share_their_programs_and_come_out_as_each_alone(model):
    alone = [np.concatenate(rows) for rows in zip(*(results(model, i, i + 1) for i in range(8)), strict=True)]
    results(model, 0, 5)
    before = compiled()
    for count in (5, 6, 7, 8):
        for found, expected in zip(results(model, 0, count), alone, strict=True):
            assert found.shape == expected[:count].shape
            np.testing.assert_allclose(found, expected[:count], atol=1e-4)
    assert compiled() == before


def results(model, start, stop):
    """z, x_T, the reconstruction and the samples of some numbers."""
    images = IMAGES[start:stop]
    z = model.encode(images)
    x_T = model.invert(images, z, STEPS)
    return z, x_T, model.decode(z, x_T, STEPS), model.sample(stop - start, 2, STEPS, 2, first=start)


def test_three_and_four_samples_of_a_class_share_their_programs(model):
    draw = programs.latents_of_class
    four = model.sample_class(4, "half", num_steps=STEPS, num_latent_steps=2)
    before = compiled() | {"latents_of_class": draw._cache_size()}
    three = model.sample_class(3, "half", num_steps=STEPS, num_latent_steps=2)
    assert compiled() | {"latents_of_class": draw._cache_size()} == before
    np.testing.assert_allclose(three, four[:3], atol=1e-4)
