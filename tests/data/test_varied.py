"""Images for pictures: of all folders and classes, and the same in each call."""

import time

import numpy as np

from diffae_jax.data.sources import Arrays
from diffae_jax.data.varied import choose_varied


def source(ids, **labels):
    return Arrays(np.zeros((len(ids), 2, 2, 1)), ids, {name: np.asarray(values) for name, values in labels.items()})


def test_images_sorted_by_class_are_spread_over_the_classes():
    digits = np.repeat(np.arange(10), 50)
    chosen = choose_varied(source([f"{i:03d}" for i in range(500)], digit=digits), 20)
    assert sorted(digits[chosen[:10]]) == list(range(10))
    assert sorted(digits[chosen[10:]]) == list(range(10))
    assert len(set(chosen.tolist())) == 20


def test_images_without_labels_are_spread_over_the_folders():
    ids = [f"{folder}/{i}.png" for folder, count in (("a", 300), ("b/c", 3), ("b/d", 3)) for i in range(count)]
    chosen = choose_varied(source(ids), 6)
    assert sorted(ids[i].rpartition("/")[0] for i in chosen) == ["a", "a", "b/c", "b/c", "b/d", "b/d"]


def test_rare_values_of_each_label_are_among_the_first():
    """A rare value in one label appears, whatever the others are."""
    rng = np.random.default_rng(0)
    rare = np.arange(1000) == 700
    others = {f"a{i}": rng.integers(2, size=1000) for i in range(3)}
    chosen = choose_varied(source([str(i) for i in range(1000)], rare=rare, **others), 8)
    assert 700 in chosen
    for values in others.values():
        assert 2 <= values[chosen].sum() <= 6


def test_images_without_any_groups_are_not_neighbors():
    chosen = choose_varied(source([str(i) for i in range(1000)], age=np.arange(1000) / 7), 10)
    assert np.diff(np.sort(chosen)).max() > 50
    assert chosen.max() > 500


def test_the_choice_is_fixed_and_the_first_images_stay_when_more_are_chosen():
    images = source([str(i) for i in range(300)], kind=np.arange(300) % 3)
    first = choose_varied(images, 5)
    np.testing.assert_array_equal(first, choose_varied(images, 5))
    np.testing.assert_array_equal(first, choose_varied(images, 9)[:5])


def test_few_images_and_odd_labels_are_accepted():
    assert choose_varied(source([]), 4).tolist() == []
    some = source(["a", "b", "c"], text=np.array(["x", "", "y"], object), gap=[1.0, np.nan, 1.0], same=[1, 1, 1])
    assert sorted(choose_varied(some, 9)) == [0, 1, 2]


def test_a_million_images_take_little_time():
    ids = [f"{i % 7}/{i}.png" for i in range(1_000_000)]
    images = Arrays(np.broadcast_to(np.zeros((1, 1, 1, 1)), (len(ids), 1, 1, 1)), ids, {
        f"a{i}": np.arange(len(ids)) % (i + 2) for i in range(40)
    })  # fmt: skip
    start = time.process_time()
    choose_varied(images, 64)
    assert time.process_time() - start < 5
