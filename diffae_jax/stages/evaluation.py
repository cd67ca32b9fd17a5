"""Stage 5: measures the trained model and writes results.json, pictures and report.html."""

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.data.run_images import open_data
from diffae_jax.evaluation.evaluate import evaluate
from diffae_jax.evaluation.results import REPORT
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.encode_dataset import open_for
from diffae_jax.runtime.console import say
from diffae_jax.runtime.files import AnyPath
from diffae_jax.stages.run_folder import is_begun
from diffae_jax.training.metrics import last_speed


def run(config: ConfigDict, folder: AnyPath, mesh: Mesh, images: Any = None) -> None:
    """Runs the programs of config.evaluation on the held-out images; see `evaluate`."""
    training, held_out = open_data(config, folder, images, begun=is_begun(folder))
    output, settings = folder / "evaluation", config.evaluation
    if not len(held_out):
        held_out = training
        say("No images are held out (--config.data.held_out_share), so the evaluation uses training images.")
    model = DiffAE.load(folder, mesh)
    results = evaluate(
        model,
        held_out,
        training,
        settings,
        output,
        seed=config.seed,
        baseline=DiffAE.load(settings.baseline, mesh) if settings.baseline else None,
        others=tuple(DiffAE.load(path, mesh) for path in settings.others),
        foreign=open_for(model, settings.foreign) if settings.foreign else None,
        images_per_second=last_speed(folder, "images"),
    )
    if results is None:
        say(f"evaluation: finished, figures in {output / REPORT}.")
    else:
        say(f"The report: {output / REPORT}")
