"""Runs the programs of an evaluation, one after the other, and writes their results."""

import hashlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.config import check_measured, default
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.inspect.scan import scan
from diffae_jax.data.labels.matching import fingerprint
from diffae_jax.data.sources import Source, TransformedSource
from diffae_jax.data.transforms import format_size
from diffae_jax.diffusion.process import image_process, latent_process
from diffae_jax.evaluation import results
from diffae_jax.evaluation.chunk_cache import INPUTS, ChunkCache
from diffae_jax.evaluation.networks.feature_spaces import inception_problem, load_inception, load_lpips, lpips_problem
from diffae_jax.evaluation.pace import Pace
from diffae_jax.evaluation.paper.claims import claims
from diffae_jax.evaluation.programs import PROGRAMS, skip_reason
from diffae_jax.evaluation.report.page import write_report
from diffae_jax.evaluation.results import REPORT, RESULTS, Results, Section
from diffae_jax.evaluation.study import Networks, Study
from diffae_jax.evaluation.training_signs import undertrained
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.encode_dataset import describe
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, counted, list_some, shown
from diffae_jax.runtime.files import AnyPath, expand_home, read_json
from diffae_jax.runtime.interrupts import RESUME, if_interrupted

# Settings that change no figure, or that only name files whose content is part of the inputs.
NEUTRAL_SETTINGS = (
    "programs", "download", "baseline", "others", "foreign", "inception", "alexnet", "lpips",
)  # fmt: skip
CHUNKS = "chunks"
STEP_IN_CALLS = 3  # a training step takes at least as long as this number of calls of the network
# Claims look up figures by name: increase NAMES after renaming a program, metric or row, or after
# changing the order of the images. Old results are then measured again.
NAMES = 3


def evaluate(
    model: DiffAE,
    images: Source,
    training: Source | None,
    settings: ConfigDict,
    folder: AnyPath,
    *,
    seed: int = 0,
    baseline: DiffAE | None = None,
    others: tuple[DiffAE, ...] = (),
    foreign: Source | None = None,
    images_per_second: float | None = None,
    networks: Networks | None = None,
    replace: bool = True,
) -> Results | None:
    """Measures a model and writes results.json, report.html and pictures to a folder.

    Programs that are already in results.json are not run again. A stopped evaluation resumes.

    Args:
        model: The model to measure.
        images: The images to measure. If no images are held out, pass `training` here as well.
        training: The images that the model was trained on, or None if they are not available.
        settings: The settings, as in `config.evaluation`.
        folder: The output folder. It is created if it does not exist.
        seed: The seed for the selection of images, for x_T and for samples. Default: 0.
        baseline: A DDIM baseline, without z, to compare with.
        others: Models with different sizes of z to compare with.
        foreign: Images of a different kind, for the program `out_of_distribution`.
        images_per_second: The speed of training, if known. It is reported, and used to estimate
            the duration.
        networks: The networks of FID and LPIPS. By default they are read from the files that
            `settings` names, or from the download cache.
        replace: Whether to replace the results of a different model, images or settings.

    Returns:
        The results, or None if all programs were already measured.

    Raises:
        UserError: If a model cannot be compared with `model` (a baseline with a z, other models
            without one, a different image shape), if a weights file is not the published one, or
            if the folder holds results of different inputs and `replace` is False.

    Source: Sec. 5 and the appendices.
    """
    folder = expand_home(folder)
    check_comparable(model.config, baseline and baseline.config, [other.config for other in others])
    settings = settings.copy_and_resolve_references()
    check_measured(settings)
    for key in ("num_steps", "num_sample_steps"):
        settings[key] = tuple(sorted(set(settings[key])))
    networks = networks or public_networks(model, settings)
    inputs = {
        "diffae_jax": __version__,
        "names": NAMES,
        "model": model_identity(model),
        "baseline": baseline and model_identity(baseline),
        "others": [model_identity(other) for other in others],
        "images": describe(images),
        "training": training and describe(training),
        "foreign": foreign and describe(foreign),
        "labels": fingerprint(images.labels, training.labels if training is not None else {}),
        "seed": seed,
        "networks": [name for name in ("inception", "lpips") if getattr(networks, name) is not None],
        "settings": _settings_of_figures(settings),
    }
    inputs = json.loads(json.dumps(inputs))  # as it looks when read back from JSON
    with together():  # no process may write before all processes have read
        sections = _previous_sections(folder, inputs, replace)
    cache = ChunkCache(folder / CHUNKS, inputs)
    if all(name in sections for name in settings.programs) and (folder / REPORT).exists():
        cache.remove()
        return None
    if not sections and is_main_process():  # existing results have different inputs
        for name in (RESULTS, REPORT):
            (folder / name).unlink(missing_ok=True)
    study = Study(
        model, images, training, settings, seed, folder, cache, networks,
        baseline=baseline, others=others, foreign=foreign, images_per_second=images_per_second,
    )  # fmt: skip
    written = _measure(study, sections)
    if is_main_process():
        write_report(folder, written)
    cache.remove()
    return written


