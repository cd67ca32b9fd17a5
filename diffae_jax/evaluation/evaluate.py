"""Runs the programs of an evaluation, one after the other, and keeps what they found."""

import hashlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffae_jax import __version__
from diffae_jax.config import default
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.inspect.scan import scan
from diffae_jax.data.labels.matching import fingerprint
from diffae_jax.data.sources import Source, TransformedSource
from diffae_jax.data.transforms import format_size
from diffae_jax.diffusion.process import image_process, latent_process
from diffae_jax.evaluation import results
from diffae_jax.evaluation.chunk_cache import INPUTS, ChunkCache
from diffae_jax.evaluation.networks.feature_spaces import (
    check_inception_images,
    check_lpips_images,
    load_inception,
    load_lpips,
)
from diffae_jax.evaluation.paper.claims import claims
from diffae_jax.evaluation.programs import PROGRAMS, missing_requirement
from diffae_jax.evaluation.report.page import write_report
from diffae_jax.evaluation.results import REPORT, RESULTS, Results, Section
from diffae_jax.evaluation.study import Networks, Study
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.encode_dataset import describe
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import duration, say
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import read_json

FREE = (  # settings that change no figure, or where what they name is looked at itself
    "programs", "download", "baseline", "others", "foreign", "inception", "alexnet", "lpips",
)  # fmt: skip
CHUNKS = "chunks"


def evaluate(
    model: DiffAE,
    images: Source,
    training: Source | None,
    settings: ConfigDict,
    folder: Path,
    *,
    seed: int = 0,
    baseline: DiffAE | None = None,
    others: tuple[DiffAE, ...] = (),
    foreign: Source | None = None,
    images_per_second: float | None = None,
    networks: Networks | None = None,
    replace: bool = True,
) -> Results | None:
    """Measures a model by the programs of `settings` and writes results.json, pictures and report.html to a folder.

    `images` are those that are measured; where none are held out from training, both are the same source. What was
    measured already is kept, and what was stopped goes on; with `replace`, figures of something else make place.
    Returns None where there was nothing left to do.

    Raises UserError for a baseline that has a z, for others without one, for models of other shapes, and unless
    `replace`, for a folder with figures of something else.
    """
    check_beside(model, baseline, others)
    settings = settings.copy_and_resolve_references()
    for key in ("num_steps", "num_sample_steps"):
        settings[key] = tuple(sorted(set(settings[key])))
    networks = networks or public_networks(model, settings)
    measured = {
        "diffae_jax": __version__,
        "model": identity(model),
        "baseline": baseline and identity(baseline),
        "others": [identity(other) for other in others],
        "images": describe(images),
        "training": training and describe(training),
        "foreign": foreign and describe(foreign),
        "labels": fingerprint(images.labels, training.labels if training is not None else {}),
        "seed": seed,
        "networks": [name for name in ("inception", "lpips") if getattr(networks, name) is not None],
        "settings": {key: value for key, value in json.loads(settings.to_json()).items() if key not in FREE},
    }
    measured = json.loads(json.dumps(measured))  # as it will be read
    with together():  # nobody writes before all have looked
        found = _found(folder, measured, replace)
    cache = ChunkCache(folder / CHUNKS, measured)
    if all(name in found for name in settings.programs) and (folder / REPORT).exists():
        cache.remove()
        return None
    if not found and is_main_process():  # what is there is of something else
        for name in (RESULTS, REPORT):
            (folder / name).unlink(missing_ok=True)
    study = Study(
        model, images, training, settings, seed, folder, cache, networks,
        baseline=baseline, others=others, foreign=foreign, images_per_second=images_per_second,
    )  # fmt: skip
    written = _measure(study, found)
    if is_main_process():
        write_report(folder, written)
    cache.remove()
    return written


