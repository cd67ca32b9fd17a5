"""What a training costs on a CPU, said before the compiler takes minutes for it."""

import jax

from diffae_jax.runtime.console import duration, quantity
from diffae_jax.runtime.cpu import speed_of_products

# FLOP/s of a training step relative to those of a product of large matrices: 0.2 to 0.4 on two
# cores, because convolutions of small images are slower
USUAL_SHARE = 0.3
LONG = 2 * 86_400  # seconds
PHOTOS32 = 0.27e15  # FLOP of the config photos32, in full


def describe_cost(flops: float, device: jax.Device) -> str:
    """Returns what a training of `flops` FLOP takes on a CPU: see `sentence_of_cost`."""
    return sentence_of_cost(flops, USUAL_SHARE * speed_of_products(device, "float32", size=1024))


def sentence_of_cost(flops: float, speed: float) -> str:
    """Returns the time that a training takes and, if that is days, what to do instead.

    Args:
        flops: FLOP of the training.
        speed: FLOP/s to expect.
    """
    cost = (
        f"The training needs {quantity(flops, 'FLOP')}: about {duration(flops / speed)} at "
        f"{quantity(speed, 'FLOP/s')}, the speed to expect of this CPU."
    )
    if flops / speed < LONG:
        return cost
    shorter = duration(PHOTOS32 / speed)
    return f"{cost} Train on a GPU or TPU, or use --config=photos32, which takes about {shorter} here."
