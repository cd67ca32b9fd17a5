"""One optimization step: a pure function of state, batch and key."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from diffae_jax.training.state import Params, TrainState

# (params, batch, keys [N]) -> (loss of each sample [N], metrics). The mean of the loss is what training minimizes.
# A metric is one number a sample [N], or a scalar; it is averaged over the batch as the loss is, and reported under
# its own name. One called "loss" is reported in place of the loss itself.
# Each sample has a key of its own for all that it draws, so that nothing depends on how a batch is split over devices,
# processes or micro-batches.
LossFn = Callable[[Params, Any, Key[Array, "n"]], tuple[Float[Array, "n"], dict[str, Float[Array, "*n"]]]]
Metrics = dict[str, Float[Array, "*steps"]]  # a number each; where a call takes several steps, one a step
STEP_METRICS = ("grad_norm", "finite", "loss_scale")  # metrics of the step itself, next to "grad_norm/*"

StepFn = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Metrics]]


def sample_keys(key: Key[Array, ""], step: Array | int, num_samples: int) -> Key[Array, "{num_samples}"]:
    """Returns one key for each sample of the batch of a step."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(num_samples, dtype=jnp.int32))


def mean_loss_and_grads(
    loss_fn: LossFn, params: Params, batch: Any, keys: Key[Array, "n"], scale: Array | float, num_microbatches: int
) -> tuple[Float[Array, ""], Metrics, Params]:
    """Returns the means of loss and metrics, and the gradient of the loss, in float32, accumulated over micro-batches.

    Micro-batch i takes every `num_microbatches`-th sample from i on, so that each device keeps its own samples.
    The loss is multiplied by `scale` for the backward pass alone.
    """

    def scaled_loss(params, batch, keys):
        loss, metrics = jax.tree.map(partial(jnp.mean, dtype=jnp.float32), loss_fn(params, batch, keys))
        return loss * scale, (loss, metrics)

    gradient = jax.grad(scaled_loss, has_aux=True)
    if num_microbatches > 1:
        interleaved = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1), (batch, keys)
        )

        def accumulate(total, microbatch):
            grads, means = gradient(params, *microbatch)
            return jax.tree.map(jnp.add, total, grads), means

        grads, means = lax.scan(accumulate, jax.tree.map(jnp.zeros_like, params), interleaved)
        loss, metrics = jax.tree.map(jnp.mean, means)
    else:
        grads, (loss, metrics) = gradient(params, batch, keys)
    return loss, metrics, jax.tree.map(lambda g: g / (scale * num_microbatches), grads)


def train_step(
    state: TrainState,
    batch: Any,
    key: Key[Array, ""],
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    max_grad_norm: float,
    scale_loss: bool = False,
    num_microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """Takes one step on one batch; `key` is the run's.

    Gradients are clipped to a global norm of `max_grad_norm`, after unscaling. Where the gradient is not finite,
    parameters, average and optimizer stay as they were, on every device alike, and the metric `finite` is 0: with
    `scale_loss` (float16) that is how the loss scale finds its level, otherwise it is for the caller to stop.
    """
    num_samples = jax.tree.leaves(batch)[0].shape[0]
    keys = sample_keys(key, state.step, num_samples)
    scale = state.loss_scale.scale if scale_loss else 1.0
    loss, metrics, grads = mean_loss_and_grads(loss_fn, state.params, batch, keys, scale, num_microbatches)

    norms = {f"grad_norm/{name}": optax.tree.norm(part) for name, part in grads.items()}
    norm = jnp.sqrt(sum(jnp.square(n) for n in norms.values()))
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    clip = jnp.minimum(1, max_grad_norm / jnp.maximum(norm, 1e-12))
    updates, opt_state = optimizer.update(jax.tree.map(lambda g: g * clip, grads), state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - ema_decay)

    def if_finite(new, old):
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)

    new_state = TrainState(
        step=state.step + 1,
        params=if_finite(params, state.params),
        ema=if_finite(ema, state.ema),
        opt_state=if_finite(opt_state, state.opt_state),
        loss_scale=state.loss_scale.update(finite) if scale_loss else state.loss_scale,
    )
    metrics = {"loss": loss, **metrics, "grad_norm": norm, **norms, "finite": finite.astype(jnp.float32)}
    if scale_loss:
        metrics["loss_scale"] = state.loss_scale.scale
    return new_state, metrics


def train_steps(
    state: TrainState, batch: tuple[Any, Int[Array, "steps n"]], key: Key[Array, ""], *, step: StepFn
) -> tuple[TrainState, Metrics]:
    """Takes one step for each row of indices; each metric comes as [steps].

    `batch` is (data, rows): the samples of a step are the rows of `data` that it names. So data that fit the devices
    stay there, and a network too small to keep them busy between two calls of the host gets many steps a call.
    """
    data, rows = batch

    def body(state, rows_of_step):
        return step(state, jax.tree.map(lambda a: a[rows_of_step], data), key)

    return lax.scan(body, state, rows)