def _measure(study: Study, sections: dict[str, Section]) -> Results:
    """Runs the programs that are not in `sections`, and writes the results after each of them."""
    remaining = [name for name in study.settings.programs if name not in sections]
    skipped = {name: reason for name in remaining if (reason := skip_reason(name, study)) is not None}
    pace = Pace({name: PROGRAMS[name].num_calls(study) for name in remaining if name not in skipped})
    if study.images_per_second:
        pace.seconds_per_call = 1 / (STEP_IN_CALLS * study.images_per_second)
    left = pace.time_left()
    say(f"Measuring {len(study.chosen):,} of {len(study.images):,} images{left and f'. This takes {left}'}.")
    notes = [note for note in (training_overlap(study.images, study.training), resized_images(study.images)) if note]
    for note in notes:
        say(f"Note: {note}")
    unwritten = [name for name in remaining if name not in skipped]

    def report() -> str:
        programs, left = study.settings.programs, pace.time_left()
        total = len(programs) - len(skipped)
        done = counted(total - len(unwritten), "program", of=total, verb="is/are")
        chunks = counted(study.cache.count(), "chunk", verb="is/are")
        rest = left and f"The rest takes {left}. "
        return f"the evaluation stopped; {done} measured and {chunks} kept. {rest}{RESUME}"

    with if_interrupted(report):
        for name in remaining:
            if name in skipped:
                say(f"{name} was skipped: {skipped[name]}.")
                sections[name] = Section(name, PROGRAMS[name].TITLE, notes=(f"Skipped: {skipped[name]}.",))
                continue
            with pace.measured(name):
                sections[name] = PROGRAMS[name].run(study)
            _write(study, sections, notes)
            unwritten.remove(name)
            say(results.as_text(sections[name]))
    written = _write(study, sections, notes)
    if warning := undertrained(written.sections):
        say(warning)
    for claim in written.claims:
        if claim.verdict != "not measured":
            say(f"  {claim.verdict.upper()}: {claim.text} ({claim.source})")
    return written


def model_identity(model: DiffAE) -> dict[str, Any]:
    """Returns everything that a model's images and latent codes depend on."""
    config = model.config
    settings = json.loads(config.model.to_json())
    if settings["encoder"]["kind"] == default().model.encoder.kind:
        del settings["encoder"]  # keeps results from before this key valid
    return {
        "digest": model.digest(),
        "name": config.name,  # selects the paper's figures
        "image_shape": model.image_shape,
        "model": settings,
        "schedules": [image_process(config).name, latent_process(config).name],
        "precision": model.precision,
    }


def check_comparable(config: ConfigDict, baseline: ConfigDict | None, others: Sequence[ConfigDict]) -> None:
    """Checks that a model can be compared with other models. All are given by their configs.

    Raises UserError for a baseline with a z, other models without one, and other image shapes.
    """
    if baseline is not None and config.model.z_dim is None:
        raise UserError(f"{shown(config.name)} is itself a DDIM baseline without z. Leave out the baseline.")
    for other in (*([baseline] if baseline is not None else []), *others):
        if tuple(other.image_shape) != tuple(config.image_shape):
            raise UserError(
                f"{shown(other.name)} is for images of {tuple(other.image_shape)}, and {shown(config.name)} for "
                f"{tuple(config.image_shape)}. Use models with the same image shape."
            )
    if baseline is not None and baseline.model.z_dim is not None:
        raise UserError(f"{shown(baseline.name)} has a z, so it cannot be the baseline. Use a DDIM without z.")
    sizes = Counter(other.model.z_dim for other in (config, *others))
    if others and (None in sizes or max(sizes.values()) > 1):
        size, count = sizes.most_common(1)[0]
        problem = "A model has no z" if None in sizes else f"{count} models have a z of {size} dimensions"
        raise UserError(f"{problem}, but models are compared by the size of z. Use models whose z differ in size.")


def public_networks(model: DiffAE, settings: ConfigDict) -> Networks:
    """Returns the networks of FID and LPIPS, and a note with the reason for each missing network.

    Raises UserError if a file is not the published one.
    """
    paths = {name: settings[name] or None for name in ("inception", "alexnet", "lpips")}
    with together():  # if one process cannot read a file, all processes raise the error
        inception, no_inception = None, inception_problem(model.image_shape)
        if not no_inception:
            inception, no_inception = load_inception(model.mesh, paths["inception"], download=settings.download)
        lpips, no_lpips = None, lpips_problem(model.image_shape)
        if not no_lpips:
            lpips, no_lpips = load_lpips(model.mesh, paths["alexnet"], paths["lpips"], download=settings.download)
    return Networks(inception, lpips, _skip_notes("FID", no_inception), _skip_notes("LPIPS", no_lpips))


def _skip_notes(metric: str, reason: str) -> tuple[str, ...]:
    return (f"{metric} was skipped: {reason.rstrip('.')}.",) if reason else ()


