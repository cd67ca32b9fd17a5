"""What a training costs on a CPU."""

import jax

from diffae_jax.runtime.cpu import speed_of_products
from diffae_jax.training.cost import describe_cost, sentence_of_cost


def test_short_training_is_said_with_its_time():
    assert sentence_of_cost(9e12, 50e9) == (
        "The training needs 9 TFLOP: about 3 min 0 s at 50 GFLOP/s, the speed to expect of this CPU."
    )


def test_training_of_years_names_what_fits():
    sentence = sentence_of_cost(3e20, 50e9)
    assert "300 EFLOP: about 69444 d 10 h" in sentence
    assert sentence.endswith("Train on a GPU or TPU, or use --config=photos32, which takes about 1 h 30 min here.")


def test_speed_is_that_of_this_machine():
    speed = speed_of_products(jax.devices()[0], "float32", size=1024)
    assert 1e9 < speed < 1e14
    assert "The training needs 9 TFLOP: about " in describe_cost(9e12, jax.devices()[0])
