"""One training step: a pure function of state, batch and key."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from diffae_jax.training.state import Params, TrainState

# (params, batch, keys [N]) -> (loss of each sample [N], metrics). Training minimizes the mean
# loss. A metric is one number per sample [N], or a scalar. It is averaged over the batch and
# logged under its name. A metric called "loss" is logged instead of the loss itself. Each sample
# has its own random key, so that results do not depend on how a batch is split over devices,
# processes or microbatches.
LossFn = Callable[[Params, Any, Key[Array, "n"]], tuple[Float[Array, "n"], dict[str, Float[Array, "*n"]]]]
Metrics = dict[str, Float[Array, "*steps"]]  # scalars, or [steps] if a call takes several steps
STEP_METRICS = (
    "grad_norm",
    "finite",
    "loss_scale",
    "learning_rate_factor",
)  # metrics of the step itself, next to "grad_norm/*"

StepFn = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Metrics]]


def sample_keys(key: Key[Array, ""], step: Array | int, num_samples: int) -> Key[Array, "{num_samples}"]:
    """Returns one random key for each sample of the batch of a step."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(num_samples, dtype=jnp.int32))


def ema_decay_at(step: Array | int, ema_decay: float) -> Float[Array, ""]:
    """Returns the decay of a step while it rises to `ema_decay`: (1 + step) / (10 + step) at most.

    The average then spans about a tenth of the training so far. With a constant decay d, it
    has a share d**n of the random initial weights after n steps. Samples stay noise until this
    share vanishes.
    """
    return jnp.minimum(ema_decay, (1 + step) / (10 + step))


def mean_loss_and_grads(
    loss_fn: LossFn, params: Params, batch: Any, keys: Key[Array, "n"], scale: Array | float, num_microbatches: int
) -> tuple[Float[Array, ""], Metrics, Params]:
    """Computes the mean loss, the mean metrics and the gradients, accumulated over microbatches.

    With M microbatches, microbatch i holds samples i, i + M, i + 2M, ..., so that each device
    keeps its samples.

    Args:
        loss_fn: The loss function: see `LossFn`.
        params: The weights.
        batch: A pytree of arrays with N samples along the first axis.
        keys: One random key per sample [N].
        scale: Factor on the loss in the backward pass; the gradients are divided by it. Use 1
            unless the precision is float16.
        num_microbatches: Number of microbatches; it must divide N.

    Returns:
        (mean loss, mean metrics, gradients), all float32.
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
    ema_warmup: bool = False,
    max_grad_norm: float,
    scale_loss: bool = False,
    num_microbatches: int = 1,
    learning_rate_factor: optax.Schedule | None = None,
    frozen: Collection[str] = (),
) -> tuple[TrainState, Metrics]:
    """Takes one training step on one batch.

    If the loss or a gradient is not finite, weights, EMA weights and optimizer state stay
    unchanged, and the metric `finite` is 0. With float16 this is normal while the loss scale
    adapts; otherwise the caller should stop.

    Args:
        state: The state before the step.
        batch: A pytree of arrays with N samples along the first axis.
        key: The random key of the run; the step number is folded into it.
        loss_fn: The loss function: see `LossFn`.
        optimizer: The optax optimizer.
        ema_decay: Decay of the EMA weights, in [0, 1].
        ema_warmup: Whether the decay rises to `ema_decay`: see `ema_decay_at`.
        max_grad_norm: Gradients with a larger global norm are scaled down to this norm.
        scale_loss: Whether to use dynamic loss scaling, which float16 needs.
        num_microbatches: Number of microbatches; it must divide N.
        learning_rate_factor: Returns a factor on the update for a number of steps: see
            `learning_rate`. None: always 1.
        frozen: Parts whose weights and EMA weights stay as they are. `loss_fn` should have no
            gradient for them.

    Returns:
        (new state, metrics). The metrics are scalars: "loss", the metrics of `loss_fn`,
        "grad_norm", "grad_norm/PART" for each part of the weights, "finite", with `scale_loss`
        "loss_scale" and, with `learning_rate_factor`, "learning_rate_factor".
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
    if learning_rate_factor is not None:
        factor = learning_rate_factor(state.step)
        updates = jax.tree.map(lambda u: u * factor, updates)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay_at(state.step, ema_decay) if ema_warmup else ema_decay
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    for part in frozen:  # Adam still moves weights without a gradient, and the average rounds
        params, ema = params | {part: state.params[part]}, ema | {part: state.ema[part]}

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
    if learning_rate_factor is not None:
        metrics["learning_rate_factor"] = factor
    return new_state, metrics


def train_steps(
    state: TrainState, batch: tuple[Any, Int[Array, "steps n"]], key: Key[Array, ""], *, step: StepFn
) -> tuple[TrainState, Metrics]:
    """Takes several training steps in one call, on data that stay on the devices.

    A small network computes a step faster than Python can start the next one. Several steps per
    call avoid this overhead.

    Args:
        state: The state before the first step.
        batch: (data, rows). `data` is a pytree of arrays; `rows` [steps, N] are the indices of the
            samples of each step along their first axis.
        key: The random key of the run.
        step: The function that takes one step, such as a partial of `train_step`.

    Returns:
        (new state, metrics). Each metric is an array [steps].
    """
    data, rows = batch

    def body(state, rows_of_step):
        return step(state, jax.tree.map(lambda a: a[rows_of_step], data), key)

    return lax.scan(body, state, rows)
