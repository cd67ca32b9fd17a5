"""Compiles the training step for a mesh, and measures its cost before any array is allocated."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from diffae_jax.runtime.console import quantity, say
from diffae_jax.runtime.sharding import Sharding, replicated, state_shardings
from diffae_jax.training.cost import describe_cost
from diffae_jax.training.diagnosis import explain
from diffae_jax.training.packing import Packing
from diffae_jax.training.state import Params, TrainState
from diffae_jax.training.step import LossFn, StepFn, sample_keys, train_step, train_steps


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions that create and train the state, and the cost of a step."""

    packing: Packing  # of the weights in the state
    abstract_state: TrainState  # shapes and shardings
    unpacked_state: TrainState  # the same, as older versions saved it
    init: Callable[[Key[Array, ""]], TrainState]
    start: Callable[[Params], TrainState]  # returns the state of step 0 with given weights
    step: StepFn  # a compiled executable that takes `steps_per_call` steps
    steps_per_call: int
    flops: float | None  # of one step, over all devices; None if the compiler does not report them
    explain: Callable[[TrainState, Any, Key[Array, ""], Sequence[str], str], str]  # see `explain_step`
    bytes_per_device: int  # memory for state, batch and activations, as reported by the compiler


def compile_program(
    init_params: Callable[[Key[Array, ""]], Params],
    loss_fn: LossFn,
    abstract_batch: Any,  # shapes and shardings of the global batch, samples first; see `train_steps` for several steps
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    precision: str,
    ema_decay: float,
    ema_warmup: bool = False,
    max_grad_norm: float,
    num_microbatches: int = 1,
    sharding: Sharding = "replicated",
    steps_per_call: int | None = None,  # if set, the step is `train_steps`
    learning_rate_factor: optax.Schedule | None = None,
    frozen: Collection[str] = (),  # parts of the weights that are not trained
    num_steps: int = 0,  # that the caller will take, to say what they cost on a CPU; 0: unknown
) -> Program:
    """Compiles the training step.

    The step donates its input state, so do not use that state again.

    The step is an executable, not a function to be traced: with a different shape it fails instead
    of compiling again.
    """

    abstract_key = jax.eval_shape(jax.random.key, 0)
    init_params = jax.jit(init_params)  # traced once, for shapes and for values
    packing, abstract_state, unpacked_state = abstract_states(
        jax.eval_shape(init_params, abstract_key), optimizer, mesh, sharding
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)

    def packed_state(params):
        return TrainState.create(packing.pack(params), optimizer)

    def init(key):
        return packed_state(init_params(key))

    def packed_loss_fn(packed, batch, keys):  # its gradient is packed, too
        # with FSDP, each vector is gathered at once, not piece by piece
        gather = partial(jax.lax.with_sharding_constraint, shardings=replicated(mesh))
        packed = packed | {part: jax.lax.stop_gradient(packed[part]) for part in frozen}
        return loss_fn(packing.unpack(packing.map_vectors(gather, packed)), batch, keys)

    step = partial(
        train_step,
        loss_fn=packed_loss_fn,
        optimizer=optimizer,
        ema_decay=ema_decay,
        ema_warmup=ema_warmup,
        max_grad_norm=max_grad_norm,
        scale_loss=precision == "float16",
        num_microbatches=num_microbatches,
        learning_rate_factor=learning_rate_factor,
        frozen=frozen,
    )
    if steps_per_call is not None:
        step = partial(train_steps, step=step)
    step.__name__ = "train_step"
    lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))).lower(
        abstract_state,
        abstract_batch,
        jax.ShapeDtypeStruct(abstract_key.shape, abstract_key.dtype, sharding=replicated(mesh)),
    )
    is_here = mesh.devices.flat[0] in jax.devices()  # a plan compiles for absent devices, where XLA counts nothing
    written = lowered.cost_analysis() if is_here else None
    flops = count_flops(written, None, mesh.size, num_microbatches)
    if num_steps and flops and jax.default_backend() == "cpu":
        say(describe_cost(num_steps * flops, mesh.devices.flat[0]))
    say("Compiling the training step. This takes seconds on a GPU or TPU, or minutes on a CPU.")
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return Program(
        packing=packing,
        abstract_state=abstract_state,
        unpacked_state=unpacked_state,
        init=jax.jit(init, out_shardings=shardings),
        start=jax.jit(packed_state, out_shardings=shardings),
        step=compiled,
        steps_per_call=steps_per_call or 1,
        explain=partial(
            explain_step,
            packing=packing,
            loss_fn=loss_fn,
            num_microbatches=num_microbatches,
            is_rows=steps_per_call is not None,
        ),
        flops=count_flops(written, compiled.cost_analysis(), mesh.size, num_microbatches) if is_here else None,
        bytes_per_device=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    )