def _measure(study: Study, found: dict[str, Section]) -> Results:
    """Runs the programs that are not in `found`, and writes what each found as soon as it is through."""
    to_go = [name for name in study.settings.programs if name not in found]
    left_out = {name: why for name in to_go if (why := missing_requirement(name, study)) is not None}
    expected = _expected(study, [name for name in to_go if name not in left_out])
    say(f"{len(study.chosen):,} of {len(study.images):,} images are measured{expected}.")
    notes = [note for note in (overlap(study.images, study.training), other_sizes(study.images)) if note]
    for note in notes:
        say(f"Note: {note}")
    for name in to_go:
        if name in left_out:
            say(f"{name} is left out: {left_out[name]}.")
            found[name] = Section(name, PROGRAMS[name].TITLE, notes=(f"Left out: {left_out[name]}.",))
            continue
        found[name] = PROGRAMS[name].run(study)
        say(results.as_text(found[name]))
        _write(study, found, notes)
    written = _write(study, found, notes)
    for claim in written.claims:
        if claim.verdict != "not measured":
            say(f"  {claim.verdict.upper()}: {claim.text} ({claim.source})")
    return written


def identity(model: DiffAE) -> dict[str, Any]:
    """Returns what a model's images and codes depend on."""
    config = model.config
    settings = json.loads(config.model.to_json())
    if settings["encoder"]["kind"] == default().model.encoder.kind:
        del settings["encoder"]  # so that what was measured before there were others is still good
    return {
        "digest": model.digest(),
        "name": config.name,  # by which the paper's figures are found
        "image_shape": model.image_shape,
        "model": settings,
        "schedules": [image_process(config).name, latent_process(config).name],
        "precision": model.precision,
    }


def check_beside(model: DiffAE, baseline: DiffAE | None, others: tuple[DiffAE, ...]) -> None:
    """Raises UserError for models that cannot be compared with one."""
    if baseline is not None and model.config.model.z_dim is None:
        raise UserError(f"{shown(model.config.name)} is a DDIM without z itself: leave the baseline off.")
    for other in (*([baseline] if baseline else []), *others):
        if other.image_shape != model.image_shape:
            raise UserError(
                f"{shown(other.config.name)} is for images of {other.image_shape}, and {shown(model.config.name)} for "
                f"{model.image_shape}: compare models of one shape."
            )
    if baseline is not None and baseline.config.model.z_dim is not None:
        raise UserError(f"{shown(baseline.config.name)} has a z: give a DDIM without one as the baseline.")
    sizes = Counter(other.config.model.z_dim for other in (model, *others))
    if others and (None in sizes or max(sizes.values()) > 1):
        raise UserError("Models are compared by the size of their z, so each must have a z of another size.")


def public_networks(model: DiffAE, settings: ConfigDict) -> Networks:
    """Returns what LPIPS and FID are measured with or, for each that is not there, a sentence that says why.

    Raises UserError for files that are not the published ones.
    """
    paths = {name: settings[name] or None for name in ("inception", "alexnet", "lpips")}
    with together():  # one of several processes may be the one that cannot read a file
        inception, why_no_inception = None, unlike(check_inception_images, model)
        if not why_no_inception:
            inception, why_no_inception = load_inception(model.mesh, paths["inception"], download=settings.download)
        lpips, why_no_lpips = None, unlike(check_lpips_images, model)
        if not why_no_lpips:
            lpips, why_no_lpips = load_lpips(model.mesh, paths["alexnet"], paths["lpips"], download=settings.download)
    return Networks(
        inception,
        lpips,
        (f"FID is left out: {why_no_inception}",) if why_no_inception else (),
        (f"LPIPS is left out: {why_no_lpips}",) if why_no_lpips else (),
    )


def unlike(check: Callable[[tuple[int, ...]], None], model: DiffAE) -> str:
    """Returns what a check of the shape of images objects to, or nothing."""
    try:
        check(model.image_shape)
    except UserError as error:
        return str(error)
    return ""


def overlap(images: Source, training: Source | None) -> str | None:
    """Returns a warning where measured images are training images too, by the hash of their content."""
    if training is None or training is images:
        return None
    seen = set(_hashes(training, images).values())
    twice = [name for name, content in _hashes(images, training).items() if content in seen]
    if not twice:
        return None
    return (
        f"{len(twice):,} of the {len(images):,} images are training images, too ({list_some(twice)}): figures of them "
        f"flatter the model."
    )


