"""Stage 2: images -> z of every image of the data set, by the averaged encoder, and their statistics (Sec. 4)."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from diffae_jax import inference
from diffae_jax.data.batches import on_devices, ordered_batches
from diffae_jax.data.latents import (
    PART_SIZE,
    STATISTICS,
    LatentStatistics,
    part_path,
    part_starts,
    read_parts,
    write_part,
)
from diffae_jax.data.sources import Source
from diffae_jax.distributed import together
from diffae_jax.models import abstract_model
from diffae_jax.models.functional import Params, digest
from diffae_jax.networks import abstract_weights, builder
from diffae_jax.stages.data import describe_files, open_data
from diffae_jax.stages.run_folder import check_inputs
from diffae_jax.training.checkpoint import latest_step, load_ema
from diffae_jax.training.logging import Progress, duration, is_main_process, last_speed, say
from diffae_jax.training.precision import resolve_precision
from diffae_jax.training.sharding import make_mesh, on_host, replicated, split_batch, spread

Encode = Callable[[Source, int, int], Float[np.ndarray, "n d"]]


def run(config: ConfigDict, folder: Path, mesh: Mesh) -> None:
    """Encodes the training and the held-out images, without flips, part by part; parts that are there are kept.

    Each process encodes parts of its own on its own devices, so none waits for another until the statistics are taken.
    Raises UserError where there is no autoencoder, and for latents that another one made.
    """
    if config.model.z_dim is None:
        say("latents: a DDIM baseline has no z, so there is nothing to do.")
        return
    splits = dict(zip(("training", "held_out"), open_data(config, folder), strict=True))
    checkpoints, own = folder / "autoencoder" / "checkpoints", folder / "latents"
    params = on_host(load_ema(checkpoints, abstract_weights(config, mesh)["autoencoder"]))
    made_from = {"autoencoder_step": latest_step(checkpoints), "autoencoder": digest(params)}
    check_inputs(own, {**made_from, **describe_files(*splits.values())})
    num_images = sum(len(source) for source in splits.values())
    parts = [(split, source, start) for split, source in splits.items() for start in part_starts(len(source))]
    with together():  # nobody writes before all have looked
        missing = [i for i, (split, _, start) in enumerate(parts) if not part_path(own, split, start).exists()]
        finished = not missing and (own / STATISTICS).exists()
    if finished:
        say(f"latents: finished, z of {num_images:,} images.")
        return
    to_go = sum(min(PART_SIZE, len(source) - start) for _, source, start in (parts[i] for i in missing))
    found = f"{num_images:,} images, z of {config.model.z_dim} dimensions; {to_go:,} images to go"
    say(found + expected_time(folder, to_go))
    mine = [parts[i] for i in missing if i % jax.process_count() == jax.process_index()]
    with together():
        encode_parts(own, mine, encoder(config, params))
    with together():
        if is_main_process() and not (own / STATISTICS).exists():
            LatentStatistics.of(z for _, z in read_parts(own, "training")).save(own / STATISTICS)


def expected_time(folder: Path, num_images: int) -> str:
    """Ends a sentence with the time that it takes to encode images: less than training on them took."""
    speed = last_speed(folder, "images")
    return f", less than {duration(num_images / speed + 1)}." if speed else "."


def encode_parts(own: Path, parts: list[tuple[str, Source, int]], encode: Encode) -> None:
    """Encodes and writes parts, given by split, source and number of the first image."""
    stops = [min(start + PART_SIZE, len(source)) for _, source, start in parts]
    sizes = [stop - start for stop, (_, _, start) in zip(stops, parts, strict=True)]
    with contextlib.closing(Progress("images", sum(sizes), 0)) as progress:
        for (split, source, start), stop, size in zip(parts, stops, sizes, strict=True):
            write_part(part_path(own, split, start), source.ids[start:stop], encode(source, start, stop))
            progress.advance(size)


def encoder(config: ConfigDict, params: Params) -> Encode:
    """Returns what encodes the images from one number to another on the devices of this process alone."""
    mesh = make_mesh(jax.local_devices())
    graphdef, _ = abstract_model(builder(config, resolve_precision(config.train.precision)))
    whole = replicated(mesh)
    params = jax.tree.map(lambda a: spread(a, whole), params)
    share = config.train.batch_size // (config.execution.num_microbatches * jax.process_count())
    batch_size = max(1, min(PART_SIZE, share) // mesh.size) * mesh.size

    def encode_range(source, start, stop):
        batches = on_devices(ordered_batches(source, start, stop, batch_size), split_batch(mesh))
        z = [
            inference.encode(params, images, graphdef=graphdef) for images in batches
        ]  # none waits for another: z are small
        return np.concatenate(jax.device_get(z))[: stop - start]

    return encode_range
