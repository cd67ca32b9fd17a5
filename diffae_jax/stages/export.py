"""Last stage: the run -> one portable bundle."""

import shutil
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.api import DiffAE
from diffae_jax.bundle import MANIFEST, read_manifest
from diffae_jax.models.functional import digest
from diffae_jax.training.checkpoint import latest_step
from diffae_jax.training.logging import is_main_process, say
from diffae_jax.training.sharding import on_host


def run(config: ConfigDict, folder: Path, mesh: Mesh) -> None:
    """Writes the model of a run as a bundle, unless the one that is there holds the same."""
    bundle = folder / "bundle"
    if is_main_process():
        for unfinished in folder.glob(f".{bundle.name}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(unfinished)
    model = DiffAE.load(folder, mesh)
    weights = on_host({"autoencoder": model.params} | ({} if model.prior is None else {"prior": model.prior}))
    model.origin = {
        "run": config.name,
        "diffae_jax": __version__,
        "images_seen": config.train.batch_size * latest_step(folder / "autoencoder" / "checkpoints"),
        "latents_seen": config.prior.batch_size * (latest_step(folder / "prior" / "checkpoints") or 0),
        "weights": digest(weights),
    }
    if (bundle / MANIFEST).exists() and read_manifest(bundle).get("origin") == model.origin:
        say(f"export: finished, {bundle}.")
        return
    model.save(bundle)
    say(f"Wrote {bundle}: DiffAE.load opens it anywhere.")