def training_overlap(images: Source, training: Source | None) -> str | None:
    """Returns a warning if measured images have the same content as training images."""
    if training is None or training is images:
        return None
    training_hashes = set(_hashes(training, images).values())
    shared = [name for name, content in _hashes(images, training).items() if content in training_hashes]
    if not shared:
        return None
    return (
        f"{len(shared):,} of the {len(images):,} images are also training images ({list_some(shared)}). Figures on "
        f"these images are better than on unseen ones."
    )


def resized_images(images: Source) -> str | None:
    """Returns a note on images that do not have the model's size: they are scaled and cropped."""
    if not isinstance(images, TransformedSource):
        return None
    sizes, size = scan(images).sizes, images.transform.image_shape[:-1]
    count = sizes.total() - sizes[size]
    return f"{count:,} of the {len(images):,} images are scaled to {format_size(size)} and cropped." if count else None


def _settings_of_figures(settings: ConfigDict) -> dict[str, Any]:
    """Returns the settings that figures depend on, as JSON values."""
    values = {k: value for k, value in json.loads(settings.to_json()).items() if k not in NEUTRAL_SETTINGS}
    for key in ("samplers", "inversions"):  # keeps results from before these keys valid
        if settings[key] == default().evaluation[key]:
            del values[key]
    return values


def _hashes(source: Source, other: Source) -> dict[str, bytes]:
    """Returns a hash of the content of each image that may also be in the other source.

    Hashes only files of equal size, because only these can be equal. Hashes nothing if only one
    source consists of files.
    """
    paths, other_paths = file_paths(source), file_paths(other)
    if paths and other_paths:
        sizes = {path.stat().st_size for path in other_paths}
        return {
            name: hashlib.sha256(path.read_bytes()).digest()
            for name, path in zip(source.ids, paths, strict=True)
            if path.stat().st_size in sizes
        }
    if paths or other_paths:
        return {}
    return {name: hashlib.sha256(source[i].tobytes()).digest() for i, name in enumerate(source.ids)}


def _previous_sections(folder: AnyPath, inputs: dict[str, Any], replace: bool) -> dict[str, Section]:
    """Returns the sections of results.json if they were measured with the same inputs.

    If the records are damaged, prints a warning and returns none. Raises UserError if they have
    different inputs and `replace` is False.
    """
    existing = [path for path in (folder / RESULTS, folder / CHUNKS / INPUTS) if path.exists()]
    records = [_read_if_undamaged(read_json, path) for path in existing]
    if None in records:
        return {}
    for record in records:
        recorded = record.get("measured", record) if isinstance(record, dict) else {}
        differing = sorted(key for key in recorded.keys() | inputs.keys() if recorded.get(key) != inputs.get(key))
        if differing and not replace:
            raise UserError(
                f"{folder} holds an evaluation with different inputs ({list_some(differing)}). Use a different folder "
                f"or --overwrite."
            )
        if differing:
            return {}
    previous = _read_if_undamaged(results.read, folder) if (folder / RESULTS).exists() else None
    return {} if previous is None else {section.name: section for section in previous.sections}


def _read_if_undamaged(read: Callable[[AnyPath], Any], path: AnyPath) -> Any:
    try:
        return read(path)
    except UserError as error:
        say(f"WARNING: {error} All programs are measured again.")
        return None


def _write(study: Study, sections: dict[str, Section], notes: list[str]) -> Results:
    """Writes all results so far, in the order of the programs."""
    in_order = {name: sections[name] for name in PROGRAMS if name in sections}
    config, folder = json.loads(study.model.config.to_json()), study.folder
    written = Results(
        study.cache.inputs, about(study, notes), config, tuple(in_order.values()), tuple(claims(in_order))
    )
    if is_main_process():
        results.write(folder, written)
        pictures = {picture.file for section in in_order.values() for picture in section.pictures}
        for program in PROGRAMS.values():
            if program.PICTURE and program.PICTURE not in pictures:  # belongs to older inputs
                (folder / program.PICTURE).unlink(missing_ok=True)
    return written


def about(study: Study, notes: list[str]) -> dict[str, str]:
    """Returns what was measured, when, and with which software, as text for readers."""
    model = study.model
    kind = "a diffusion autoencoder" if study.has_z else "a DDIM baseline"
    texts = {
        "model": f"{model.config.name}, {kind} for images of {'x'.join(map(str, model.image_shape))}",
        "SHA-256 of the model": study.cache.inputs["model"]["digest"],
        "images": f"{len(study.chosen):,} of {len(study.images):,} "
        + ("training images: none are held out" if study.images is study.training else "held-out images"),
        "training images": "not available" if study.training is None else f"{len(study.training):,}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {model.precision}",
        "made by": f"diffae_jax {__version__}{commit()}, JAX {jax.__version__}",
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    return texts | ({"note": " ".join(notes)} if notes else {})


def commit() -> str:
    """Returns ", commit HASH" if the package runs from a clone of its repository, otherwise ""."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        git = subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return ""
    return f", commit {git.stdout.strip()}" if git.returncode == 0 else ""
