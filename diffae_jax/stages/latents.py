"""Stage 2: encodes every image to z with the EMA weights, computes statistics of z (Sec. 4)."""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.data.latents import (
    CHUNK_SIZE,
    STATISTICS,
    LatentStatistics,
    chunk_starts,
    is_encoded,
    read_chunks,
)
from diffae_jax.data.run_images import facts, open_data
from diffae_jax.inference.encode_dataset import encode_chunks, encoder, report_interruption
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models.functional import digest
from diffae_jax.runtime.cluster import check_equal_on_all, is_main_process, together
from diffae_jax.runtime.console import duration, say
from diffae_jax.runtime.files import AnyPath
from diffae_jax.runtime.interrupts import if_interrupted
from diffae_jax.stages.run_folder import check_inputs, is_begun
from diffae_jax.training.checkpoint import load_ema
from diffae_jax.training.metrics import last_speed


def run(config: ConfigDict, folder: AnyPath, mesh: Mesh, images: Any = None) -> None:
    """Encodes the training and held-out images in chunks, without flips. Finished chunks are kept.

    Each process encodes its own share of the chunks on its own devices; the processes synchronize
    only before the statistics. Raises UserError if there is no autoencoder, or if the existing
    latents come from a different one.
    """
    if config.model.z_dim is None:
        say("latents: a DDIM baseline has no z, so there is nothing to do.")
        return
    splits = dict(zip(("training", "held_out"), open_data(config, folder, images, begun=is_begun(folder)), strict=True))
    checkpoints, output = folder / "autoencoder" / "checkpoints", folder / "latents"
    params, step, _ = load_ema(checkpoints, abstract_weights(config, mesh)["autoencoder"])
    made_from = {"autoencoder_step": step, "autoencoder": digest(params)}
    check_equal_on_all(made_from, "Check that all machines share the run folder")
    check_inputs(output, {**made_from, **facts(*splits.values())})
    num_images = sum(len(source) for source in splits.values())
    chunks = [(split, source, start) for split, source in splits.items() for start in chunk_starts(len(source))]
    with together():  # all processes must check before one of them writes
        missing = [
            i for i, (split, source, start) in enumerate(chunks) if not is_encoded(output, split, start, len(source))
        ]
        statistics = LatentStatistics.load_if_undamaged(output / STATISTICS)
        finished = not missing and statistics is not None
    if finished:
        say(f"latents: finished, z of {num_images:,} images.")
        return
    num_left = sum(min(CHUNK_SIZE, len(source) - start) for _, source, start in (chunks[i] for i in missing))
    summary = f"{num_images:,} images, z of {config.model.z_dim} dimensions; {num_left:,} images left to encode"
    say(summary + expected_time(folder, num_left))
    chunks_here = [chunks[i] for i in missing if i % jax.process_count() == jax.process_index()]
    batch_size = config.train.batch_size // (config.execution.num_microbatches * jax.process_count())
    with together(), if_interrupted(partial(report_interruption, output, chunks)):
        encode_chunks(output, chunks_here, encoder(config, params, batch_size))
    with together():
        if is_main_process() and statistics is None:
            LatentStatistics.of(z for _, z in read_chunks(output, "training")).save(output / STATISTICS)


def expected_time(folder: AnyPath, num_images: int) -> str:
    """Returns text such as ", in less than 5 min.", to append to a sentence."""
    speed = last_speed(folder, "images")
    return f", in less than {duration(num_images / speed + 1)}." if speed else "."
