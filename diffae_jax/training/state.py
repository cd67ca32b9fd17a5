"""The training state: a dataclass of arrays."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffae_jax.training.loss_scale import LossScale

Params = Any  # a pytree of float32 arrays
Leaf = Any  # an array; a shape or a sharding in trees that describe a state


def leaves_by_name(tree: Any) -> Iterator[tuple[str, Leaf]]:
    """Yields the dotted path and the value of each leaf of any tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a training step replaces and that a checkpoint stores.

    Attributes:
        step: Number of steps taken, an int32 scalar.
        params: The weights, float32.
        ema: The EMA weights, float32. All results use them.
        opt_state: The state of the optimizer.
        loss_scale: The `LossScale`. Only float16 uses it.
    """

    step: Leaf
    params: Params
    ema: Params
    opt_state: Any
    loss_scale: Leaf

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        """Creates the state at step 0.

        Args:
            params: The initial weights, float32. The EMA weights start as a copy of them.
            optimizer: An optax optimizer, which creates `opt_state`.

        Returns:
            The state.
        """
        ema = jax.tree.map(jnp.copy, params)  # a copy, because the step donates both
        step = jnp.asarray(0, jnp.int32)
        return cls(step, params, ema, optimizer.init(params), LossScale.create())


def make_optimizer(learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Creates the optimizer.

    Args:
        learning_rate: The constant learning rate.
        weight_decay: 0 selects Adam; a larger value selects AdamW with this decay.

    Returns:
        The optax optimizer. It does not clip gradients; `train_step` does.

    Source: Tables 5 and 6.
    """
    if weight_decay:
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    return optax.adam(learning_rate)
