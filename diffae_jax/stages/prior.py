"""Stage 3: trains the prior (latent DDIM), which draws new z (Eq. 9, Table 6)."""

import contextlib
import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from diffae_jax.data.batches import batches_of_rows, on_devices
from diffae_jax.data.latents import LatentStatistics, count_of, read_chunks
from diffae_jax.data.pictures import save_grid
from diffae_jax.diffusion.loss import diffusion_loss, draw_t_and_eps
from diffae_jax.diffusion.process import Process, latent_process
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.models import abstract_model
from diffae_jax.models.build import prior_builder
from diffae_jax.models.functional import digest, init_params
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.console import quantity, say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.sharding import on_host, replicated, shard_array, split_batch
from diffae_jax.stages.origin import starting_weights
from diffae_jax.stages.run_folder import check_inputs
from diffae_jax.training.checkpoint import Checkpoints
from diffae_jax.training.learning_rate import learning_rate_factor
from diffae_jax.training.loop import Intervals, Periodic, fit, steps_of
from diffae_jax.training.metrics import open_writer, parameter_table
from diffae_jax.training.packing import Packing
from diffae_jax.training.program import Program, compile_program, run_key, warn_of_memory
from diffae_jax.training.state import TrainState, make_optimizer
from diffae_jax.training.step import LossFn

STAGE = 1  # makes the random numbers of this stage differ from those of the autoencoder
ZERO_PREDICTOR_LOSS = {"l1": np.sqrt(2 / np.pi), "mse": 1.0}  # loss of a network that always predicts 0


def prior_loss(graphdef: nnx.GraphDef, process: Process) -> LossFn:
    """Returns the loss function of the prior on normalized z (Eq. 9).

    Each sample draws t and eps from its own key.
    """

    def loss_fn(params: Any, z_0: Float[Array, "n d"], keys: Key[Array, "n"]) -> tuple[Float[Array, "n"], dict]:
        t, eps = draw_t_and_eps(keys, z_0)
        return diffusion_loss(process, nnx.merge(graphdef, params), z_0, t, eps), {}

    return loss_fn


def prior_program(config: ConfigDict, mesh: Mesh, num_latents: int) -> Program:
    """Compiles the training step of the prior, for `num_latents` z that stay on the devices."""
    precision = resolve_precision(config.train.precision)
    steps = 1 if config.report.debug_nonfinite else config.execution.steps_per_dispatch
    build = prior_builder(config, precision)
    graphdef, _ = abstract_model(build)
    data = jax.ShapeDtypeStruct((num_latents, config.model.z_dim), np.float32, sharding=replicated(mesh))
    rows = jax.ShapeDtypeStruct((steps, config.prior.batch_size), np.int32, sharding=split_batch(mesh, axis=1))
    return compile_program(
        partial(init_params, build),
        prior_loss(graphdef, latent_process(config)),
        (data, rows),
        mesh=mesh,
        optimizer=make_optimizer(config.prior.learning_rate, config.prior.weight_decay),
        precision=precision,
        ema_decay=config.prior.ema_decay,
        max_grad_norm=config.prior.max_grad_norm,
        sharding=config.execution.sharding,
        steps_per_call=steps,
        learning_rate_factor=learning_rate_factor(
            config.prior.learning_rate_schedule,
            config.prior.warmup_latents,
            config.prior.num_latents,
            config.prior.batch_size,
        ),
    )