def abstract_states(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, sharding: Sharding
) -> tuple[Packing, TrainState, TrainState]:
    """Returns the packing of weights, and shapes and shardings of the packed and unpacked state.

    `params` has shapes instead of arrays. Nothing is compiled.
    """
    packing, create = Packing(params), partial(TrainState.create, optimizer=optimizer)

    def located(state):
        shardings = state_shardings(state, mesh, sharding)
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)

    packed = jax.eval_shape(lambda params: create(packing.pack(params)), params)
    return packing, located(packed), located(jax.eval_shape(create, params))


def explain_step(
    state: TrainState,
    batch: Any,
    key: Key[Array, ""],
    names: Sequence[str],
    noun: str,
    *,
    packing: Packing,
    loss_fn: LossFn,
    num_microbatches: int,
    is_rows: bool,
) -> str:
    """Explains in a sentence why the last step was not finite: see `diagnosis.explain`.

    Args:
        state: The state after the step, whose weights are those before it.
        batch: The batch of the call, which must have taken one step.
        key: The random key of the run.
        names: The name of each sample [N].
        noun: What a sample is called, such as "image".
        packing: The packing of the weights in the state.
        loss_fn: The loss function of training.
        num_microbatches: The number of microbatches.
        is_rows: Whether the batch is (data, rows): see `train_steps`.

    Returns:
        A sentence, or "" if the reason is unknown.
    """
    if is_rows:
        data, (rows,) = batch
        batch = jax.tree.map(lambda a: a[rows], data)
    keys = sample_keys(key, state.step - 1, len(names))
    params = jax.jit(packing.unpack)(state.params)
    return explain(params, batch, keys, names, noun, loss_fn=loss_fn, num_microbatches=num_microbatches)


def count_flops(
    written: dict[str, float] | None, compiled: dict[str, float] | None, num_devices: int, num_microbatches: int
) -> float | None:
    """Returns XLA's count of the FLOP of a step over all devices, or None if XLA reports none.

    `written` is the cost analysis of the program before compilation, `compiled` that of one device
    after it. GPU and TPU report only `compiled`. XLA counts the body of a scan once: the count is
    therefore for one step even if a call takes several, and must be multiplied by the number of
    microbatches.
    """
    analysis, copies = (compiled or {}, num_devices) if written is None else (written, 1)
    flops = analysis.get("flops")
    return None if flops is None else flops * copies * num_microbatches


@functools.cache
def run_key(seed: int, mesh: Mesh, stage: int = 0) -> Key[Array, ""]:
    """Returns the random key of a training stage, replicated on all devices."""
    return jax.jit(lambda: jax.random.fold_in(jax.random.key(seed), stage), out_shardings=replicated(mesh))()


def warn_of_memory(bytes_per_device: int, fix: str) -> None:
    """Prints a warning if a program needs more memory than a device has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and bytes_per_device > limit:
        needed, available = quantity(bytes_per_device, "B"), quantity(limit, "B")
        say(f"WARNING: training needs {needed} of memory per device, but a device has {available}: {fix}.")
