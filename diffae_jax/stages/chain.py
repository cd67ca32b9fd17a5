"""The stages of a run, and the function that runs them in order."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.config import check_run
from diffae_jax.config.differences import flat
from diffae_jax.data.run_images import left_out
from diffae_jax.data.splits import as_source
from diffae_jax.inference.loading import name_encoder
from diffae_jax.runtime.cluster import check_clocks, check_equal_on_all, is_main_process, together
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, os_errors_as_user_errors, unforeseen
from diffae_jax.runtime.interrupts import RESUME, if_interrupted
from diffae_jax.runtime.logs import quiet_libraries
from diffae_jax.runtime.own_code import code_digest, import_own
from diffae_jax.runtime.process import check_main_guard
from diffae_jax.runtime.sharding import make_mesh
from diffae_jax.stages import autoencoder, evaluation, export, latents, prior, probes
from diffae_jax.stages.damage import set_aside_damage
from diffae_jax.stages.early_checks import check_folder, check_settings
from diffae_jax.stages.loss_terms import LossTerm
from diffae_jax.stages.origin import address_of, check_origin, record_origin
from diffae_jax.stages.run_folder import RunFolder, name_of, workdir_of
from diffae_jax.training.checkpoint import latest_step

MAY_DIFFER = ("data.path", "data.labels", "data.held_out", "execution.num_workers")  # between processes


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of a run, with its inputs and outputs in the run folder."""

    run: Callable[..., None]  # called with config, folder, mesh and the arguments in `takes`
    reads: str
    writes: str
    less_memory: str  # what to set if the devices run out of memory
    kept: Callable[[AnyPath], str]  # run folder -> what is kept if a signal ends the stage; a stage may know more
    takes: tuple[str, ...] = ()  # arguments of `run_stages` that are passed on to `run`


def saved_step(stage: str) -> Callable[[AnyPath], str]:
    """Returns a function that says which step of a training stage is saved in a run folder."""

    def kept(folder: AnyPath) -> str:
        step = latest_step(folder / stage / "checkpoints")
        return "no step is saved yet" if step is None else f"step {step:,} is saved"

    return kept


def nothing(_: AnyPath) -> str:
    """Says that a stage keeps no unfinished work."""
    return "nothing of this stage is kept"


STAGES = {
    "autoencoder": Stage(
        autoencoder.run,
        "the images",
        "autoencoder/",
        "set --config.execution.remat=True, a higher --config.execution.num_microbatches or a lower "
        "--config.train.batch_size",
        saved_step("autoencoder"),
        takes=("images", "loss_terms", "stages"),
    ),
    "latents": Stage(
        latents.run,
        "the images, autoencoder/",
        "latents/",
        "set a higher --config.execution.num_microbatches",
        lambda _: "all images that are already encoded are kept",
        takes=("images",),
    ),
    "prior": Stage(
        prior.run,
        "latents/, autoencoder/",
        "prior/",
        "set a lower --config.prior.batch_size or --config.report.num_sample_images; memory must also hold the z of "
        "all images",
        saved_step("prior"),
    ),
    "probes": Stage(
        probes.run,
        "the labels of the images, autoencoder/, latents/",
        "probes/",
        "use devices with more memory",
        nothing,
        takes=("images",),
    ),
    "evaluation": Stage(
        evaluation.run,
        "the images, autoencoder/, latents/, prior/",
        "evaluation/",
        "use devices with more memory",
        lambda _: "all programs that are already measured are kept",
        takes=("images",),
    ),
    "export": Stage(
        export.run, "autoencoder/, latents/, prior/, probes/", "bundle/", "use devices with more memory", nothing
    ),
}


