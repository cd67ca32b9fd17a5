"""Stage 1: trains the semantic encoder and the conditional UNet together (Eq. 6)."""

import contextlib
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, Shaped
from ml_collections import ConfigDict

from diffae_jax.data.batches import on_devices, rows_of_batch, training_batches
from diffae_jax.data.inspect.scan import describe_labels
from diffae_jax.data.pictures import save_rows
from diffae_jax.data.run_images import data_summary, open_data
from diffae_jax.data.sources import Source, read
from diffae_jax.data.splits import notes_on_labels
from diffae_jax.data.transforms import to_float
from diffae_jax.data.varied import choose_varied
from diffae_jax.diffusion.loss import diffusion_loss, draw_t_and_eps
from diffae_jax.diffusion.process import Process, image_process
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.models.functional import init_params
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import quantity, say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.sharding import check_batch_size, on_host, replicated, shard_array, split_batch
from diffae_jax.stages.early_checks import check_images
from diffae_jax.stages.loss_terms import LossTerm, check_terms, evaluate
from diffae_jax.stages.origin import branch_of, frozen_parts, starting_weights
from diffae_jax.stages.probes import notes_on_probes
from diffae_jax.stages.run_folder import is_begun
from diffae_jax.training.checkpoint import Checkpoints, was_set_aside
from diffae_jax.training.health import describe_z, z_health
from diffae_jax.training.learning_rate import learning_rate_factor
from diffae_jax.training.loop import Intervals, Periodic, PeriodicCall, fit, steps_of
from diffae_jax.training.metrics import open_writer, parameter_table
from diffae_jax.training.packing import Packing
from diffae_jax.training.program import Program, compile_program, run_key, warn_of_memory
from diffae_jax.training.state import TrainState, make_optimizer
from diffae_jax.training.step import LossFn, sample_keys


def autoencoder_loss(graphdef: nnx.GraphDef, process: Process, terms: Mapping[str, LossTerm] | None = None) -> LossFn:
    """Returns the loss function of the autoencoder: diffusion loss with z = Enc(x_0), plus terms.

    Each sample draws t uniformly, eps ~ N(0, I) and its dropout masks from its own key. The metric
    "loss" excludes the terms. Source: Eq. 6.
    """

    def loss_fn(params: Any, batch: dict[str, Array], keys: Key[Array, "n"]) -> tuple[Float[Array, "n"], dict]:
        model = nnx.merge(graphdef, params)
        x_0 = to_float(batch["image"])
        z = model.encode(x_0)
        loss = loss_given_z(model, process, x_0, z, keys, train=True)
        values = evaluate(terms or {}, z, batch, keys)
        return loss + sum(values.values()), {"loss": loss, **values}

    return loss_fn


def loss_given_z(
    model: Any, process: Process, x_0: Array, z: Array | None, keys: Key[Array, "n"], *, train: bool
) -> Float[Array, "n"]:
    """Returns the diffusion loss of each image for a given z; `train` turns dropout on."""
    draw_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    t, eps = draw_t_and_eps(draw_keys, x_0)
    network = partial(model.unet, z=z, dropout_keys=dropout_keys if train else None)
    return diffusion_loss(process, network, x_0, t, eps)


def autoencoder_program(
    config: ConfigDict,
    mesh: Mesh,
    dtype: type | np.dtype = np.uint8,
    loss_terms: Mapping[str, LossTerm] | None = None,
    num_steps: int = 0,
) -> Program:
    """Compiles the training step of the autoencoder, for images of type `dtype`.

    On a CPU, prints what `num_steps` steps cost, before it compiles.
    """
    precision = resolve_precision(config.train.precision)
    build = builder(config, precision)
    graphdef, _ = abstract_model(build)
    batch_shape = config.train.batch_size, *config.image_shape
    return compile_program(
        partial(init_params, build),
        autoencoder_loss(graphdef, image_process(config), loss_terms),
        {"image": jax.ShapeDtypeStruct(batch_shape, dtype, sharding=split_batch(mesh))},
        mesh=mesh,
        optimizer=make_optimizer(config.train.learning_rate, config.train.weight_decay),
        precision=precision,
        ema_decay=config.train.ema_decay,
        ema_warmup=config.train.ema_warmup,
        max_grad_norm=config.train.max_grad_norm,
        num_microbatches=config.execution.num_microbatches,
        sharding=config.execution.sharding,
        learning_rate_factor=learning_rate_factor(
            config.train.learning_rate_schedule,
            config.train.warmup_images,
            config.train.num_images,
            config.train.batch_size,
        ),
        frozen=frozen_parts(config),
        num_steps=num_steps,
    )