def run(config: ConfigDict, folder: AnyPath, mesh: Mesh) -> None:
    """Trains the prior, or resumes its training, and writes checkpoints and grids.

    Raises UserError if there are no latents, or if the existing prior was trained on different
    ones.
    """
    if config.model.z_dim is None:
        say("prior: a DDIM baseline has no z, so there is nothing to do.")
        return
    output, batch_size = folder / "prior", config.prior.batch_size
    intervals = Intervals(
        num_steps=steps_of(config.prior.num_latents, batch_size),
        log_every=steps_of(config.report.prior_log_every, batch_size),
        save_every=steps_of(config.report.prior_save_every, batch_size),
    )
    model = DiffAE.load(folder, mesh)
    if model.statistics is None:
        raise UserError(f"{folder} has no z to train on: run the stage latents first (--stages=latents,prior).")
    check_inputs(output, {"statistics_of_z": digest(dataclasses.asdict(model.statistics))})
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(output / "checkpoints")))
        first_step = checkpoints.latest or 0
        if first_step >= intervals.num_steps:
            say(f"prior: finished, {first_step * batch_size:,} z seen.")
            return
        z = normalized(model.statistics, folder / "latents")
        num_latents = len(z)
        program = prior_program(config, mesh, num_latents)
        describe(config, program, num_latents, intervals.last_step(first_step, program.steps_per_call))
        if first_step:
            say(f"Resuming after step {first_step:,} ({first_step * batch_size:,} z).")
        weights = starting_weights(folder, "prior", program.packing.abstract) if checkpoints.latest is None else {}
        writer = stack.enter_context(open_writer(config, folder, "prior", "latents", first_step))
        resident = shard_array(z, replicated(mesh))
        del z  # gigabytes for a large data set
        rows = batches_of_rows(
            num_latents,
            batch_size=batch_size,
            steps=program.steps_per_call,
            seed=config.seed,
            first_step=first_step,
            process_index=jax.process_index(),
            num_processes=jax.process_count(),
        )
        fit(
            program,
            batches=((resident, rows) for rows in on_devices(rows, split_batch(mesh, axis=1))),
            batch_size=batch_size,
            key=run_key(config.seed, mesh, STAGE),
            intervals=intervals,
            periodic=[sample_task(model, program.packing, output)],
            checkpoints=checkpoints,
            writer=writer,
            sample_names=partial(names_in_batch, config, folder / "latents") if config.report.debug_nonfinite else None,
            weights=weights,
        )


def names_in_batch(config: ConfigDict, latents: AnyPath, step: int) -> list[str]:
    """Returns the ids of the images whose z are in the batch of a step."""
    ids = [name for names, _ in read_chunks(latents, "training") for name in names]
    batches = batches_of_rows(
        len(ids), batch_size=config.prior.batch_size, steps=1, seed=config.seed, first_step=step - 1
    )
    return [ids[row] for row in next(batches)[0].tolist()]


def normalized(statistics: LatentStatistics, latents: AnyPath) -> Float[np.ndarray, "n d"]:
    """Reads the normalized z of all training images, chunk by chunk to save memory."""
    z = np.empty((count_of(latents, "training"), len(statistics.mean)), np.float32)
    filled = 0
    for ids, chunk in read_chunks(latents, "training"):
        z[filled : filled + len(ids)] = statistics.normalize(chunk)
        filled += len(ids)
    return z


def describe(config: ConfigDict, program: Program, num_latents: int, num_steps: int) -> None:
    """Prints the size of the network and of the data, and what training needs."""
    batch_size = config.prior.batch_size
    say(parameter_table({"latent DDIM": program.packing.abstract}))
    say(
        f"{num_latents:,} z of {config.model.z_dim} dimensions. Each step: {batch_size} z"
        + ("" if program.flops is None else f", {quantity(program.flops, 'FLOP')}")
        + f", {quantity(program.bytes_per_device, 'B')} of memory on each device. "
        f"Each call of the compiled function takes {program.steps_per_call} steps."
    )
    say(
        f"Entire training: {num_steps:,} steps, {num_steps * batch_size:,} z "
        f"({num_steps * batch_size / num_latents:,.0f} epochs). An untrained network has a loss of about "
        f"{ZERO_PREDICTOR_LOSS[config.prior.loss]:.2f}."
    )
    warn_of_memory(program.bytes_per_device, "set a lower --config.prior.batch_size or --config.prior.width")


def sample_task(model: DiffAE, packing: Packing, output: AnyPath) -> Periodic:
    """Returns a task that saves a picture of unconditional samples with the EMA weights."""
    config, num_steps = model.config, model.config.report.num_grid_steps

    def task(state: TrainState, step: int, _: dict[str, float]) -> dict[str, float]:
        prior = packing.unpack(on_host(state.ema))
        trained = DiffAE(config, model.params, statistics=model.statistics, prior=prior, mesh=model.mesh)
        images = trained.sample(
            config.report.num_sample_images, config.seed, num_steps=num_steps, num_latent_steps=num_steps
        )
        if is_main_process():
            save_grid(output / "grids" / f"{step * config.prior.batch_size:010d}.png", images)
        return {}

    return Periodic(steps_of(config.report.prior_grid_every, config.prior.batch_size), task)
