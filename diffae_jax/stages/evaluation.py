"""Stage 5: the paper's measurements of the trained model, as results.json, pictures and report.html."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.data.run_images import open_data
from diffae_jax.evaluation.evaluate import evaluate
from diffae_jax.evaluation.results import REPORT
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.encode_dataset import open_for
from diffae_jax.runtime.console import say
from diffae_jax.stages.run_folder import is_begun
from diffae_jax.training.metrics import last_speed


def run(config: ConfigDict, folder: Path, mesh: Mesh, images: Any = None) -> None:
    """Measures a trained run by the programs of config.evaluation, on its held-out images; see `evaluate`."""
    training, held_out = open_data(config, folder, images, begun=is_begun(folder))
    own, settings = folder / "evaluation", config.evaluation
    if not len(held_out):
        held_out = training
        say("No images are held out (--config.data.held_out_share), so what follows is measured on training images.")
    model = DiffAE.load(folder, mesh)
    found = evaluate(
        model,
        held_out,
        training,
        settings,
        own,
        seed=config.seed,
        baseline=DiffAE.load(settings.baseline, mesh) if settings.baseline else None,
        others=tuple(DiffAE.load(path, mesh) for path in settings.others),
        foreign=open_for(model, settings.foreign) if settings.foreign else None,
        images_per_second=last_speed(folder, "images"),
    )
    if found is None:
        say(f"evaluation: finished, figures in {own / REPORT}.")
    else:
        say(f"The report: {own / REPORT}")