def describe_images(config: ConfigDict, folder: AnyPath, training: Source, held_out: Source) -> None:
    """Prints a summary of the images and their labels."""
    for line in (
        *data_summary(folder),
        *describe_labels(training.labels),
        *notes_on_labels(config.data.labels, training, held_out, id_column=config.data.id_column),
        *notes_on_probes(training.labels),
    ):
        say(line)


def describe(config: ConfigDict, program: Program, num_training: int, num_steps: int) -> None:
    """Prints the size of the model, and the computation and memory that training needs."""
    batch_size, device = config.train.batch_size, jax.local_devices()[0]
    precision = resolve_precision(config.train.precision)

    def compute(num_steps):
        return "FLOP unknown" if program.flops is None else quantity(program.flops * num_steps, "FLOP")

    say(parameter_table(program.packing.abstract))
    say(
        f"Each step: {batch_size} images, {compute(1)}, {quantity(program.bytes_per_device, 'B')} of memory "
        f"on each of {jax.device_count()} {device.device_kind}, in {precision}."
    )
    say(
        f"Entire training: {num_steps:,} steps, {num_steps * batch_size:,} images "
        f"({num_steps * batch_size / num_training:,.0f} epochs), {compute(num_steps)}."
    )
    warn_of_memory(
        program.bytes_per_device,
        "set --config.execution.remat=True, a higher --config.execution.num_microbatches or a lower "
        "--config.train.batch_size",
    )


