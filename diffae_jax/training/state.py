"""The training state: arrays only."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffae_jax.training.loss_scale import LossScale

Params = Any  # a pytree of float32 arrays
Leaf = Any  # an array; its shape or its sharding in the trees that describe a state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and replaces, and all that a checkpoint holds."""

    step: Leaf  # int32 scalar: steps taken
    params: Params
    ema: Params  # the exponential moving average of params: the weights that are used after training
    opt_state: Any
    loss_scale: Leaf  # LossScale, used with float16

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        """Returns the state at step 0, the average starting at the parameters themselves."""
        ema = jax.tree.map(jnp.copy, params)  # a copy: step donates both
        step = jnp.asarray(0, jnp.int32)
        return cls(step, params, ema, optimizer.init(params), LossScale.create())


def make_optimizer(learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam, or AdamW where there is a weight decay (Tables 5 and 6). The step clips the gradients."""
    if weight_decay:
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    return optax.adam(learning_rate)
