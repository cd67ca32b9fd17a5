"""Stage 6: writes the trained model as one portable bundle."""

import dataclasses
import shutil

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.evaluation.model_card import card_of_run
from diffae_jax.inference.bundle import MANIFEST, probe_files, read_bundle
from diffae_jax.inference.card import CARD
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath
from diffae_jax.training.checkpoint import find_undamaged, latest_step


def run(config: ConfigDict, folder: AnyPath, mesh: Mesh) -> None:
    """Writes the model of a run as a bundle, unless the existing bundle holds the same model."""
    bundle = folder / "bundle"
    if is_main_process():
        for unfinished in folder.glob(f".{bundle.name}.*"):  # left on a disk by a killed process
            shutil.rmtree(unfinished)
    for stage in ("autoencoder", "prior"):
        if find_undamaged(folder / stage / "checkpoints")[1]:  # since the run has started
            raise UserError(f"A checkpoint of the {stage} is damaged: run the same command again to make it again.")
    model = DiffAE.load(folder, mesh)
    model.origin |= {
        "run": config.name,
        "diffae_jax": __version__,
        "latents_seen": config.prior.batch_size * (latest_step(folder / "prior" / "checkpoints") or 0),
        "digest": model.digest(),
    }
    with together():
        model.card = card_of_run(config, folder, model.origin["digest"])
    with together():  # all processes must check before one of them writes
        finished = is_exported(bundle, model)
    if finished:
        say(f"export: finished, {bundle}.")
        return
    with together():
        model.save(bundle)
    say(f"Wrote {bundle}. DiffAE.load opens it on any machine.")


def is_exported(bundle: AnyPath, model: DiffAE) -> bool:
    """Returns whether an undamaged bundle with the same origin, probes, license and card exists.

    The text of the card may have been edited.
    """
    if not (bundle / MANIFEST).exists():
        return False
    try:
        existing = read_bundle(bundle)
    except UserError as error:
        say(f"{error} The bundle is written again.")
        return False
    same_probes = probe_files(existing.probes.values()) == probe_files(model.probes.values())
    same_card = dataclasses.replace(existing.card, text=None) == model.card and (bundle / CARD).exists()
    same_license = existing.config.export == model.config.export
    return existing.origin == model.origin and same_probes and same_card and same_license
