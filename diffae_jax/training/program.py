"""A training step compiled once for a mesh, with what it costs, before any array is allocated."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from diffae_jax.training.sharding import Sharding, check_batch_size, replicated, split_batch, state_shardings
from diffae_jax.training.state import Params, TrainState
from diffae_jax.training.step import LossFn, Metrics, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """How the state is born, and one step; and what they cost."""

    abstract_state: TrainState  # shapes and shardings
    init: Callable[[Key[Array, ""]], TrainState]
    step: Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Metrics]]
    flops: float | None  # of one step, over all devices; None where the compiler does not tell
    bytes_per_device: int  # state, batch and activations, as the compiler lays them out


def compile_program(
    init_params: Callable[[Key[Array, ""]], Params],
    loss_fn: LossFn,
    abstract_batch: Any,  # shapes of the global batch, samples first
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    precision: str,
    ema_decay: float,
    max_grad_norm: float,
    num_microbatches: int = 1,
    sharding: Sharding = "replicated",
) -> Program:
    """Compiles the step, which takes over the state given to it. Raises UserError where a batch cannot be split.

    The step is an executable, not a function to be traced: given another shape it fails instead of compiling again.
    """
    batch_size = jax.tree.leaves(abstract_batch)[0].shape[0]
    check_batch_size(batch_size, num_microbatches, mesh.size)

    def init(key):
        return TrainState.create(init_params(key), optimizer)

    def located(tree, shardings):
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)

    abstract_key = jax.eval_shape(jax.random.key, 0)
    abstract_state = jax.eval_shape(init, abstract_key)
    shardings = state_shardings(abstract_state, mesh, sharding)
    step = partial(
        train_step,
        loss_fn=loss_fn,
        optimizer=optimizer,
        ema_decay=ema_decay,
        max_grad_norm=max_grad_norm,
        scale_loss=precision == "float16",
        num_microbatches=num_microbatches,
    )
    step.__name__ = "train_step"
    lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))).lower(
        located(abstract_state, shardings),
        located(abstract_batch, jax.tree.map(lambda _: split_batch(mesh), abstract_batch)),
        located(abstract_key, replicated(mesh)),
    )
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return Program(
        abstract_state=located(abstract_state, shardings),
        init=jax.jit(init, out_shardings=shardings),
        step=compiled,
        flops=count_flops(lowered.cost_analysis(), compiled.cost_analysis(), mesh.size, num_microbatches),
        bytes_per_device=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    )


def count_flops(
    written: dict[str, float] | None, compiled: dict[str, float] | None, num_devices: int, num_microbatches: int
) -> float | None:
    """Returns XLA's count for a step from its analyses of the program as written and, of one device, as compiled.

    GPU and TPU analyse only what was compiled; where neither tells, the count is None.

    The body of the scan over micro-batches is counted once, so the count is multiplied by their number.
    """
    analysis, copies = (compiled or {}, num_devices) if written is None else (written, 1)
    flops = analysis.get("flops")
    return None if flops is None else flops * copies * num_microbatches


@functools.cache
def run_key(seed: int, mesh: Mesh) -> Key[Array, ""]:
    """Returns the key that all randomness of a run comes from, on every device."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()
