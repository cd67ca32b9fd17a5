"""Stage 4: z and labels -> a probe of each label (Appendix A.2)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from diffae_jax.data.detect import notes_on_labels
from diffae_jax.data.labels.matching import fingerprint
from diffae_jax.data.latents import INPUTS, LatentStatistics, read_chunks, read_inputs
from diffae_jax.data.run_images import open_data
from diffae_jax.inference.bundle import probe_files
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.models.functional import digest
from diffae_jax.probes import ClassProbe, Probe, describe, fit
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import os_errors_as_user_errors, write_json
from diffae_jax.runtime.sharding import on_host
from diffae_jax.stages.run_folder import is_begun


def run(config: ConfigDict, folder: Path, mesh: Mesh, images: Any = None) -> None:
    """Fits a probe of each label of the data set to z of the training images, and measures it on the held-out ones.

    Probes of other weights or labels are made anew. Raises UserError where there are no z.
    """
    if config.model.z_dim is None:
        say("probes: a DDIM baseline has no z, so there is nothing to do.")
        return
    splits = dict(zip(("training", "held_out"), open_data(config, folder, images, begun=is_begun(folder)), strict=True))
    if not splits["training"].labels:
        say("probes: the images have no labels (--config.data.labels=FILE.csv), so there is nothing to do.")
        return
    own, latents = folder / "probes", folder / "latents"
    model = DiffAE.load(folder, mesh)
    if model.statistics is None:
        raise UserError(f"{latents} has no statistics of z, which probes are fitted to: run --stages=latents first.")
    inputs = {
        "autoencoder": digest(on_host(model.params)),
        "statistics": digest(dataclasses.asdict(model.statistics)),
        "labels": fingerprint(*(source.labels for source in splits.values())),
    }
    with together():  # nobody writes before all have looked
        finished = (own / INPUTS).exists() and read_inputs(own) == inputs
    if finished:
        say(f"probes: finished, {', '.join(model.probes) or 'none'}.")
        return
    with together():
        if is_main_process():
            for note in notes_on_labels(config.data.labels, *splits.values()):
                say(note)
            z = {split: _normalized(latents, split, source.ids, model.statistics) for split, source in splits.items()}
            _write(own, _fitted(z, {split: source.labels for split, source in splits.items()}), inputs)


def _normalized(
    latents: Path, split: str, ids: Sequence[str], statistics: LatentStatistics
) -> Float[np.ndarray, "n d"]:
    """Returns normalized z of a split. Raises UserError unless they are of the images of these ids."""
    z, encoded = [np.empty((0, len(statistics.mean)), np.float32)], []
    for names, part in read_chunks(latents, split):
        z.append(statistics.normalize(part))
        encoded += names
    if encoded != list(ids):
        raise UserError(f"{latents} holds z of other images than the data set: remove that folder to make it anew.")
    return np.concatenate(z)


def _fitted(z: dict[str, np.ndarray], labels: dict[str, Mapping[str, np.ndarray]]) -> list[Probe | ClassProbe]:
    """Returns the probes of all labels that one can be fitted to; of the others it is said why not."""
    probes = []
    for name, values in labels["training"].items():
        try:
            if f"{name}.json" == INPUTS:
                raise UserError(f"A label cannot be called {name}, for its file would be the record of the stage.")
            probes.append(fit(name, z["training"], values, held_out=(z["held_out"], labels["held_out"][name])))
        except UserError as error:
            say(f"  no probe: {error}")
            continue
        say(f"  {describe(probes[-1])}")
    return probes


def _write(own: Path, probes: list[Probe | ClassProbe], inputs: dict[str, Any]) -> None:
    """Writes the files of probes in place of others that were there; the record comes last, so that it is of all."""
    contents = probe_files(probes)
    with os_errors_as_user_errors(own, "written"):
        own.mkdir(exist_ok=True)
        (own / INPUTS).unlink(missing_ok=True)
        for file in own.glob("*.json"):
            file.unlink()
        for name, content in contents.items():
            (own / name).write_text(content)
        write_json(own / INPUTS, inputs)