def periodic_tasks(config: ConfigDict, folder: AnyPath, mesh: Mesh, packing: Packing, images: Source) -> list[Periodic]:
    """Returns the tasks to run at intervals: the health of z and a grid of reconstructions."""
    batch_size = config.train.batch_size

    def varied_images(count):
        return read(images, choose_varied(images, count))

    grid = grid_task(config, folder, mesh, packing, varied_images(config.report.num_grid_images))
    tasks = [Periodic(steps_of(config.report.grid_every, batch_size), grid)]
    if config.model.z_dim is not None:
        health_images = varied_images(batch_size // config.execution.num_microbatches)  # a microbatch fits in memory
        if len(health_images) > 1:
            health = health_task(config, mesh, packing, health_images)
            tasks.append(Periodic(steps_of(config.report.health_every, batch_size), health))
    return tasks


def health_task(
    config: ConfigDict, mesh: Mesh, packing: Packing, images: Shaped[np.ndarray, "n *shape"]
) -> PeriodicCall:
    """Returns a task that measures whether the UNet uses z, on at least two images."""
    graphdef, _ = abstract_model(builder(config, resolve_precision(config.train.precision)))
    batch = shard_array(images, replicated(mesh) if len(images) % mesh.size else split_batch(mesh))

    @partial(jax.jit, out_shardings=replicated(mesh))
    def measure(packed, images, key):
        model, x_0 = nnx.merge(graphdef, packing.unpack(packed)), to_float(images)
        keys = sample_keys(key, 0, len(x_0))
        return z_health(
            model.encode(x_0),
            lambda z: loss_given_z(model, image_process(config), x_0, z, keys, train=False),
        )

    def task(state: TrainState, step: int, metrics: dict[str, float]) -> dict[str, float]:
        values = {name: float(value) for name, value in measure(state.params, batch, run_key(0, mesh)).items()}
        say(describe_z({**metrics, **values}, step * config.train.batch_size))
        return values

    return task


def grid_task(
    config: ConfigDict, folder: AnyPath, mesh: Mesh, packing: Packing, images: Shaped[np.ndarray, "n *shape"]
) -> PeriodicCall:
    """Returns a task that saves a picture of `reconstructions` with the EMA weights."""
    x_0 = to_float(images)

    def task(state: TrainState, step: int, _: dict[str, float]) -> dict[str, float]:
        model = DiffAE(config, packing.unpack(on_host(state.ema)), mesh=mesh)
        rows = reconstructions(model, x_0, config.report.num_grid_steps)
        if is_main_process():
            save_rows(folder / "autoencoder" / "grids" / f"{step * config.train.batch_size:010d}.png", rows)
        return {}

    return task


def reconstructions(
    model: DiffAE, x_0: Float[np.ndarray, "n *shape"], num_steps: int
) -> dict[str, Float[np.ndarray, "n *shape"]]:
    """Returns rows of images by their captions.

    The rows are the input, its reconstructions with inferred and with random x_T, and each x_T
    decoded with the z of the previous image. The DDIM baseline has no z and therefore no last row.
    """
    rows = {"input": x_0}
    z = None if model.config.model.z_dim is None else model.encode(x_0)
    x_T = model.invert(x_0, z, num_steps)
    rows["inferred x_T"] = model.decode(z, x_T, num_steps)
    rows["random x_T"] = model.reconstruct(x_0, num_steps, infer_x_T=False)
    if z is not None:
        rows["z of the previous image"] = model.decode(np.roll(z, 1, axis=0), x_T, num_steps)
    return rows


def run(
    config: ConfigDict,
    folder: AnyPath,
    mesh: Mesh,
    images: Any = None,
    loss_terms: Mapping[str, LossTerm] | None = None,
    stages: Collection[str] = (),
) -> None:
    """Trains the autoencoder, or resumes its training, and writes checkpoints and grids.

    `images` replaces the images at config.data.path. `stages` has the names of the stages that
    will run. Raises UserError if further training would make existing latents outdated, or if the
    loss terms differ from those in the config. It also does so if a later stage would refuse the
    images.
    """
    batch_size = config.train.batch_size
    intervals = Intervals(
        num_steps=steps_of(config.train.num_images, batch_size),
        log_every=steps_of(config.report.log_every, batch_size),
        save_every=steps_of(config.report.save_every, batch_size),
    )
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder / "autoencoder" / "checkpoints")))
        branch = branch_of(config, folder)
        first_step = (checkpoints.latest or 0) if branch is None else branch.first_step
        is_finished = first_step >= intervals.num_steps
        if not is_finished:  # before the images are read
            refuse_outdating(folder, first_step, intervals.num_steps)
            abstract_weights(config, mesh)  # refuses a model that cannot be built
            check_terms(config, loss_terms or {})
            check_batch_size("train.batch_size", batch_size, mesh.size, config.execution.num_microbatches)
        training, held_out = open_data(config, folder, images, begun=is_begun(folder))
        if not is_finished:
            describe_images(config, folder, training, held_out)
            with together():
                check_images(config, stages, training)
        if branch is not None:
            branch.begin(config, folder, checkpoints, mesh)
        if is_finished:
            say(f"autoencoder: finished, {first_step * batch_size:,} images seen.")
            return
        batches = training_batches(
            training,
            batch_size=batch_size,
            seed=config.seed,
            first_step=first_step,
            flip=config.data.flip,
            num_workers=config.execution.num_workers,
            process_index=jax.process_index(),
            num_processes=jax.process_count(),
        )
        program = autoencoder_program(
            config, mesh, training.transform.dtype, loss_terms, intervals.num_steps - first_step
        )
        weights = (
            starting_weights(folder, "autoencoder", program.packing.abstract) if checkpoints.latest is None else {}
        )
        describe(config, program, len(training), intervals.num_steps)
        if first_step:
            say(f"Resuming after step {first_step:,} ({first_step * batch_size:,} images).")
        writer = stack.enter_context(open_writer(config, folder, "autoencoder", "images", first_step))
        fit(
            program,
            batches=on_devices(batches, split_batch(mesh)),
            batch_size=batch_size,
            key=run_key(config.seed, mesh),
            intervals=intervals,
            periodic=periodic_tasks(config, folder, mesh, program.packing, held_out if len(held_out) else training),
            checkpoints=checkpoints,
            writer=writer,
            sample_names=partial(names_in_batch, config, training) if config.report.debug_nonfinite else None,
            weights=weights,
        )


def names_in_batch(config: ConfigDict, training: Source, step: int) -> list[str]:
    """Returns the ids of the images in the batch of a step."""
    rows = rows_of_batch(len(training), batch_size=config.train.batch_size, seed=config.seed, step=step)
    ids = training.ids
    return [ids[row] for row in rows.tolist()]


def refuse_outdating(folder: AnyPath, step: int, num_steps: int) -> None:
    """Raises UserError if latents or a prior exist: further training would make them outdated."""
    if was_set_aside(folder / "autoencoder" / "checkpoints", num_steps):
        return  # the same weights are trained again; the stage latents checks that they are
    dependents = [str(folder / name) for name in ("latents", "prior") if (folder / name).exists()]
    if dependents:
        raise UserError(
            f"Training from step {step:,} to {num_steps:,} would make {' and '.join(dependents)} invalid. Remove them, "
            f"or restore --config.train.num_images."
        )
