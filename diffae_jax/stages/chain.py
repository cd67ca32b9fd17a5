"""The stages in their order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from diffae_jax.config import check_run
from diffae_jax.data.run_images import left_out
from diffae_jax.inference.loading import name_encoder
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.logs import preserve_root_logger
from diffae_jax.runtime.own_code import import_own
from diffae_jax.runtime.sharding import check_batch_size, make_mesh
from diffae_jax.stages import autoencoder, evaluation, export, latents, prior, probes
from diffae_jax.stages.loss_terms import LossTerm
from diffae_jax.stages.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Stage:
    """A link of the chain: what it does in a run folder, and what it reads and writes there."""

    run: Callable[..., None]  # of config, folder and mesh, and of what it takes
    reads: str
    writes: str
    less_memory: str  # flags that make it need less
    takes: tuple[str, ...] = ()  # of the arguments of `run_stages`


STAGES = {
    "autoencoder": Stage(
        autoencoder.run,
        "the images",
        "autoencoder/",
        "--config.execution.remat=True, a higher --config.execution.num_microbatches or a lower "
        "--config.train.batch_size",
        takes=("images", "loss_terms"),
    ),
    "latents": Stage(
        latents.run,
        "the images, autoencoder/",
        "latents/",
        "a higher --config.execution.num_microbatches",
        takes=("images",),
    ),
    "prior": Stage(
        prior.run,
        "latents/, autoencoder/",
        "prior/",
        "a lower --config.prior.batch_size or --config.report.num_sample_images; z of all images have to fit",
    ),
    "probes": Stage(
        probes.run,
        "the labels of the images, autoencoder/, latents/",
        "probes/",
        "devices with more memory",
        takes=("images",),
    ),
    "evaluation": Stage(
        evaluation.run,
        "the images, autoencoder/, latents/, prior/",
        "evaluation/",
        "devices with more memory",
        takes=("images",),
    ),
    "export": Stage(export.run, "autoencoder/, latents/, prior/, probes/", "bundle/", "devices with more memory"),
}


def run_stages(
    config: ConfigDict,
    workdir: str | None = None,
    stages: list[str] | None = None,
    images: Any = None,  # arrays or PIL images, in place of what lies at config.data.path
    encoder: type[nnx.Module] | None = None,  # in place of the one that the config names: see models/encoders.py
    loss_terms: dict[str, LossTerm] | None = None,  # added to the loss of the autoencoder, by the names they are logged
) -> None:
    """Runs the named stages, by default all, in a run folder. Raises UserError for a user's mistakes.

    The config that the run and its bundle keep names the encoder and the loss terms. A run goes on with the same ones.
    """
    unknown = set(stages or ()) - STAGES.keys()
    if unknown:
        raise UserError(f"There is no stage {', '.join(sorted(unknown))}: the stages are {', '.join(STAGES)}.")
    config = config.copy_and_resolve_references()
    name_encoder(config, encoder)
    if loss_terms:
        config.train.loss_terms = tuple(sorted(loss_terms))
    check_run(config)
    if ":" in config.model.encoder.kind:  # which the user wrote, who may run what they like
        import_own(config.model.encoder.kind.partition(":")[0])
    given = {"images": images, "loss_terms": loss_terms or {}}
    enable_compilation_cache()
    mesh = make_mesh()
    if config.model.z_dim is not None and (stages is None or "prior" in stages):  # not after days of training
        check_batch_size("prior.batch_size", config.prior.batch_size, mesh.size)
    with preserve_root_logger(), RunFolder(workdir or Path("runs") / config.name, config) as folder:
        for name, stage in STAGES.items():
            if stages is None or name in stages:
                say(f"Stage {name}: reads {stage.reads} and writes {folder.path / stage.writes}")
                try:
                    stage.run(config, folder.path, mesh, **{name: given[name] for name in stage.takes})
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    raise UserError(
                        f"The devices have too little memory for the stage {name}: give it {stage.less_memory}."
                    ) from error
        if stages is None:
            say(final_summary(config, folder.path))
        elif note := left_out(folder.path):
            say(note)


def final_summary(config: ConfigDict, folder: Path) -> str:
    """Says where the results of a finished run are, and what to try next."""
    has_z = config.model.z_dim is not None
    pictures = {
        "evaluation/report.html": "what was measured, to be opened in a browser",
        "evaluation/reconstructions.png": "images and what comes back of them",
        "evaluation/samples.png": "new images",
        "autoencoder/grids": "reconstructions during training",
        "prior/grids": "samples during training",
    }
    found = [f"  {folder / name}: {what}" for name, what in pictures.items() if (folder / name).exists()]
    bundle = folder / "bundle"
    return "\n".join(
        [
            "\nResults:",
            *found,
            *filter(None, [left_out(folder)]),
            f"The model: {bundle}, one folder to keep and to share. To go on:",
            "  from diffae_jax import DiffAE",
            f'  model = DiffAE.load("{bundle}")',
            *(["  z = model.encode(images)           # what your images mean"] if has_z else []),
            "  again = model.reconstruct(images)  # almost the same images",
            "  new = model.sample(16, seed=1)     # new ones",
        ]
    )
