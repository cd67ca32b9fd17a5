"""Stage 6: writes the trained model as one portable bundle."""

import shutil

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.evaluation.model_card import card_of_run
from diffae_jax.inference.bundle import MANIFEST, Bundle, probe_files, read_bundle
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
        existing = read_existing(bundle)
        finished = existing is not None and is_same(existing, model) and (bundle / CARD).exists()
    if finished:
        say(f"export: finished, {bundle}.")
        return
    if existing is not None and existing.origin.get("digest") == model.origin["digest"]:
        model.recommended = existing.recommended  # diffae budget has measured these weights
    with together():
        model.save(bundle)
    say(f"Wrote {bundle}. DiffAE.load opens it on any machine.")


def read_existing(path: AnyPath) -> Bundle | None:
    """Reads the bundle of an earlier export, or returns None if there is none or it is damaged."""
    if not (path / MANIFEST).exists():
        return None
    try:
        return read_bundle(path)
    except UserError as error:
        say(f"{error} The bundle is written again.")
        return None


def is_same(bundle: Bundle, model: DiffAE) -> bool:
    """Returns whether a bundle has the origin, probes, license and card of a model.

    The card may have been edited.
    """
    same_probes = probe_files(bundle.probes.values()) == probe_files(model.probes.values())
    same_card = model.card.with_edits_of(bundle.card, pictures=model.config.export.pictures) == bundle.card
    return bundle.origin == model.origin and same_probes and same_card and bundle.config.export == model.config.export