def other_sizes(images: Source) -> str | None:
    """Returns a note where images are of other sizes than the model's, for these are scaled and cropped."""
    if not isinstance(images, TransformedSource):
        return None
    sizes, size = scan(images).sizes, images.transform.image_shape[:-1]
    others = sizes.total() - sizes[size]
    return (
        f"{others:,} of the {len(images):,} images are scaled to {format_size(size)} and cropped." if others else None
    )


def _hashes(source: Source, other: Source) -> dict[str, bytes]:
    """Returns a hash of the content of each image that may be in the other set, too: files are, of the same size."""
    paths, others = file_paths(source), file_paths(other)
    if paths and others:
        sizes = {path.stat().st_size for path in others}
        return {
            name: hashlib.sha256(path.read_bytes()).digest()
            for name, path in zip(source.ids, paths, strict=True)
            if path.stat().st_size in sizes
        }
    if paths or others:
        return {}
    return {name: hashlib.sha256(source[i].tobytes()).digest() for i, name in enumerate(source.ids)}


def _found(folder: Path, measured: dict[str, Any], replace: bool) -> dict[str, Section]:
    """Returns what was measured of the same model and images under the same settings."""
    began_with = [read_json(path) for path in (folder / RESULTS, folder / CHUNKS / INPUTS) if path.exists()]
    for inputs in began_with:
        inputs = inputs.get("measured", inputs) if isinstance(inputs, dict) else {}
        differing = sorted(key for key in inputs.keys() | measured.keys() if inputs.get(key) != measured.get(key))
        if differing and not replace:
            raise UserError(
                f"{folder} holds an evaluation of something else ({list_some(differing)} differ): give another "
                f"folder, or --overwrite."
            )
        if differing:
            return {}
    return {section.name: section for section in results.read(folder).sections} if (folder / RESULTS).exists() else {}


def _write(study: Study, found: dict[str, Section], notes: list[str]) -> Results:
    """Writes what was found so far, in the order of the programs."""
    in_order = {name: found[name] for name in PROGRAMS if name in found}
    config, folder = json.loads(study.model.config.to_json()), study.folder
    sections, verdicts = tuple(in_order.values()), tuple(claims(in_order))
    written = Results(study.cache.inputs, about(study, notes), config, sections, verdicts)
    if is_main_process():
        results.write(folder, written)
        kept = {picture.file for section in in_order.values() for picture in section.pictures}
        for program in PROGRAMS.values():
            if program.PICTURE and program.PICTURE not in kept:  # of a model or a setting that is no more
                (folder / program.PICTURE).unlink(missing_ok=True)
    return written


def about(study: Study, notes: list[str]) -> dict[str, str]:
    """Returns what was measured, when and by what, for people."""
    model = study.model
    kind = "a diffusion autoencoder" if study.has_z else "a DDIM baseline"
    found = {
        "model": f"{model.config.name}, {kind} for images of {'x'.join(map(str, model.image_shape))}",
        "SHA-256 of the model": study.cache.inputs["model"]["digest"],
        "images": f"{len(study.chosen):,} of {len(study.images):,} "
        + ("training images: none are held out" if study.images is study.training else "held-out images"),
        "training images": "not at hand" if study.training is None else f"{len(study.training):,}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {model.precision}",
        "made by": f"diffae_jax {__version__}{commit()}, JAX {jax.__version__}",
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    return found | ({"note": " ".join(notes)} if notes else {})


def commit() -> str:
    """Returns the commit of the package, where it runs from a clone of its repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:  # a clone on a machine without git
        return ""
    return f", commit {found.stdout.strip()}" if found.returncode == 0 else ""


def _expected(study: Study, programs: list[str]) -> str:
    """Ends a sentence with the time to expect of some programs, going by the speed of training.

    A step of training takes three times as long as a call of the network, or longer.
    """
    if not study.images_per_second:
        return ""
    calls = sum(PROGRAMS[name].calls(study) for name in programs)
    return f": about {duration(calls / (3 * study.images_per_second) + 1)} or less, and some for compiling"
