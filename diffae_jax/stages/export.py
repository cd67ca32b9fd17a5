"""Last stage: the run -> one portable bundle."""

import shutil
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.inference.bundle import MANIFEST, probe_files, read_bundle
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.training.checkpoint import latest_step


def run(config: ConfigDict, folder: Path, mesh: Mesh) -> None:
    """Writes the model of a run as a bundle, unless the one that is there holds the same."""
    bundle = folder / "bundle"
    if is_main_process():
        for unfinished in folder.glob(f".{bundle.name}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(unfinished)
    model = DiffAE.load(folder, mesh)
    model.origin = {
        "run": config.name,
        "diffae_jax": __version__,
        "images_seen": config.train.batch_size * latest_step(folder / "autoencoder" / "checkpoints"),
        "latents_seen": config.prior.batch_size * (latest_step(folder / "prior" / "checkpoints") or 0),
        "digest": model.digest(),
    }
    with together():  # nobody writes before all have looked
        finished = is_there(bundle, model)
    if finished:
        say(f"export: finished, {bundle}.")
        return
    with together():
        model.save(bundle)
    say(f"Wrote {bundle}: DiffAE.load opens it anywhere.")


def is_there(bundle: Path, model: DiffAE) -> bool:
    """Whether a bundle of that model's origin and probes is there, undamaged."""
    if not (bundle / MANIFEST).exists():
        return False
    try:
        found = read_bundle(bundle)
    except UserError as error:
        say(f"{error} It is written anew.")
        return False
    return found.origin == model.origin and probe_files(found.probes.values()) == probe_files(model.probes.values())
