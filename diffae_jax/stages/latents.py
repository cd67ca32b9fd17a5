"""Stage 2: images -> z of every image of the data set, by the averaged encoder, and their statistics (Sec. 4)."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.data.latents import (
    CHUNK_SIZE,
    STATISTICS,
    LatentStatistics,
    chunk_path,
    chunk_starts,
    read_chunks,
)
from diffae_jax.data.run_images import facts, open_data
from diffae_jax.inference.encode_dataset import encode_chunks, encoder
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models.functional import digest
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import duration, say
from diffae_jax.runtime.sharding import on_host
from diffae_jax.stages.run_folder import check_inputs, is_begun
from diffae_jax.training.checkpoint import latest_step, load_ema
from diffae_jax.training.metrics import last_speed


def run(config: ConfigDict, folder: Path, mesh: Mesh, images: Any = None) -> None:
    """Encodes the training and the held-out images, without flips, part by part; parts that are there are kept.

    Each process encodes parts of its own on its own devices, so none waits for another until the statistics are taken.
    Raises UserError where there is no autoencoder, and for latents that another one made.
    """
    if config.model.z_dim is None:
        say("latents: a DDIM baseline has no z, so there is nothing to do.")
        return
    splits = dict(zip(("training", "held_out"), open_data(config, folder, images, begun=is_begun(folder)), strict=True))
    checkpoints, own = folder / "autoencoder" / "checkpoints", folder / "latents"
    params = on_host(load_ema(checkpoints, abstract_weights(config, mesh)["autoencoder"]))
    made_from = {"autoencoder_step": latest_step(checkpoints), "autoencoder": digest(params)}
    check_inputs(own, {**made_from, **facts(*splits.values())})
    num_images = sum(len(source) for source in splits.values())
    parts = [(split, source, start) for split, source in splits.items() for start in chunk_starts(len(source))]
    with together():  # nobody writes before all have looked
        missing = [i for i, (split, _, start) in enumerate(parts) if not chunk_path(own, split, start).exists()]
        finished = not missing and (own / STATISTICS).exists()
    if finished:
        say(f"latents: finished, z of {num_images:,} images.")
        return
    to_go = sum(min(CHUNK_SIZE, len(source) - start) for _, source, start in (parts[i] for i in missing))
    found = f"{num_images:,} images, z of {config.model.z_dim} dimensions; {to_go:,} images to go"
    say(found + expected_time(folder, to_go))
    mine = [parts[i] for i in missing if i % jax.process_count() == jax.process_index()]
    share = config.train.batch_size // (config.execution.num_microbatches * jax.process_count())
    with together():
        encode_chunks(own, mine, encoder(config, params, share))
    with together():
        if is_main_process() and not (own / STATISTICS).exists():
            LatentStatistics.of(z for _, z in read_chunks(own, "training")).save(own / STATISTICS)


def expected_time(folder: Path, num_images: int) -> str:
    """Ends a sentence with the time that it takes to encode images: less than training on them took."""
    speed = last_speed(folder, "images")
    return f", less than {duration(num_images / speed + 1)}." if speed else "."