def run_stages(
    config: ConfigDict,
    workdir: str | AnyPath | None = None,
    stages: list[str] | None = None,
    images: Any = None,
    encoder: type[nnx.Module] | None = None,
    loss_terms: dict[str, LossTerm] | None = None,
    init: str | AnyPath | None = None,
    branch: str | None = None,
) -> None:
    """Trains, evaluates and exports a model. The same call resumes a stopped run.

    The config in the run folder records the names of the encoder and of the loss terms. A run
    resumes only with the same ones.

    Args:
        config: The settings of the run. It is not changed.
        workdir: The run folder; default: `runs/NAME`, with the `name` of the config. A run in it
            that has begun keeps its name.
        stages: Names of the stages to run: autoencoder, latents, prior, probes, evaluation,
            export. They run in this order, whatever the order of the list. Default: all.
        images: Images to use instead of config.data.path: an array [N, *spatial, C], or a sequence
            of arrays, PIL images or paths. Its items may have labels: (image, label), or a dict.
        encoder: A class for the semantic encoder, used instead of config.model.encoder.kind: see
            `models.encoders`.
        loss_terms: Functions (z, batch, keys) -> [N] that are added to the loss of the autoencoder
            and logged under their names: see `stages.loss_terms`. Default: none.
        init: A bundle, also on the Hugging Face Hub, or a run folder. The run starts from its
            weights, where they fit. A run that has begun does not need it any more.
        branch: The name of a new run, in a folder next to the run folder. It continues the run
            with this config, from its newest checkpoint.

    Raises:
        UserError: The config, the data or the run folder cannot be used, or the devices have too
            little memory. The message names the fix.
        Stopped: SIGINT or SIGTERM stopped the training; the state is saved.
    """
    check_same_run(config, stages, init, branch)
    unknown = set(stages or ()) - STAGES.keys()
    if unknown:
        raise UserError(f"There is no stage {', '.join(sorted(unknown))}: the stages are {', '.join(STAGES)}.")
    config = config.copy_and_resolve_references()
    name_encoder(config, encoder)
    if loss_terms:
        config.train.loss_terms = tuple(sorted(loss_terms))
    folder, parent = workdir_of(workdir, config, branch), None
    if branch is not None:
        parent, config.name = workdir_of(workdir, config), branch
    init = None if init is None else address_of(init)
    check_run(config)
    check_main_guard(config.execution.num_workers)
    if ":" in config.model.encoder.kind:  # the user's own config may import code; a downloaded bundle may not
        import_own(config.model.encoder.kind.partition(":")[0])
    if images is not None:
        images = as_source(images, tuple(config.image_shape))  # once, as it collects labels while it is read
    chosen = [name for name in STAGES if stages is None or name in stages]
    given = {"images": images, "loss_terms": loss_terms or {}, "stages": chosen}
    enable_compilation_cache()
    mesh = make_mesh()
    with together(), os_errors_as_user_errors(folder):
        if workdir is not None and branch is None:
            config.name = name_of(folder, config)
        check_settings(config, chosen, mesh.size)
        check_origin(config, folder, init, parent, mesh)
    with quiet_libraries(), RunFolder(folder, config) as folder:
        with together():
            if is_main_process():
                set_aside_damage(folder.path)
        with together():
            check_folder(config, folder.path, chosen)
        record_origin(config, folder.path, init, parent, mesh)
        for name in chosen:
            stage = STAGES[name]
            say(f"Stage {name}: reads {stage.reads}; writes {folder.path / stage.writes}")
            with faults_in_sentences(name, folder.path):
                stage.run(config, folder.path, mesh, **{name: given[name] for name in stage.takes})
        if stages is None:
            say(final_summary(config, folder.path))
        elif note := left_out(folder.path):
            say(note)


def check_same_run(
    config: ConfigDict, stages: list[str] | None, init: str | AnyPath | None, branch: str | None
) -> None:
    """Raises UserError on all processes if their code, config, flags or clocks differ."""
    if not jax.distributed.is_initialized():  # hashing the code takes time
        return
    check_clocks()
    code = {"diffae_jax": f"version {__version__}, code {code_digest():.8}", "jax": jax.__version__}
    check_equal_on_all(code, "Install the same version on all machines")
    settings = {f"config.{key}": value for key, value in flat(config.to_dict()).items() if key not in MAY_DIFFER}
    flags = {"stages": stages, "init": None if init is None else str(init), "branch": branch}
    check_equal_on_all(flags | settings, "Start all processes with the same flags")


@contextlib.contextmanager
def faults_in_sentences(name: str, folder: AnyPath) -> Iterator[None]:
    """Converts faults of devices and disks in a stage into a UserError, and explains signals."""
    try:
        with if_interrupted(partial(report_interruption, name, folder)):
            yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"The devices have too little memory for the stage {name}: {STAGES[name].less_memory}."
        ) from error
    except BrokenPipeError:  # of the output
        raise
    except OSError as error:
        raise unforeseen(error, folder, f"The stage {name} stopped: ") from error


def report_interruption(name: str, folder: AnyPath) -> str:
    """Says what is kept of an interrupted stage, and how to resume."""
    return f"the stage {name} stopped; {STAGES[name].kept(folder)}. {RESUME}"


def final_summary(config: ConfigDict, folder: AnyPath) -> str:
    """Lists the results of a finished run, and shows how to use its model."""
    has_z = config.model.z_dim is not None
    pictures = {
        "evaluation/report.html": "the measurements; open it in a browser",
        "evaluation/reconstructions.png": "images and their reconstructions",
        "evaluation/samples.png": "new images",
        "autoencoder/grids": "reconstructions during training",
        "prior/grids": "samples during training",
    }
    results = [f"  {folder / name}: {meaning}" for name, meaning in pictures.items() if (folder / name).exists()]
    bundle = folder / "bundle"
    return "\n".join(
        [
            "\nResults:",
            *results,
            *filter(None, [left_out(folder)]),
            f"The model is in {bundle}, one folder to keep or share. To use it:",
            "  from diffae_jax import DiffAE",
            f'  model = DiffAE.load("{bundle}")',
            *(["  z = model.encode(images)           # latent codes"] if has_z else []),
            "  again = model.reconstruct(images)  # nearly the same images",
            "  new = model.sample(16, seed=1)     # new images",
        ]
    )
