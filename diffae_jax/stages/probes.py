"""Stage 4: fits a probe for each label, on z of the training images (Appendix A.2)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from diffae_jax.data.labels.matching import fingerprint
from diffae_jax.data.latents import INPUTS, LatentStatistics, read_chunks, read_inputs
from diffae_jax.data.run_images import open_data
from diffae_jax.data.splits import notes_on_labels
from diffae_jax.inference.bundle import check_probe_name, probe_files
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.models.functional import digest
from diffae_jax.probes import ClassProbe, Probe, check_labels, describe, fit, is_known
from diffae_jax.runtime.checksums import describe_files
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, local_copy, os_errors_as_user_errors, write_json
from diffae_jax.runtime.sharding import on_host
from diffae_jax.stages.run_folder import is_begun


def run(config: ConfigDict, folder: AnyPath, mesh: Mesh, images: Any = None) -> None:
    """Fits a probe for each label on z of the training images, and measures it on held-out images.

    If the weights or the labels have changed, all probes are fitted again. Raises UserError if
    there are no z.
    """
    if config.model.z_dim is None:
        say("probes: a DDIM baseline has no z, so there is nothing to do.")
        return
    splits = dict(zip(("training", "held_out"), open_data(config, folder, images, begun=is_begun(folder)), strict=True))
    if not splits["training"].labels:
        say("probes: the images have no labels (--config.data.labels=FILE.csv), so there is nothing to do.")
        return
    output, latents = folder / "probes", folder / "latents"
    model = DiffAE.load(folder, mesh)
    if model.statistics is None:
        raise UserError(f"{latents} has no statistics of z, which probes need: run --stages=latents first.")
    inputs = {
        "autoencoder": digest(on_host(model.params)),
        "statistics": digest(dataclasses.asdict(model.statistics)),
        "labels": fingerprint(*(source.labels for source in splits.values())),
    }
    with together():  # all processes must check before one of them writes
        finished = (output / INPUTS).exists() and inputs.items() <= read_inputs(output).items()
    if finished:
        say(f"probes: finished, {', '.join(model.probes) or 'none'}.")
        return
    with together():
        if is_main_process():
            for note in notes_on_labels(config.data.labels, *splits.values(), id_column=config.data.id_column):
                say(note)
            z = {split: _normalized(latents, split, source.ids, model.statistics) for split, source in splits.items()}
            _write(output, _fit_all(z, {split: source.labels for split, source in splits.items()}), inputs)


def _normalized(
    latents: AnyPath, split: str, ids: Sequence[str], statistics: LatentStatistics
) -> Float[np.ndarray, "n d"]:
    """Returns normalized z of a split. Raises UserError if it has different images."""
    z, encoded = [np.empty((0, len(statistics.mean)), np.float32)], []
    for names, chunk in read_chunks(latents, split):
        z.append(statistics.normalize(chunk))
        encoded += names
    if encoded != list(ids):
        raise UserError(f"{latents} holds z of other images than those of the data set. Remove it and run again.")
    return np.concatenate(z)


def _fit_all(z: dict[str, np.ndarray], labels: dict[str, Mapping[str, np.ndarray]]) -> list[Probe | ClassProbe]:
    """Returns a probe for each label. If one cannot be fitted, prints the reason."""
    probes = []
    for name, values in labels["training"].items():
        try:
            check_label_name(name)
            probes.append(fit(name, z["training"], values, held_out=(z["held_out"], labels["held_out"][name])))
        except UserError as error:
            say(f"  no probe: {error}")
            continue
        say(f"  {describe(probes[-1])}")
    if probes:
        say("  Probes are fitted for edits. Linear models that only predict a label do better: see the evaluation.")
    return probes


def notes_on_probes(labels: Mapping[str, np.ndarray]) -> list[str]:
    """Returns sentences on the labels of the training images to which no probe can be fitted.

    Labels with fewer than two values are not among them: `data.splits.notes_on_labels` has these.
    """
    sentences = []
    for name, values in labels.items():
        if len(set(values[is_known(values)].tolist())) > 1:
            try:
                check_label_name(name)
                check_labels(name, values)
            except UserError as error:
                sentences.append(f"No probe will be fitted: {error}")
    return sentences


def check_label_name(name: str) -> None:
    """Raises UserError if the probe of a label cannot be written to a file."""
    check_probe_name(name)
    if f"{name}.json" == INPUTS:
        raise UserError(f"A label cannot be called {name}, because its file name is reserved. Rename the label.")


def _write(output: AnyPath, probes: list[Probe | ClassProbe], inputs: dict[str, Any]) -> None:
    """Replaces the files of all probes. The record comes last, when all probes are complete."""
    contents = probe_files(probes)
    with os_errors_as_user_errors(output, "written"):
        output.mkdir(exist_ok=True)
        (output / INPUTS).unlink(missing_ok=True)
        for file in output.glob("*.json"):
            file.unlink()
        for name, content in contents.items():
            (output / name).write_text(content)
        with local_copy(output) as local:
            files = describe_files(local, contents)
        write_json(output / INPUTS, inputs | {"files": files})
